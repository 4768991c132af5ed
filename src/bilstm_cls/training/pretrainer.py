"""Language models in training: one chunk of a batch of texts after the other.

As in the training loop, all randomness is a function of (seed, step) or (seed, epoch), so a position, the tensors and
the hidden states between two chunks of a text are all there is to save.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor

from bilstm_cls.config import PretrainConfig
from bilstm_cls.data.batches import Indices, cut_by_tokens
from bilstm_cls.data.passages import Chunk, LanguageModelTexts, chunks, number_of_chunks, passage_batches
from bilstm_cls.device import Precision, allow_tf32
from bilstm_cls.errors import DataError, DivergedError
from bilstm_cls.model.language_model import LanguageModels, UnigramSampler
from bilstm_cls.model.recurrent import State
from bilstm_cls.training.loop import MAX_LOSS, Row, StepReport, step_seed
from bilstm_cls.training.optimizer import (
    build_optimizers,
    clip_gradients,
    learning_rate_at,
    load_optimizer_state,
    optimizer_state,
    set_learning_rate,
    strip_prefix,
)

HELD_OUT_FRACTION, MAX_HELD_OUT, HELD_OUT_TOKENS = 0.01, 500, 8192
WARMUP = 0.1
WHOLE = 10**9
"""Tokens of a text that are read: all."""
MAX_EXPONENT = 700.0


@dataclass
class Progress:
    """Where pretraining is; with the tensors, all that resuming needs.

    Attributes:
        batch: of texts that are read side by side.
        chunk: of that batch.
        perplexities: after each epoch, of the forward and, where there is one, the backward model.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    chunk: int = 0
    seconds: float = 0.0
    num_tokens: int = 0
    perplexities: list[list[float]] = field(default_factory=list)


class Pretrainer:
    """Language models in training: reads one chunk, evaluates, and saves and restores its whole state.

    Args:
        model: on its device.
        texts: all texts.
        config: the `pretrain` section.
        seed: of the texts that are held out, of the order, of dropout and of the sample.
        precision: of the encoder, as `train.precision` names it.

    Raises:
        DataError: there are no two texts of two tokens.
    """

    def __init__(
        self,
        model: LanguageModels,
        texts: LanguageModelTexts,
        config: PretrainConfig,
        *,
        seed: int,
        precision: str = "auto",
    ) -> None:
        self.model = model
        self.texts = texts
        self.config = config
        self.seed = seed
        self.progress = Progress()
        self.device = model.embedding.weight.device
        self.precision = Precision.named(precision, self.device)
        self.lengths = texts.lengths
        usable = np.flatnonzero(self.lengths > 1)
        if len(usable) < 2:
            raise DataError("train and unlabelled hold no two texts of two tokens, so there is nothing to predict")
        order = np.random.Generator(np.random.PCG64([seed, 0, 1])).permutation(usable)
        num_held_out = min(math.ceil(HELD_OUT_FRACTION * len(order)), MAX_HELD_OUT)
        self.held_out, self.read = np.sort(order[:num_held_out]), np.sort(order[num_held_out:])
        self.counts = torch.from_numpy(texts.counts(model.embedding.num_embeddings)).to(self.device)  # [V]
        self.sampler = UnigramSampler.of(self.counts, config.num_samples)
        self.optimizers = build_optimizers(model, name="adamw", weight_decay=0.0, momentum=0.0)
        self.batches = self._batches_of(0)
        longest = [int(self.lengths[batch[-1]]) for batch in self.batches]
        self.total_steps = config.epochs * sum(number_of_chunks(length, config.bptt) for length in longest)
        self._open_batch()

    def _batches_of(self, epoch: int) -> list[Indices]:
        config = self.config
        return passage_batches(
            self.read, self.lengths, batch_size=config.batch_size, bptt=config.bptt, seed=self.seed, epoch=epoch
        )

    def _open_batch(self) -> None:
        """Prepares to read a batch of texts from their beginning."""
        self.chunks: list[Chunk] = []  # read when the first step needs them
        self.states: list[State | None] = [None] * self.model.encoder.num_directions  # each part [B, H]

    @property
    def is_finished(self) -> bool:
        return self.progress.epoch >= self.config.epochs

    @property
    def is_evaluation_due(self) -> bool:
        return len(self.progress.perplexities) < self.progress.epoch

    def step(self) -> StepReport:
        """Reads the next chunk of a batch of texts, and makes an update.

        The loss of a chunk is divided by the number of predictions in the first one of its batch, so that a chunk of
        few texts moves the weights little.

        Raises:
            DivergedError: the loss or the gradient is not finite.
        """
        started = time.monotonic()
        progress = self.progress
        if not self.chunks:
            self.chunks = list(chunks(self.texts.texts(self.batches[progress.batch]), self.config.bptt))
        chunk = self.chunks[progress.chunk]
        self.states = [state and tuple(part[chunk.num_ended :] for part in state) for state in self.states]
        rate = self.learning_rate(progress.step)
        loss, norm = self._update(chunk, self.chunks[0].is_predicted.size, rate)
        num_tokens = int(chunk.is_predicted.sum())
        report = StepReport(
            step=progress.step + 1,
            total_steps=self.total_steps,
            epoch=progress.epoch + 1,
            loss=loss,
            num_texts=chunk.is_predicted.shape[1],
            num_tokens=num_tokens,
            learning_rate=rate,
            grad_norm=norm,
        )
        progress.step += 1
        progress.num_tokens += num_tokens
        progress.chunk += 1
        if progress.chunk == len(self.chunks):
            progress.chunk = 0
            progress.batch += 1
            self._open_batch()
        if progress.batch == len(self.batches):
            progress.batch = 0
            progress.epoch += 1
            self.batches = self._batches_of(progress.epoch)
        progress.seconds += time.monotonic() - started
        return report

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of the update after `step` updates."""
        peak = self.config.learning_rate
        return learning_rate_at(step, total_steps=self.total_steps, peak=peak, schedule="one-cycle", warmup=WARMUP)

    def _update(self, chunk: Chunk, num_predictions: int, rate: float) -> tuple[float, float]:
        """Returns the mean loss of a prediction and the norm of the gradient, and keeps the states after the chunk."""
        self.model.train()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        torch.manual_seed(step_seed(self.seed, self.progress.step))
        tokens, is_predicted = self._tensors(chunk)
        with allow_tf32(self.precision.allows_tf32):
            total, states = self.model.sampled_loss(
                tokens, is_predicted, self.states, self.sampler, precision=self.precision.dtype
            )
            (total / (num_predictions * len(tokens))).backward()  # type: ignore[no-untyped-call]
        loss = float(total.detach()) / (int(chunk.is_predicted.sum()) * len(tokens))
        norm = clip_gradients(self.model.parameters(), self.config.max_grad_norm)
        if not loss <= MAX_LOSS or not math.isfinite(norm):
            raise self._diverged(self.progress.step + 1, f"loss {loss:g}, gradient norm {norm:g}")
        set_learning_rate(self.optimizers, rate)
        for optimizer in self.optimizers:
            optimizer.step()
        self.states = list(states)
        return loss, norm

    def _diverged(self, step: int, found: str) -> DivergedError:
        return DivergedError(
            f"pretraining diverged at step {step}: {found}, learning rate {self.learning_rate(step - 1):g}; "
            f"lower pretrain.learning_rate or pretrain.max_grad_norm and start again"
        )

    def _tensors(self, chunk: Chunk) -> tuple[list[Tensor], Tensor]:
        """Returns token ids `[T + 1, B]` per direction, and which of `[T, B]` are predicted."""
        arrays = [chunk.forward, chunk.backward][: self.model.encoder.num_directions]
        tokens = [torch.from_numpy(array).to(self.device) for array in arrays]
        return tokens, torch.from_numpy(chunk.is_predicted).to(self.device)

    def evaluate(self, is_stopping: Callable[[], bool] = lambda: False) -> list[float] | None:
        """Records and returns the perplexities of the texts that are held out, over the whole vocabulary.

        Args:
            is_stopping: whether to return None before the end and leave the evaluation due.

        Raises:
            DivergedError: they are beyond all numbers.
        """
        self.model.eval()
        order = self.held_out[np.argsort(self.lengths[self.held_out], kind="stable")]
        sums, num_predicted = np.zeros(self.model.encoder.num_directions), 0
        for batch in cut_by_tokens(order, self.lengths, HELD_OUT_TOKENS):
            for chunk in chunks(self.texts.texts(batch), WHOLE):
                if is_stopping():
                    return None
                with allow_tf32(False):
                    sums += self.model.log_likelihoods(*self._tensors(chunk))
                num_predicted += int(chunk.is_predicted.sum())
        losses = -sums / num_predicted
        if not (losses < MAX_EXPONENT).all():
            raise self._diverged(self.progress.step, f"held-out losses {losses.tolist()}")
        perplexities: list[float] = np.exp(losses).tolist()
        self.progress.perplexities.append(perplexities)
        return perplexities

    def state(self) -> tuple[dict[str, Tensor], Row]:
        """Returns all tensors, and all numbers as JSON holds them."""
        tensors, numbers = optimizer_state(self.optimizers)
        tensors |= {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for direction, state in enumerate(self.states):
            tensors |= {f"state.{direction}.{i}": part for i, part in enumerate(state or ())}
        return tensors, {"progress": asdict(self.progress), "optimizers": numbers}

    def load_state(self, tensors: dict[str, Tensor], numbers: Row) -> None:
        """Restores what `state` returned.

        Raises:
            KeyError, RuntimeError, TypeError: the state is of another model.
        """
        self.model.load_state_dict(strip_prefix(tensors, "model."))
        load_optimizer_state(self.optimizers, tensors, numbers["optimizers"])
        self.progress = Progress(**numbers["progress"])
        self.batches = self._batches_of(self.progress.epoch)
        self._open_batch()
        if self.progress.chunk:
            for direction in range(len(self.states)):
                parts = strip_prefix(tensors, f"state.{direction}.")
                self.states[direction] = tuple(parts[str(i)].to(self.device) for i in range(len(parts)))
