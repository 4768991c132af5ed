"""Language models in training: one batch of texts after the other.

As in the training loop, all randomness is a function of (seed, step) or (seed, epoch). A batch of texts begins without
a state, so between two batches a position and the tensors are all there is to save.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilstm_cls.config import PretrainConfig
from bilstm_cls.data.batches import Indices, cut_by_tokens
from bilstm_cls.data.passages import Chunk, LanguageModelTexts, chunks, number_of_chunks, passage_batches
from bilstm_cls.device import allow_tf32
from bilstm_cls.errors import DataError, DivergedError
from bilstm_cls.model.language_model import LanguageModels, Noise
from bilstm_cls.model.recurrent import State
from bilstm_cls.training.loop import MAX_LOSS, StepReport, allows_tf32, autocast_type
from bilstm_cls.training.optimizer import (
    build_optimizers,
    clip_gradients,
    learning_rate_at,
    load_optimizer_state,
    optimizer_state,
    within,
)

Row = dict[str, Any]

HELD_OUT_SHARE, MAX_HELD_OUT = 0.01, 500
WARMUP = 0.1
WHOLE = 10**9
"""Tokens of a text that are read: all."""

MAX_EXPONENT = 700.0


@dataclass
class Progress:
    """Where pretraining stands; with the tensors, all that going on needs.

    Attributes:
        perplexities: after each epoch, of the forward and, where there is one, the backward model.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    num_tokens: int = 0
    perplexities: list[list[float]] = field(default_factory=list)


class Pretrainer:
    """Language models in training: reads one batch of texts, judges, and gives and takes its whole state.

    Args:
        model: on its device.
        passages: all texts.
        config: the `pretrain` section.
        seed: of the texts that are held out, of the order, of dropout and of the sample.
        precision: of the encoder, as `train.precision` names it.

    Raises:
        DataError: there are no two texts of two tokens.
    """

    def __init__(
        self,
        model: LanguageModels,
        passages: LanguageModelTexts,
        config: PretrainConfig,
        *,
        seed: int,
        precision: str = "auto",
    ) -> None:
        self.model = model
        self.passages = passages
        self.config = config
        self.seed = seed
        self.progress = Progress()
        self.device = model.embedding.weight.device
        self.precision = autocast_type(precision, self.device)
        self.allows_tf32 = allows_tf32(precision, self.device)
        self.lengths = passages.lengths
        usable = np.flatnonzero(self.lengths > 1)
        if len(usable) < 2:
            raise DataError("train and unlabelled hold no two texts of two tokens, so there is nothing to predict")
        order = np.random.Generator(np.random.PCG64([seed, 0, 1])).permutation(usable)
        num_held_out = min(math.ceil(HELD_OUT_SHARE * len(order)), MAX_HELD_OUT)
        self.held_out, self.read = np.sort(order[:num_held_out]), np.sort(order[num_held_out:])
        self.counts = torch.from_numpy(passages.counts(model.embedding.num_embeddings)).to(self.device)
        self.noise = Noise.of(self.counts, config.num_samples)
        self.optimizers = build_optimizers(model, name="adamw", weight_decay=0.0, momentum=0.0)
        self.total_steps = sum(
            number_of_chunks(int(self.lengths[batch[-1]]), config.bptt)
            for epoch in range(config.epochs)
            for batch in self._plan(epoch)
        )
        self.batches = self._plan(0)

    def _plan(self, epoch: int) -> list[Indices]:
        config = self.config
        return passage_batches(
            self.read, self.lengths, batch_size=config.batch_size, bptt=config.bptt, seed=self.seed, epoch=epoch
        )

    @property
    def is_done(self) -> bool:
        return self.progress.epoch >= self.config.epochs

    def read_batch(self) -> Iterator[StepReport]:
        """Reads the next batch of texts to its end, with an update for every chunk.

        The loss of a chunk is divided by the number of predictions in the first one of its batch, so that a chunk of
        few texts moves the weights little.

        Raises:
            DivergedError: the loss or the gradient is not finite.
        """
        states: list[State | None] = [None] * self.model.encoder.num_directions
        full = 0
        for chunk in chunks(self.passages.texts(self.batches[self.progress.batch]), self.config.bptt):
            started = time.monotonic()
            full = full or chunk.is_predicted.size
            states = [state and tuple(part[chunk.num_ended :] for part in state) for state in states]
            rate = self.learning_rate(self.progress.step)
            loss, norm, states = self._update(chunk, states, full, rate)
            self.progress.step += 1
            self.progress.num_tokens += int(chunk.is_predicted.sum())
            self.progress.seconds += time.monotonic() - started
            yield StepReport(
                step=self.progress.step,
                total_steps=self.total_steps,
                epoch=self.progress.epoch + 1,
                loss=loss,
                num_texts=chunk.is_predicted.shape[1],
                num_tokens=int(chunk.is_predicted.sum()),
                learning_rate=rate,
                grad_norm=norm,
            )
        self.progress.batch += 1
        if self.progress.batch == len(self.batches):
            self.progress.epoch += 1
            self.progress.batch = 0
            self.batches = self._plan(self.progress.epoch)

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of the update after `step` updates."""
        return learning_rate_at(
            step,
            total_steps=self.total_steps,
            peak=self.config.learning_rate,
            schedule="one-cycle",
            warmup=WARMUP,
        )

    def _update(
        self, chunk: Chunk, states: list[State | None], full: int, rate: float
    ) -> tuple[float, float, list[State | None]]:
        """Returns the mean loss of a prediction, the norm of the gradient, and the states after the chunk."""
        self.model.train()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        torch.manual_seed(((self.seed << 32) + self.progress.step) % 2**63)
        tokens, is_predicted = self._tensors(chunk)
        with allow_tf32(self.allows_tf32):
            total, after = self.model.sampled_loss(tokens, is_predicted, states, self.noise, precision=self.precision)
            (total / (full * len(tokens))).backward()  # type: ignore[no-untyped-call]
        loss = float(total.detach()) / (int(chunk.is_predicted.sum()) * len(tokens))
        norm = clip_gradients(self.model.parameters(), self.config.max_grad_norm)
        if not loss <= MAX_LOSS or not math.isfinite(norm):
            raise self._diverged(self.progress.step + 1, f"loss {loss:g}, gradient norm {norm:g}")
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        return loss, norm, list(after)

    def _diverged(self, step: int, found: str) -> DivergedError:
        return DivergedError(
            f"pretraining diverged at step {step}: {found}, learning rate {self.learning_rate(step - 1):g}; "
            f"lower pretrain.learning_rate or pretrain.max_grad_norm and start again"
        )

    def _tensors(self, chunk: Chunk) -> tuple[list[Tensor], Tensor]:
        both = [chunk.forward, chunk.backward][: self.model.encoder.num_directions]
        return [torch.from_numpy(own).to(self.device) for own in both], torch.from_numpy(chunk.is_predicted).to(
            self.device
        )

    def judge(self) -> list[float]:
        """Notes and returns the perplexities of the texts that are held out, over the whole vocabulary.

        Raises:
            DivergedError: they are beyond all numbers.
        """
        self.model.eval()
        order = self.held_out[np.argsort(self.lengths[self.held_out], kind="stable")]
        sums, num_predicted = np.zeros(self.model.encoder.num_directions), 0
        for batch in cut_by_tokens(order, self.lengths, 8192):
            for chunk in chunks(self.passages.texts(batch), WHOLE):
                sums += self.model.log_likelihoods(*self._tensors(chunk))
                num_predicted += int(chunk.is_predicted.sum())
        losses = -sums / num_predicted
        if not (losses < MAX_EXPONENT).all():
            raise self._diverged(self.progress.step, f"held-out losses {losses.tolist()}")
        perplexities: list[float] = np.exp(losses).tolist()
        self.progress.perplexities.append(perplexities)
        return perplexities

    def state(self) -> tuple[dict[str, Tensor], Row]:
        """Returns all tensors, and all numbers as JSON holds them; between two batches."""
        tensors, numbers = optimizer_state(self.optimizers)
        model = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        return model | tensors, {"progress": asdict(self.progress), "optimizers": numbers}

    def load_state(self, tensors: dict[str, Tensor], numbers: Row) -> None:
        """Takes back what `state` gave.

        Raises:
            KeyError, RuntimeError, TypeError: the state is of another model.
        """
        self.model.load_state_dict(within(tensors, "model."))
        load_optimizer_state(self.optimizers, tensors, numbers["optimizers"])
        self.progress = Progress(**numbers["progress"])
        self.batches = self._plan(self.progress.epoch)
