"""An encoder from texts whose labels are not read, by language models.

As in the training loop, all randomness is a function of (seed, step) or (seed, epoch), so a position, the tensors and
the hidden states between two chunks of a text are all there is to save.
"""

import logging
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilstm_cls.checkpoint import load_newest, save_checkpoint, save_tensors
from bilstm_cls.config import Config, PretrainConfig
from bilstm_cls.data.batches import Chunk, Indices, LanguageModelTexts, cut_by_tokens, number_of_chunks
from bilstm_cls.data.prepare import WEIGHTS, PreparedData, encoder_folder, prepare, start_folder, with_dim
from bilstm_cls.device import Precision, allow_tf32, choose_device, freed_memory_kept, set_threads, watch_load
from bilstm_cls.errors import ConfigError, DataError
from bilstm_cls.files import write_atomic
from bilstm_cls.model.language_model import LanguageModels, UnigramSampler
from bilstm_cls.model.recurrent import State
from bilstm_cls.run_directory import RunDirectory, environment, text_digest
from bilstm_cls.training import optimizer as optim
from bilstm_cls.training.loop import MAX_LOSS, PROGRESS, Progress, Row, StepReport, diverged, step_seed
from bilstm_cls.training.record import StopSignals, check_resumable, is_finished, recorded, remembered_log
from bilstm_cls.training.session import fitting, identity_of, initialize_weights

logger = logging.getLogger(__name__)

READ = ("train", "unlabelled")  # splits, none that anything is evaluated on
FREE_KEYS = ("name", "output_dir", "train")  # which may change when pretraining is resumed
NAMES = "forward", "backward"
HELD_OUT_FRACTION, MAX_HELD_OUT, HELD_OUT_TOKENS = 0.01, 500, 8192
WARMUP = 0.1
WHOLE = 10**9  # tokens of a text: all
WANTED_TOKENS = 18e6
"""Read in all passes. On 4.5 million of IMDB perplexity is 167 after two passes, 145 after four and 137 after eight."""
MAX_EXPONENT = 700.0


class Pretrainer:
    """Language models in training: reads one chunk, evaluates, and saves and restores its whole state."""

    def __init__(
        self, model: LanguageModels, texts: LanguageModelTexts, config: PretrainConfig, *, seed: int, precision: str
    ) -> None:
        self.model, self.texts, self.config, self.seed = model, texts, config, seed
        self.progress = Progress()
        self.device = model.embedding.weight.device
        self.precision = Precision.named(precision, self.device, model.encoder)
        self.lengths = texts.lengths
        usable = np.flatnonzero(self.lengths > 1)
        if len(usable) < 2:
            raise DataError("train and unlabelled hold no two texts of two tokens, so there is nothing to predict")
        order = np.random.Generator(np.random.PCG64([seed, 0, 1])).permutation(usable)
        num_held_out = min(math.ceil(HELD_OUT_FRACTION * len(order)), MAX_HELD_OUT)
        self.held_out, self.read = np.sort(order[:num_held_out]), np.sort(order[num_held_out:])
        self.counts = torch.from_numpy(texts.counts(model.embedding.num_embeddings)).to(self.device)  # [V]
        self.sampler = UnigramSampler.of(self.counts, config.num_samples)
        self.optimizers = optim.build_optimizers(model, name="adamw", weight_decay=0.0, momentum=0.0)
        self.batches = self._batches_of(0)
        longest = [int(self.lengths[batch[-1]]) for batch in self.batches]
        self.epochs = config.epochs or round(min(max(WANTED_TOKENS / self.lengths[self.read].sum(), 2), 8))
        self.total_steps = self.epochs * sum(number_of_chunks(length, config.bptt) for length in longest)
        self._open_batch()

    def _batches_of(self, epoch: int) -> list[Indices]:
        size, bptt = self.config.batch_size, self.config.bptt
        return self.texts.batches(self.read, batch_size=size, bptt=bptt, seed=self.seed, epoch=epoch)

    def _open_batch(self) -> None:
        self.chunks: list[Chunk] = []  # read when the first step needs them
        self.states: list[State | None] = [None] * self.model.encoder.num_directions  # each part [B, H]

    def step(self) -> StepReport:
        """Reads the next chunk of a batch of texts, and makes an update.

        Its loss is divided by the predictions in the first chunk, so that one of few texts moves the weights little.
        """
        started = time.monotonic()
        progress = self.progress
        if not self.chunks:
            self.chunks = list(self.texts.chunks(self.batches[progress.batch], self.config.bptt))
        chunk = self.chunks[progress.chunk]
        self.states = [state and tuple(part[chunk.num_ended :] for part in state) for state in self.states]
        rate = self.learning_rate(progress.step)
        loss, norm = self._update(chunk, self.chunks[0].is_predicted.size, rate)
        num_texts, num_tokens = chunk.is_predicted.shape[1], int(chunk.is_predicted.sum())
        progress.step += 1
        progress.num_tokens += num_tokens
        epoch = progress.epoch + 1
        report = StepReport(progress.step, self.total_steps, epoch, loss, num_texts, num_tokens, rate, norm)
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
        options: Any = {"peak": self.config.learning_rate, "schedule": "one-cycle", "warmup": WARMUP}
        return optim.learning_rate_at(step, total_steps=self.total_steps, **options)

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
        norm = optim.clip_gradients(self.model.parameters(), self.config.max_grad_norm)
        if not loss <= MAX_LOSS or not math.isfinite(norm):
            raise diverged("pretrain", self.progress.step + 1, rate, f"loss {loss:g}, gradient norm {norm:g}")
        optim.update(self.optimizers, rate)
        self.states = list(states)
        return loss, norm

    def _tensors(self, chunk: Chunk) -> tuple[list[Tensor], Tensor]:
        """Returns token ids `[T + 1, B]` per direction, and which of `[T, B]` are predicted."""
        arrays = (chunk.is_predicted, chunk.forward, chunk.backward)[: 1 + self.model.encoder.num_directions]
        is_predicted, *tokens = (torch.from_numpy(array).to(self.device) for array in arrays)
        return tokens, is_predicted

    def evaluate(self) -> dict[str, float]:
        """Records and returns the perplexities of the texts that are held out, over the whole vocabulary."""
        self.model.eval()
        order = self.held_out[np.argsort(self.lengths[self.held_out], kind="stable")]
        sums, num_predicted = np.zeros(self.model.encoder.num_directions), 0
        for batch in cut_by_tokens(order, self.lengths, HELD_OUT_TOKENS):
            for chunk in self.texts.chunks(batch, WHOLE):
                with allow_tf32(False):
                    sums += self.model.log_likelihoods(*self._tensors(chunk))
                num_predicted += int(chunk.is_predicted.sum())
        losses = -sums / num_predicted
        step = self.progress.step
        if not (losses < MAX_EXPONENT).all():
            raise diverged("pretrain", step, self.learning_rate(step - 1), f"held-out losses {losses.tolist()}")
        perplexities = dict(zip(NAMES, np.exp(losses).tolist(), strict=False))
        self.progress.history.append(perplexities)
        return perplexities

    def state(self) -> tuple[dict[str, Tensor], Row]:
        """As in `Trainer`, with the hidden states after the last chunk."""
        tensors, numbers = optim.optimizer_state(self.optimizers)
        tensors |= {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for direction, state in enumerate(self.states):
            tensors |= {f"state.{direction}.{i}": part for i, part in enumerate(state or ())}
        return tensors, {"progress": asdict(self.progress), "optimizers": numbers}

    def load_state(self, tensors: dict[str, Tensor], numbers: Row) -> None:
        self.model.load_state_dict(optim.strip_prefix(tensors, "model."))
        optim.load_optimizer_state(self.optimizers, tensors, numbers["optimizers"])
        self.progress = PROGRESS.validate_python(numbers["progress"])
        self.batches = self._batches_of(self.progress.epoch)
        self._open_batch()
        if self.progress.chunk:
            for direction in range(len(self.states)):
                parts = optim.strip_prefix(tensors, f"state.{direction}.")
                self.states[direction] = tuple(parts[str(i)].to(self.device) for i in range(len(parts)))


def pretrain(
    config: Config, folder: Path, *, data: PreparedData | None = None, resume: bool = False, overwrite: bool = False,
    wait: bool = False, on_report: Callable[[StepReport], object] = lambda report: None,
) -> Row:  # fmt: skip
    """Trains language models on the texts of train and unlabelled, writes an encoder, and returns its `metrics.json`.

    Texts are read whole, whatever `text.max_length` is; one in a hundred is held out for evaluation. Where the config's
    `model.init_from` is another folder than this one, this starts from it.

    Args:
        config: of the encoder.
        folder: where to write.
        data: the texts, where they are prepared already.
        wait: for another process that writes there, instead of an error.

    The others, and errors, are those of `train`; several layers are a `ConfigError`.
    """
    if config.model.num_layers > 1:
        raise ConfigError("model.num_layers: a second layer would see the tokens that it has to predict; set it to 1")
    if (start := start_folder(config)) is not None and start.resolve() == folder.resolve():
        config = config.replace(**{"model.init_from": None})
    # An encoder is made in the same way for a run that pretrains it itself, and for one that finds it in its folder.
    config = with_dim(config.replace(**{"pretrain.enabled": False}))
    run = RunDirectory(folder)
    with StopSignals() as signals, run.locked(wait=wait), remembered_log() as earlier:
        check_resumable(run, config, free=FREE_KEYS, resume=resume, overwrite=overwrite)
        if resume and is_finished(run, WEIGHTS):
            logger.info(f"{folder} is finished already; --overwrite makes it again")
            return run.read_object("metrics.json")
        choose_device(config.train.device)
        data = data or prepare(config, only=READ)
        with recorded(run, config, earlier, "pretraining", overwrite):
            pretrainer = _start(run, config, data)
            with signals.deferred():
                _train(run, pretrainer, config.train.checkpoint_seconds, signals, data, on_report)
            return _write(run, data, pretrainer)


def make_encoder(config: Config, data: PreparedData, *, on_report: Callable[[StepReport], object]) -> None:
    """Pretrains the encoder of `pretrain.enabled`, or waits for a process that does, unless it is in the cache."""
    if config.pretrain.enabled:
        folder = encoder_folder(config, data.dataset.digest)
        if not (folder / WEIGHTS).exists():
            logger.info(f"pretraining an encoder in {folder}")
            pretrain(config, folder, data=data, resume=True, wait=True, on_report=on_report)


def _start(run: RunDirectory, config: Config, data: PreparedData) -> Pretrainer:
    """Builds the models, with their first weights or those of the newest checkpoint."""
    set_threads(config.train.threads)
    torch.manual_seed(config.seed)
    sizes = config.model
    model = LanguageModels(
        len(data.tokenizer), embedding_dim=config.embedding.width, hidden_size=sizes.hidden_size, cell=sizes.cell,
        bidirectional=sizes.bidirectional, embedding_dropout=config.pretrain.embedding_dropout,
        dropout=config.pretrain.dropout, recurrent_dropout=sizes.recurrent_dropout,
    ).to(choose_device(config.train.device))  # fmt: skip
    texts = LanguageModelTexts([data.corpora[name] for name in READ if name in data.corpora])
    pretrainer = Pretrainer(model, texts, config.pretrain, seed=config.seed, precision=config.train.precision)
    loaded = load_newest(run.checkpoints)
    if loaded is None:
        initialize_weights(model, config, data)
        model.set_unigram_bias(pretrainer.counts)
        return pretrainer
    tensors, numbers = loaded
    if numbers.get("identity") != identity_of(data, []):
        raise DataError(f"{run.path}: the texts are not those that this began with; restore them, or --overwrite")
    with fitting(run.checkpoints):
        pretrainer.load_state(tensors, numbers["pretrainer"])
    logger.info(f"resuming after step {pretrainer.progress.step:,}")
    return pretrainer


def _train(
    run: RunDirectory, pretrainer: Pretrainer, checkpoint_seconds: float, signals: StopSignals, data: PreparedData,
    on_report: Callable[[StepReport], object],
) -> None:  # fmt: skip
    """Reads all epochs to the end, or saves and raises a StoppedError."""
    progress, saved_at = pretrainer.progress, time.monotonic()
    loads = watch_load(1, torch.get_num_threads())
    with freed_memory_kept() as bound_memory:
        while len(progress.history) < pretrainer.epochs:
            is_evaluated = len(progress.history) < progress.epoch
            if is_evaluated:
                found = ", ".join(f"{value:.1f} {name}" for name, value in pretrainer.evaluate().items())
                logger.info(f"epoch {progress.epoch}, step {progress.step:,}: held-out perplexity {found}")
            else:
                on_report(pretrainer.step())
                bound_memory()
                if warning := next(loads):
                    logger.warning(warning)
            is_stopping = signals.received is not None
            if is_evaluated or is_stopping or time.monotonic() - saved_at >= checkpoint_seconds:
                tensors, numbers = pretrainer.state()
                content = {"identity": identity_of(data, []), "pretrainer": numbers}
                save_checkpoint(run.checkpoints, progress.step, tensors, content, roles=("last",))
                saved_at = time.monotonic()
            if is_stopping:
                raise signals.error()


def _write(run: RunDirectory, data: PreparedData, pretrainer: Pretrainer) -> Row:
    """Writes the encoder and its metrics, and deletes the checkpoints, which are of no more use."""
    progress, model = pretrainer.progress, pretrainer.model
    write_atomic(run / "tokenizer.json", data.tokenizer.to_json())
    tensors = {f"encoder.{name}": tensor for name, tensor in model.encoder.state_dict().items()}
    tensors["embedding.weight"] = model.embedding.weight
    digest = save_tensors(run / WEIGHTS, tensors, {"text_digest": text_digest(data.tokenizer, [])})
    metrics = {
        "encoder/sha256": digest,
        **{f"held_out/{name}_perplexity": value for name, value in progress.history[-1].items()},
        "held_out/perplexities": [list(row.values()) for row in progress.history],
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
    shutil.rmtree(run.checkpoints)
    return metrics


def encoder_line(metrics: Row, folder: Path) -> str:
    """Returns what `pretrain` prints at its end."""
    values = ", ".join(f"{v:.1f} {n}" for n, v in zip(NAMES, metrics["held_out/perplexities"][-1], strict=False))
    found = f"perplexity of {metrics['held_out/texts']:,} texts that were held out: {values}"
    return f"{found}\nstart from it with --set model.init_from={folder}"
