"""An encoder from texts whose labels are not read, by language models; or word vectors alone."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bilstm_cls.checkpoint import load_newest, save_checkpoint, save_tensors
from bilstm_cls.config import Config
from bilstm_cls.config_file import dump_config
from bilstm_cls.data.passages import LanguageModelTexts
from bilstm_cls.data.prepare import WEIGHTS, PreparedData, encoder_folder, prepare
from bilstm_cls.data.vectors import corpus_vectors
from bilstm_cls.device import choose_device, freed_memory_kept, set_threads, threads_of_each
from bilstm_cls.errors import CheckpointError, ConfigError, DataError
from bilstm_cls.files import replacing, write_atomic
from bilstm_cls.model.language_model import LanguageModels
from bilstm_cls.run_directory import RunDirectory, environment, text_digest
from bilstm_cls.training.loop import Row, StepReport
from bilstm_cls.training.pretrainer import Pretrainer, Progress
from bilstm_cls.training.record import (
    StopSignals,
    check_resumable,
    is_finished,
    log_file,
    recorded_status,
    remembered_log,
)
from bilstm_cls.training.session import initialize_weights

logger = logging.getLogger(__name__)

READ = ("train", "unlabelled")
"""The splits that are read: none that anything is evaluated on."""

FREE_KEYS = ("name", "output_dir", "train")
"""What may change when pretraining is resumed."""

NAMES = ("forward", "backward")


def pretrain(
    config: Config,
    folder: Path,
    *,
    data: PreparedData | None = None,
    resume: bool = False,
    overwrite: bool = False,
    wait: bool = False,
    on_report: Callable[[StepReport], None] = lambda report: None,
) -> Row:
    """Trains language models on the texts of train and unlabelled, and writes an encoder for `model.init_from`.

    Texts are read whole, whatever `text.max_length` is. One in a hundred is held out for evaluation; neither valid nor
    test is read.

    Args:
        config: its sizes are those of the encoder. Where its `model.init_from` is the folder to write, that is what
            this makes; where it is another encoder, this starts from it.
        folder: where to write.
        data: the texts, where they are prepared already.
        resume: continue from the last checkpoint, to the same bits.
        overwrite: delete an earlier encoder or run there first.
        wait: for another process that writes there, instead of an error.
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
    if config.train.precision == "fp16":
        raise ConfigError("train.precision: 'fp16' is for classifiers; pretrain in 'auto', 'tf32', 'bf16' or 'fp32'")
    # An encoder is made in the same way for a run that pretrains it itself, and for one that finds it in its folder.
    config = config.replace(**{"pretrain.enabled": False})
    if config.model.init_from is not None and Path(config.model.init_from).resolve() == folder.resolve():
        config = config.replace(**{"model.init_from": None})
    run = RunDirectory(folder)
    with StopSignals() as signals, run.locked(wait=wait), remembered_log() as earlier:
        check_resumable(run, config, free=FREE_KEYS, resume=resume, overwrite=overwrite)
        if resume and is_finished(run, WEIGHTS):
            logger.info(f"{folder} is finished already; --overwrite makes it again")
            return run.read_object("metrics.json")
        choose_device(config.train.device)
        data = data or prepare(config, only=READ)
        if overwrite:
            run.clear()
        run.remove_leftovers()
        run.write_status("running", "pretraining")
        write_atomic(run / "config.yaml", dump_config(config))
        with log_file(run / "train.log", earlier), recorded_status(run):
            pretrainer = _start(run, config, data)
            with signals.deferred(), freed_memory_kept() as bound_memory:

                def take(report: StepReport) -> None:
                    on_report(report)
                    bound_memory()

                _train(run, pretrainer, data, config.train.checkpoint_seconds, signals, take)
            return _write(run, data, pretrainer)


def make_encoder(config: Config, data: PreparedData, *, on_report: Callable[[StepReport], None]) -> None:
    """Pretrains the encoder of `pretrain.enabled`, or continues with it, unless it is in the cache.

    Where another process pretrains the same one, this waits for it.

    Args:
        config: of the run that starts from it.
        data: the texts of that run, of which the encoder reads train and unlabelled.
        on_report: called after every step.

    Raises:
        ConfigError, DataError, CheckpointError, DivergedError, ResourceError, StoppedError: as `pretrain` does.
    """
    if not config.pretrain.enabled:
        return
    folder = encoder_folder(config, data.dataset.digest)
    if (folder / WEIGHTS).exists():
        return
    if config.train.precision == "fp16":  # language models are not for it, and 'auto' is as fast
        config = config.replace(**{"train.precision": "auto"})
    logger.info(f"pretraining an encoder in {folder}")
    pretrain(config, folder, data=data, resume=True, wait=True, on_report=on_report)


def _start(run: RunDirectory, config: Config, data: PreparedData) -> Pretrainer:
    """Builds the models, with their first weights or those of the newest checkpoint."""
    set_threads(config.train.threads or threads_of_each())
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
    texts = LanguageModelTexts([data.corpora[name] for name in READ if name in data.corpora])
    pretrainer = Pretrainer(model, texts, config.pretrain, seed=config.seed, precision=config.train.precision)
    loaded = load_newest(run.checkpoints)
    if loaded is None:
        initialize_weights(model, config, data)
        model.set_unigram_bias(pretrainer.counts)
        return pretrainer
    tensors, numbers = loaded
    if numbers.get("identity") != _identity(data):
        raise DataError(f"{run.path}: the texts are not those that this began with; restore them, or --overwrite")
    try:
        pretrainer.load_state(tensors, numbers["pretrainer"])
    except (LookupError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{run.checkpoints}: does not fit ({error}); start again with --overwrite") from error
    logger.info(f"resuming after step {pretrainer.progress.step:,}")
    return pretrainer


def _train(
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
    saved_at = time.monotonic()
    while not pretrainer.is_finished or pretrainer.is_evaluation_due:
        is_evaluated = False
        if pretrainer.is_evaluation_due:
            is_evaluated = pretrainer.evaluate(lambda: signals.received is not None) is not None
        else:
            on_report(pretrainer.step())
        if is_evaluated:
            _log(pretrainer.progress)
        is_stopping = signals.received is not None
        if is_evaluated or is_stopping or time.monotonic() - saved_at >= checkpoint_seconds:
            tensors, numbers = pretrainer.state()
            content = {"identity": _identity(data), "pretrainer": numbers}
            save_checkpoint(run.checkpoints, pretrainer.progress.step, tensors, content, roles=("last",))
            saved_at = time.monotonic()
        if is_stopping:
            raise signals.error()


def _log(progress: Progress) -> None:
    values = progress.perplexities[-1]
    rate = progress.num_tokens / max(progress.seconds, 1e-9)
    logger.info(
        f"epoch {progress.epoch}, step {progress.step:,}: held-out perplexity "
        f"{', '.join(f'{value:.1f}' for value in values)} ({' and '.join(NAMES[: len(values)])}), "
        f"{rate / 1000:.1f} ktok/s"
    )


def _identity(data: PreparedData) -> Row:
    return {"data_digest": data.dataset.digest, "text_digest": text_digest(data.tokenizer, [])}


def _write(run: RunDirectory, data: PreparedData, pretrainer: Pretrainer) -> Row:
    """Writes the encoder and its metrics, and deletes the checkpoints, which are of no more use."""
    progress, model = pretrainer.progress, pretrainer.model
    write_atomic(run / "tokenizer.json", data.tokenizer.to_json())
    tensors = {f"encoder.{name}": tensor for name, tensor in model.encoder.state_dict().items()}
    tensors["embedding.weight"] = model.embedding.weight
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
    values = ", ".join(f"{value:.1f} {name}" for name, value in last)
    return (
        f"perplexity of {metrics['held_out/texts']:,} texts that were held out: {values}; "
        f"{metrics['pretrain/tokens']:,} tokens at {metrics['time/tokens_per_second']:,.0f} per second\n"
        f"start from it with --set model.init_from={folder}"
    )


def write_vectors(config: Config, path: Path, *, overwrite: bool = False) -> int:
    """Writes the word vectors that `embedding.init: ppmi` makes as a text file, and returns how many there are.

    Raises:
        ConfigError: the file is there already, or cannot be written.
        DataError: the texts cannot be read.
    """
    if path.exists() and not overwrite:
        raise ConfigError(f"{path}: is there already; add --overwrite to replace it")
    data = prepare(config, only=READ)
    corpora = [data.corpora[name] for name in READ if name in data.corpora]
    matrix = corpus_vectors(corpora, len(data.tokenizer), dim=config.embedding.dim, seed=config.seed)  # [V, E]
    rows = list(zip(data.tokenizer.tokens, matrix, strict=True))[1:]  # <pad> has no vector
    with replacing(path) as file:
        file.write(f"{len(rows)} {config.embedding.dim}\n".encode())
        for token, vector in rows:
            file.write(f"{token} {' '.join(f'{value:.9g}' for value in vector.tolist())}\n".encode())
    return len(rows)
