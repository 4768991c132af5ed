"""An encoder from texts whose labels are not read: language models, or word vectors alone.

As in the training loop, all randomness is a function of (seed, step) or (seed, epoch). A batch of texts begins without
a state, so between two batches a position and the tensors are all there is to save.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilstm_cls.config import Config, PretrainConfig, dump_config
from bilstm_cls.data.batches import Indices, cut_by_tokens
from bilstm_cls.data.encoder import WEIGHTS
from bilstm_cls.data.passages import Chunk, Passages, chunks, number_of_chunks, passage_batches
from bilstm_cls.data.preparation import PreparedData, prepare
from bilstm_cls.data.vectors import corpus_vectors
from bilstm_cls.device import choose_device, freed_memory_kept, set_threads
from bilstm_cls.errors import CheckpointError, ConfigError, DataError, DivergedError
from bilstm_cls.files import replacing, write_atomic
from bilstm_cls.model.language_model import LanguageModels, Noise
from bilstm_cls.model.recurrent import State
from bilstm_cls.processes import usable_cores
from bilstm_cls.run_directory import RunDirectory, environment, text_digest
from bilstm_cls.tensors import save_tensors
from bilstm_cls.training.checkpoint import load_newest, save_checkpoint
from bilstm_cls.training.loop import MAX_LOSS, StepReport
from bilstm_cls.training.optimizer import (
    build_optimizers,
    clip_gradients,
    learning_rate_at,
    load_optimizer_state,
    optimizer_state,
    within,
)
from bilstm_cls.training.record import is_finished, log_file, recorded_status, remembered_log
from bilstm_cls.training.signals import StopSignals
from bilstm_cls.training.start import initialize_weights

logger = logging.getLogger(__name__)

Row = dict[str, Any]

READ = ("train", "unlabelled")
"""The splits that are read: none that anything is judged on."""

FREE_KEYS = ("name", "output_dir", "train")
"""What may change when pretraining is resumed."""

HELD_OUT_SHARE, MAX_HELD_OUT = 0.01, 500
WARMUP = 0.1
WHOLE = 10**9
"""Tokens of a text that are read: all."""

NAMES = ("forward", "backward")


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

    Raises:
        DataError: there are no two texts of two tokens.
    """

    def __init__(self, model: LanguageModels, passages: Passages, config: PretrainConfig, *, seed: int) -> None:
        self.model = model
        self.passages = passages
        self.config = config
        self.seed = seed
        self.progress = Progress()
        self.device = model.embedding.weight.device
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
        total, after = self.model.sampled_loss(tokens, is_predicted, states, self.noise)
        (total / (full * len(tokens))).backward()  # type: ignore[no-untyped-call]
        loss = float(total.detach()) / (int(chunk.is_predicted.sum()) * len(tokens))
        norm = clip_gradients(self.model.parameters(), self.config.max_grad_norm)
        if not loss <= MAX_LOSS or not math.isfinite(norm):
            raise DivergedError(
                f"pretraining diverged at step {self.progress.step + 1}: loss {loss:g}, gradient norm {norm:g}, "
                f"learning rate {rate:g}; lower pretrain.learning_rate or pretrain.max_grad_norm and start again"
            )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        return loss, norm, list(after)

    def _tensors(self, chunk: Chunk) -> tuple[list[Tensor], Tensor]:
        both = [chunk.forward, chunk.backward][: self.model.encoder.num_directions]
        return [torch.from_numpy(own).to(self.device) for own in both], torch.from_numpy(chunk.is_predicted).to(
            self.device
        )

    def judge(self) -> list[float]:
        """Notes and returns the perplexities of the texts that are held out, over the whole vocabulary."""
        self.model.eval()
        order = self.held_out[np.argsort(self.lengths[self.held_out], kind="stable")]
        sums, num_predicted = np.zeros(self.model.encoder.num_directions), 0
        for batch in cut_by_tokens(order, self.lengths, 8192):
            for chunk in chunks(self.passages.texts(batch), WHOLE):
                sums += self.model.log_likelihoods(*self._tensors(chunk))
                num_predicted += int(chunk.is_predicted.sum())
        perplexities: list[float] = np.exp(-sums / num_predicted).tolist()
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


def pretrain(
    config: Config,
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_report: Callable[[StepReport], None] = lambda report: None,
) -> Row:
    """Trains language models on the texts of train and unlabelled, and writes an encoder for `model.init_from`.

    Texts are read whole, whatever `text.max_length` is. One in a hundred is held out to judge on; neither valid nor
    test is read.

    Args:
        config: its sizes are those of the encoder.
        folder: where to write.
        resume: go on from the last checkpoint, to the same bits.
        overwrite: delete an earlier encoder or run there first.
        on_report: called after every step.

    Returns:
        The content of `metrics.json`.

    Raises:
        ConfigError: several layers are asked for, or the folder is taken or cannot be written.
        DataError, CheckpointError, DivergedError, ResourceError, StoppedError: as in training.
    """
    if config.model.num_layers > 1:
        raise ConfigError(
            f"model.num_layers: {config.model.num_layers} layers cannot be pretrained, as a second one would read both "
            f"directions and so see the token that it has to predict; set model.num_layers to 1"
        )
    run = RunDirectory(folder)
    with StopSignals() as signals, run.locked(), remembered_log() as earlier:
        if is_finished(run, config, product=WEIGHTS, free=FREE_KEYS, resume=resume, overwrite=overwrite):
            logger.info(f"{folder} is finished already; --overwrite makes it again")
            return run.read_object("metrics.json")
        choose_device(config.train.device)
        whole = config.model_copy(update={"text": config.text.model_copy(update={"max_length": WHOLE})})
        data = prepare(whole, only=READ)
        if overwrite:
            run.clear()
        run.remove_leftovers()
        run.write_status("running", "pretraining")
        write_atomic(run / "config.yaml", dump_config(config))
        with log_file(run / "train.log", earlier), recorded_status(run):
            pretrainer = _start(run, config, data)
            with signals.deferred(), freed_memory_kept():
                _read_all(run, pretrainer, data, config.train.checkpoint_seconds, signals, on_report)
            return _write(run, data, pretrainer)


def _start(run: RunDirectory, config: Config, data: PreparedData) -> Pretrainer:
    """Builds the models, with their first weights or those of the newest checkpoint."""
    set_threads(config.train.threads or usable_cores())
    torch.manual_seed(config.seed)
    model = LanguageModels(
        len(data.tokenizer),
        embedding_dim=config.embedding.dim,
        hidden_size=config.model.hidden_size,
        cell=config.model.cell,
        bidirectional=config.model.bidirectional,
        embedding_dropout=config.pretrain.embedding_dropout,
        dropout=config.pretrain.dropout,
        recurrent_dropout=config.model.recurrent_dropout,
    ).to(choose_device(config.train.device))
    passages = Passages([data.corpora[name] for name in READ if name in data.corpora])
    pretrainer = Pretrainer(model, passages, config.pretrain, seed=config.seed)
    loaded = load_newest(run.checkpoints)
    if loaded is None:
        initialize_weights(model, config, data)
        with torch.no_grad():  # the first guess at any place: how often a token occurs
            model.bias.weight.copy_((pretrainer.counts / pretrainer.counts.sum()).log().clamp_min(-20.0).unsqueeze(1))
        return pretrainer
    tensors, numbers = loaded
    if numbers.get("identity") != _identity(data):
        raise DataError(f"{run.path}: the texts are not those that this began with; bring them back, or --overwrite")
    try:
        pretrainer.load_state(tensors, numbers["pretrainer"])
    except (LookupError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{run.checkpoints}: does not fit ({error}); start again with --overwrite") from error
    logger.info(f"resuming after step {pretrainer.progress.step:,}")
    return pretrainer


def _read_all(
    run: RunDirectory,
    pretrainer: Pretrainer,
    data: PreparedData,
    checkpoint_seconds: float,
    signals: StopSignals,
    on_report: Callable[[StepReport], None],
) -> None:
    """Reads all epochs to the end.

    Raises:
        StoppedError: a signal came; the state is saved.
    """
    progress = pretrainer.progress
    saved_at = time.monotonic()
    while not pretrainer.is_done:
        for report in pretrainer.read_batch():
            on_report(report)
        is_epoch = progress.batch == 0
        if is_epoch:
            said = ", ".join(f"{value:.1f}" for value in pretrainer.judge())
            rate = progress.num_tokens / max(progress.seconds, 1e-9)
            logger.info(
                f"epoch {progress.epoch}, step {progress.step:,}: held-out perplexity {said} "
                f"({' and '.join(NAMES[: len(progress.perplexities[-1])])}), {rate / 1000:.1f} ktok/s"
            )
        is_stopping = signals.received is not None
        if is_epoch or is_stopping or time.monotonic() - saved_at >= checkpoint_seconds:
            _save(run, pretrainer, data)
            saved_at = time.monotonic()
        if is_stopping:
            raise signals.error()


def _save(run: RunDirectory, pretrainer: Pretrainer, data: PreparedData) -> None:
    tensors, numbers = pretrainer.state()
    content = {"identity": _identity(data), "pretrainer": numbers}
    save_checkpoint(run.checkpoints, pretrainer.progress.step, tensors, content, roles=("last",))


def _identity(data: PreparedData) -> Row:
    return {"data_digest": data.dataset.digest, "text_digest": text_digest(data.tokenizer, [])}


def _write(run: RunDirectory, data: PreparedData, pretrainer: Pretrainer) -> Row:
    """Writes the encoder and what is to be said of it; its checkpoints are of no more use then."""
    progress, model = pretrainer.progress, pretrainer.model
    write_atomic(run / "tokenizer.json", data.tokenizer.to_json())
    names = {f"encoder.{name}": tensor for name, tensor in model.encoder.state_dict().items()}
    tensors = {"embedding.weight": model.embedding.weight, **names}
    digest = save_tensors(run / WEIGHTS, tensors, {"text_digest": text_digest(data.tokenizer, [])})
    last = dict(zip(NAMES, progress.perplexities[-1], strict=False))
    metrics = {
        "encoder/sha256": digest,
        **{f"held_out/{name}_perplexity": value for name, value in last.items()},
        "held_out/perplexities": progress.perplexities,
        "held_out/texts": len(pretrainer.held_out),
        "pretrain/texts": len(pretrainer.read),
        "pretrain/steps": progress.step,
        "pretrain/tokens": progress.num_tokens,
        "text/vocab_size": len(data.tokenizer),
        "data/origin": data.dataset.origin,
        "time/pretrain_seconds": progress.seconds,
        "time/tokens_per_second": progress.num_tokens / max(progress.seconds, 1e-9),
    }
    here = environment(str(pretrainer.device), torch.get_num_threads())
    run.write_json("environment.json", here | {"data_digest": data.dataset.digest})
    run.write_json("metrics.json", metrics)
    run.write_status("finished", "pretrained")
    for path in run.checkpoints.iterdir():
        path.unlink()
    run.checkpoints.rmdir()
    return metrics


def encoder_line(metrics: Row, folder: Path) -> str:
    """Returns what `pretrain` prints at its end."""
    last = zip(NAMES, metrics["held_out/perplexities"][-1], strict=False)
    said = ", ".join(f"{value:.1f} {name}" for name, value in last)
    return (
        f"perplexity of {metrics['held_out/texts']:,} texts that were held out: {said}; "
        f"{metrics['pretrain/tokens']:,} tokens at {metrics['time/tokens_per_second']:,.0f} per second\n"
        f"start from it with --set model.init_from={folder}"
    )


def write_vectors(config: Config, path: Path, *, overwrite: bool = False) -> int:
    """Writes the word vectors that `embedding.init: corpus` makes as a text file, and returns how many there are.

    Raises:
        ConfigError: the file is there already, or cannot be written.
        DataError: the texts cannot be read.
    """
    if path.exists() and not overwrite:
        raise ConfigError(f"{path}: is there already; add --overwrite to replace it")
    data = prepare(config, only=READ)
    corpora = [data.corpora[name] for name in READ if name in data.corpora]
    matrix = corpus_vectors(corpora, len(data.tokenizer), dim=config.embedding.dim, seed=config.seed)
    rows = list(zip(data.tokenizer.tokens, matrix, strict=True))[1:]  # <pad> has no vector
    with replacing(path) as file:
        file.write(f"{len(rows)} {config.embedding.dim}\n".encode())
        for token, vector in rows:
            file.write(f"{token} {' '.join(f'{value:.9g}' for value in vector.tolist())}\n".encode())
    return len(rows)
