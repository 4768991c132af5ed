"""What one process holds while a run trains: the model with its first weights, the trainer, and its checkpoints."""

import contextlib
import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bilstm_cls.checkpoint import load_best, load_newest, save_checkpoint
from bilstm_cls.classifier import Task, predict_logits
from bilstm_cls.config import Config
from bilstm_cls.data.prepare import PreparedData, class_weights, encoder_folder
from bilstm_cls.data.vectors import joined_vectors
from bilstm_cls.device import choose_device, freed_memory_kept, set_threads
from bilstm_cls.errors import CheckpointError, DataError
from bilstm_cls.evaluation.metrics import compute_metrics
from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.model.language_model import LanguageModels
from bilstm_cls.run_directory import RunDirectory, build_model, environment, load_encoder, text_digest
from bilstm_cls.training.distributed import Group, processes_here
from bilstm_cls.training.loop import EvaluationReport, Row, StepReport, Trainer, training
from bilstm_cls.training.record import StopSignals

logger = logging.getLogger(__name__)

Report = StepReport | EvaluationReport
OnReport = Callable[[Report], object]


@contextlib.contextmanager
def fitting(checkpoints: Path) -> Iterator[None]:
    """Turns what loading a state of another version, or a forged one, raises into a CheckpointError."""
    try:
        yield
    except (LookupError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoints}: does not fit this version or config ({error}); start again with --overwrite"
        ) from error


def identity_of(data: PreparedData, labels: list[str]) -> dict[str, Any]:
    """Returns the digests that what is resumed or read must have been written with."""
    return {"data_digest": data.dataset.digest, "text_digest": text_digest(data.tokenizer, labels)}


@dataclass
class Session:
    """A model in training together with its place on disk."""

    run: RunDirectory
    data: PreparedData
    trainer: Trainer
    facts: Row  # for `metrics.json`, how the run started and was resumed
    identity: Row  # what a checkpoint must fit to be resumed from

    @classmethod
    def start(cls, run: RunDirectory, config: Config, data: PreparedData, group: Group) -> "Session":
        """Builds the model and continues from the newest checkpoint, the same one in all processes of the group.

        In a group of several, process 0 writes the first checkpoint for the others to start from.

        Raises:
            CheckpointError: the checkpoints are damaged, or another process does not see them.
            DataError: the data are not those of the run to resume, or word vectors cannot be read.
        """
        device = group.device if group.size > 1 else choose_device(config.train.device)
        threads = set_threads(config.train.threads, processes_here(group.size))
        labels = data.dataset.labels
        torch.manual_seed(config.seed)
        model = build_model(config, len(data.tokenizer), len(labels)).to(device)
        weights = class_weights(config.train.class_weights, data.dataset.splits["train"].label_ids, labels)
        trainer = Trainer(
            model, data.corpora["train"], config.train, seed=config.seed, class_weights=weights,
            unlabelled=data.corpora.get("unlabelled"), group=group,
        )  # fmt: skip
        soft_labels = trainer.unlabelled.soft_labels
        identity = identity_of(data, labels) | {
            "teacher_digest": None if soft_labels is None else hashlib.sha256(soft_labels.tobytes()).hexdigest(),
            "fingerprint": {
                "torch": torch.__version__, "device": device.type, "precision": str(trainer.precision),
                "threads": threads, "processes": group.size,
            },
        }  # fmt: skip
        session = cls(run, data, trainer, {}, identity)
        if group.rank == 0 and not session.resume():
            session.facts = initialize_weights(model, config, data)
            if group.size > 1:
                session.save("last")
        group.wait()
        if group.rank > 0 and not session.resume():
            raise CheckpointError(f"{run.checkpoints}: process {group.rank} finds no checkpoint there; is it shared?")
        group.wait()
        return session

    def environment(self) -> Row:
        """Returns the content of `environment.json`."""
        here = self.identity["fingerprint"]
        found = environment(str(self.trainer.device), here["threads"])
        return found | {"data_digest": self.identity["data_digest"]} | {k: here[k] for k in ("processes", "precision")}

    def resume(self) -> bool:
        """Loads the newest intact checkpoint into the trainer, and returns whether there was one."""
        loaded = load_newest(self.run.checkpoints)
        if loaded is None:
            return False
        tensors, numbers = loaded
        for key in ("data_digest", "text_digest", "teacher_digest"):
            if numbers.get(key) != self.identity[key]:
                what = key.partition("_")[0]
                raise DataError(f"{self.run.path}: the data are not those this run started with ({what} differs)")
        with fitting(self.run.checkpoints):
            self.trainer.load_state(tensors, numbers["trainer"])
            self.facts, before = numbers["facts"], numbers["fingerprint"]
        here = self.identity["fingerprint"]
        changes = [f"{key} {before.get(key)} -> {now}" for key, now in here.items() if before.get(key) != now]
        if changes:
            logger.warning(f"resuming elsewhere ({', '.join(changes)}): the result may differ in the last bits")
            self.facts["run/bitwise"] = False
        step, best_step = self.trainer.progress.step, self.trainer.progress.best_step
        logger.info(f"resuming after step {step:,}")
        if step > best_step > 0:
            load_best(self.run.checkpoints, best_step)  # the end of the run needs it: better to know now
        elif best_step and self.trainer.group.rank == 0:
            self.save("best", "last")  # where one of them is missing or damaged, the other replaces it
        return True

    def save(self, *roles: str) -> None:
        """Writes a checkpoint, or raises a DivergedError where a weight is not finite."""
        tensors, numbers = self.trainer.state()
        step = self.trainer.progress.step
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
            raise self.trainer.diverged(step - 1, "a weight is not finite")
        content = {**self.identity, "facts": self.facts, "trainer": numbers}
        save_checkpoint(self.run.checkpoints, step, tensors, content, roles=roles)

    def learn(self, signals: StopSignals, on_report: OnReport) -> None:
        """Trains to the end, where `reports` raises nothing."""
        with signals.deferred(), freed_memory_kept() as bound_memory:
            for report in self.reports(signals):
                on_report(report)
                bound_memory()

    def reports(self, signals: StopSignals) -> Iterator[Report]:
        """Trains to the end and yields what happens; process 0 keeps checkpoints and the history up to date.

        Raises:
            StoppedError: one of the processes was asked to stop; the state is saved.
        """
        trainer = self.trainer
        is_first = trainer.group.rank == 0
        if is_first:
            self.run.write_history(trainer.progress.history)
        saved_at = time.monotonic()
        for report in training(trainer, self.evaluate):
            yield report
            is_stopping = trainer.group.any(signals.received is not None)
            evaluation = report if isinstance(report, EvaluationReport) else None
            is_due = time.monotonic() - saved_at >= trainer.config.checkpoint_seconds
            if is_first and (evaluation or is_due or is_stopping):
                if evaluation:
                    self.run.write_history(trainer.progress.history)
                    self._log(evaluation)
                self.save(*(["best"] if evaluation and evaluation.is_best else []), "last")
                saved_at = time.monotonic()
            if is_stopping:
                raise signals.error()

    def evaluate(self) -> Row:
        """Returns the metrics of the present (averaged) weights on the valid split; all processes share its texts."""
        trainer, corpus = self.trainer, self.data.corpora["valid"]
        group = trainer.group
        assert corpus.label_ids is not None
        with trainer.averaged():
            part = predict_logits(trainer.model, corpus, rank=group.rank, size=group.size)  # [N, C]
        logits = group.sum_array(part)
        if not np.isfinite(logits).all():
            raise trainer.diverged(trainer.progress.step - 1, "the logits of valid are not finite")
        task, labels = Task.of(corpus.label_ids), self.data.dataset.labels
        return compute_metrics(task.probabilities(logits), corpus.label_ids, labels, task=task).scalars("valid")

    def load_best_weights(self) -> BiLSTMClassifier:
        """Returns the model with the weights of the best evaluation, or raises a CheckpointError."""
        self.trainer.load_weights(load_best(self.run.checkpoints, self.trainer.progress.best_step))
        return self.trainer.model

    def _log(self, report: EvaluationReport) -> None:
        row, selected = report.row, self.trainer.config.select_by
        logger.info(
            f"epoch {row['epoch']:.4g}, step {row['step']:,}: train/loss {row['train/loss']:.4f}, "
            f"valid/log_loss {row['valid/log_loss']:.4f}, {selected} {row[selected]:.4f}{' (best)' * report.is_best}"
        )


def initialize_weights(model: BiLSTMClassifier | LanguageModels, config: Config, data: PreparedData) -> Row:
    """Puts the first word vectors, or a whole encoder, into the model and returns facts about them.

    Raises:
        CheckpointError: a file of the encoder is missing, damaged, or does not fit the others.
        DataError: the vectors cannot be read.
    """
    if config.pretrain.enabled or config.model.init_from is not None:
        return load_encoder(model, encoder_folder(config, data.dataset.digest), data.dataset.labels)
    if config.embedding.init == "random":
        return {}
    corpora = [data.corpora[name] for name in ("train", "unlabelled") if name in data.corpora]
    matrix, coverage = joined_vectors(config.embedding, data.tokenizer.tokens, corpora, seed=config.seed)
    model.set_embedding(torch.from_numpy(matrix))
    return {} if coverage is None else {"embedding/coverage": coverage}
