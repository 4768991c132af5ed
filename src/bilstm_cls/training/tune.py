"""A study: many short runs of one config with some keys changed, compared on valid alone.

Optuna proposes the values and keeps what came of them in a journal in the study's folder. The test split is dropped as
soon as the data are prepared, so nothing can be chosen by it.
"""

import csv
import io
import json
import logging
import math
import shlex
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bilstm_cls.config import Config
from bilstm_cls.config_file import dump_config
from bilstm_cls.data.prepare import PreparedData, prepare, with_dim
from bilstm_cls.device import freed_memory_kept
from bilstm_cls.errors import CheckpointError, ConfigError, DataError, DivergedError, StoppedError, is_out_of_memory
from bilstm_cls.files import write_atomic
from bilstm_cls.ngrams import NgramCounts, NgramModel
from bilstm_cls.run_directory import LoadedModel, RunDirectory, build_model
from bilstm_cls.training.distributed import ALONE, size_by_torchrun
from bilstm_cls.training.loop import LOWER_IS_BETTER, EvaluationReport
from bilstm_cls.training.pretrain import make_encoder
from bilstm_cls.training.record import StopSignals, check_resumable, recorded, remembered_log
from bilstm_cls.training.run import FREE_KEYS
from bilstm_cls.training.search_space import Budget, Space, value_at
from bilstm_cls.training.session import Session
from bilstm_cls.training.teacher import ask_first, taught

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

WINNER, JOURNAL = "best.yaml", "study.journal"
STAGES = 10
"""Trials of unlike lengths are compared at the same tenth of their steps, where their learning rates have come as far
on the schedule."""
RANDOM_TRIALS, TRIALS_BEFORE_PRUNING, TRIALS_FOR_IMPORTANCES = 8, 4, 4
MAX_SKIPPED = 50
"""Proposals in a row that are not trained, after which the space is taken to be exhausted."""

FAILURES = (ConfigError, DataError, CheckpointError, DivergedError)
"""What ends a trial and not the study, as too little memory does."""


class _OutOfTimeError(BaseException):
    """The study's time is over within a trial."""


@dataclass
class Trial:
    """One proposal and what came of it: trial 0 is the config as it was given, where the space holds it.

    Attributes:
        state: finished, pruned (its scores fell behind), failed, or skipped (too large, or trained already).
        score: the best of `train.select_by`; of a pruned trial, the best until then.
        num_bytes: of weights, tokenizer and labels.
    """

    number: int
    values: dict[str, Any]
    state: str = "skipped"
    score: float | None = None
    num_bytes: int | None = None
    seconds: float = 0.0
    reason: str = ""


def tune(config: Config, space: Space, budget: Budget, *, resume: bool = False, overwrite: bool = False) -> "Study":
    """Looks for better values of some keys, and writes the winning config to `output_dir/NAME-tune/best.yaml`.

    Each trial trains in this process with the config's seed and is compared on valid alone; `train -c best.yaml` comes
    to the same score there. A trial that diverges, finds no memory or does not fit together has failed, and the study
    continues. A trial that was stopped or killed starts again when the study is resumed.

    `resume` continues an interrupted study, or a finished one with a larger budget.

    Raises:
        ConfigError: optuna is missing, the folder is taken, the study to resume was another one, or no trial finished.
        DataError: the data cannot be read, or are not those that the study began with.
        CheckpointError: the study's journal is damaged.
    """
    if size_by_torchrun() > 1:
        raise ConfigError("tune: trains each trial in one process; start it without torchrun")
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(f"tune needs optuna; run: pip install 'bilstm-cls[tune]' ({error})") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    run = RunDirectory(Path(config.output_dir) / f"{config.name}-tune")
    with StopSignals() as signals, run.locked(), remembered_log() as earlier:
        check_resumable(run, config, free=FREE_KEYS, resume=resume, overwrite=overwrite)
        study = Study(run, config, space, budget, signals)
        study.data_of(config)  # an earlier study is not deleted before it is clear that a new one can start
        with recorded(run, config, earlier, "tuning", overwrite=overwrite):
            study.search()
            if study.best is None and study.stopped is None:
                raise ConfigError(f"{run.path}: no trial was finished: {study.reason}; --resume with higher limits")
            exit_code = 0 if study.stopped is None else study.stopped.exit_code
            run.write_status("stopped" if study.stopped else "finished", study.reason, exit_code=exit_code)
        return study


class Study:
    """Where a study stands: its folder, its trials and why it ended.

    Attributes:
        proposals: all of them, in their order.
        importances: the shares of the keys in the variance of the scores; empty where there are too few trials.
        stopped: by which signal, if by one.
        reason: why it ended.
    """

    def __init__(self, run: RunDirectory, config: Config, space: Space, budget: Budget, signals: StopSignals) -> None:
        self.run, self.config, self.space, self.budget, self.signals = run, config, space, budget, signals
        self.proposals: list[Trial] = []
        self.importances: dict[str, float] = {}
        self.stopped: StoppedError | None = None
        self.reason = ""
        self.score_name = config.train.select_by
        self.is_lower_better = self.score_name.rpartition("/")[2] in LOWER_IS_BETTER
        self.ngrams: NgramModel | None = None
        self.prepared: dict[str, PreparedData] = {}

    @property
    def trials(self) -> list[Trial]:
        """The trials that were trained: finished ones first, best first."""

        def rank(trial: Trial) -> tuple[bool, float, int]:
            score = math.inf if trial.score is None else trial.score if self.is_lower_better else -trial.score
            return trial.state != "finished", score, trial.number

        return sorted((trial for trial in self.proposals if trial.state != "skipped"), key=rank)

    @property
    def best(self) -> Trial | None:
        """The finished trial that won."""
        return next((trial for trial in self.trials if trial.state == "finished"), None)

    def as_object(self) -> dict[str, Any]:
        """Returns what `tuning.json` holds and `tune --json` prints."""
        best, config = (asdict(self.best), str(self.run / WINNER)) if self.best else (None, None)
        study = {"score": self.score_name, "best": best, "config": config, "importances": self.importances}
        return study | {"trials": [asdict(trial) for trial in self.trials], "reason": self.reason}

    def as_table(self) -> str:
        """Returns what `tune` prints at its end: the winner, what mattered, and all trials."""
        minutes = sum(trial.seconds for trial in self.trials) / 60
        lines = [f"{len(self.trials)} trials in {minutes:.1f} minutes; {self.reason}"]
        if self.best is None:
            return lines[0]
        lines.append(f"best: trial {self.best.number}, {self.score_name} {self.best.score:.4f}")
        lines += [f"  {key}  {json.dumps(value)}" for key, value in self.best.values.items()]
        if self.importances:
            shares = ", ".join(f"{key} {share:.0%}" for key, share in self.importances.items())
            lines.append(f"what the scores differ by: {shares}")
        rows = [[str(cell) for cell in row] for row in self._rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        padded = (zip(row, widths, strict=True) for row in rows)
        lines += ["trials, best first:", *("  ".join(f"{cell:<{width}}" for cell, width in row) for row in padded)]
        return "\n".join([*lines, f"next: bilstm-cls train -c {shlex.quote(str(self.run / WINNER))}"])

    def _rows(self) -> list[list[Any]]:
        """Returns the rows of `trials.csv`, names first."""
        rows: list[list[Any]] = [["trial", "state", "score", "bytes", "seconds", *self.space, "reason"]]
        for t in self.trials:
            values = [json.dumps(value).strip('"') for value in t.values.values()]
            rows.append([t.number, t.state, t.score, t.num_bytes, round(t.seconds, 2), *values, t.reason])
        return rows

    def data_of(self, config: Config) -> PreparedData:
        """Returns the data of a trial, prepared once for each setting of what touches them, without test."""
        names = ["train", "valid", *(["unlabelled"] if config.reads_unlabelled else [])]
        key = json.dumps([config.text.model_dump(), config.embedding.init, config.model.init_from, names])
        if key not in self.prepared:
            data = prepare(config, only=names)
            splits = {name: split for name, split in data.dataset.splits.items() if name in names}
            self.prepared[key] = replace(data, dataset=replace(data.dataset, splits=splits))
        return self.prepared[key]

    def search(self) -> None:
        """Trains trials until the budget is spent, the space exhausted or a signal comes, and writes what was found."""
        study = self._opened()
        if self.config.model.ngrams is not None:  # which no searched key changes
            dataset = self.data_of(self.config).dataset
            train = dataset.splits["train"]
            self.ngrams = NgramModel.train(NgramCounts.of_split(train), train.label_ids, len(dataset.labels))
        left = math.inf if self.budget.seconds is None else self.budget.seconds
        self.deadline = time.monotonic() + left - sum(trial.seconds for trial in self.proposals)
        try:
            with self.signals.deferred():
                while not self._is_over():
                    self._try(study)
        except _OutOfTimeError:
            self.reason = "the time is over"
        except StoppedError as error:
            self.stopped, self.reason = error, str(error)
        finally:
            shutil.rmtree(self.run / "trial", ignore_errors=True)
        self._keep()
        self.importances = _importances(study)
        self.run.write_json("tuning.json", self.as_object())

    def _is_over(self) -> bool:
        if self.signals.received is not None:
            raise self.signals.error()
        self._check_time()
        if self.budget.trials is not None and len(self.trials) >= self.budget.trials:
            self.reason = f"{len(self.trials)} trials were trained"
            return True
        last = self.proposals[-MAX_SKIPPED:]
        self.reason = f"{len(last)} proposals in a row were too large or known already"
        return len(last) == MAX_SKIPPED and all(trial.state == "skipped" for trial in last)

    def _check_time(self, _: object = None) -> None:
        if time.monotonic() >= self.deadline:
            raise _OutOfTimeError

    def _opened(self) -> "optuna.Study":
        """Opens the journal, and proposes the trial that a stop or a kill ended, or at first the config as it is."""
        import optuna
        from optuna.storages.journal import JournalFileBackend

        path = self.run / JOURNAL
        (path.parent / f"{path.name}.lock").unlink(missing_ok=True)  # left by a kill: this process has the folder
        if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
            write_atomic(path, content[: content.rfind(b"\n") + 1])  # a kill in the middle of a line
        try:
            study = optuna.create_study(
                study_name=self.config.name,
                storage=optuna.storages.JournalStorage(JournalFileBackend(str(path))),
                pruner=optuna.pruners.MedianPruner(n_startup_trials=TRIALS_BEFORE_PRUNING),
                direction="minimize" if self.is_lower_better else "maximize",
                load_if_exists=True,
            )
            before, trials = study.user_attrs, study.get_trials()
        except (AssertionError, LookupError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: damaged ({error}); start again with --overwrite") from error
        space = {key: found.words for key, found in self.space.items()}
        marks = {"space": space, "data_digest": self.data_of(self.config).dataset.digest}
        if before and before["data_digest"] != marks["data_digest"]:
            raise DataError(f"{path}: the data are not those of this study; bring them back or add --overwrite")
        if before and before != marks:
            raise ConfigError(f"{path}: trials of another search would not compare; it searched {before['space']}")
        for key, mark in marks.items():
            study.set_user_attr(key, mark)
        self.proposals = [Trial(**trial.user_attrs["trial"]) for trial in trials if trial.user_attrs]
        first = {key: found.parameter(value_at(self.config, key)) for key, found in self.space.items()}
        if trials:
            first = {} if trials[-1].user_attrs else trials[-1].params
            for trial in trials:
                if trial.state.name == "RUNNING":
                    study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if first.keys() == self.space.keys() and None not in first.values():
            study.enqueue_trial(first)
        return study

    def _try(self, study: "optuna.Study") -> None:
        """Trains the next proposal, and keeps what came of it on the disk."""
        import optuna

        # Seeded by the number of trials, so that a study that was cut short comes to the same ones.
        seed = (self.config.seed + len(self.proposals)) % 2**32
        study.sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=seed)
        proposal = study.ask({key: found.distribution() for key, found in self.space.items()})
        values = {key: found.value(proposal.params[key]) for key, found in self.space.items()}
        trial, started = Trial(proposal.number, values), time.monotonic()
        try:
            if all(known.values != values for known in self.trials):
                self._train(proposal, trial)
        except Exception as error:
            if not isinstance(error, FAILURES) and not is_out_of_memory(error):
                raise
            trial.reason = "out of memory" if is_out_of_memory(error) else str(error).partition("\n")[0]
            trial.state = "failed"
        trial.seconds = time.monotonic() - started
        self.proposals.append(trial)
        proposal.set_user_attr("trial", asdict(trial))
        if trial.state == "finished":
            study.tell(proposal, trial.score)
        else:
            study.tell(
                proposal, state=getattr(optuna.trial.TrialState, "FAIL" if trial.state == "failed" else "PRUNED")
            )
        if trial.state != "skipped":
            outcome = trial.reason or f"{self.score_name} {trial.score:.4f}"
            logger.info(f"trial {trial.number} {trial.state} after {trial.seconds:.0f} s: {outcome}")
            self._keep()

    def _train(self, proposal: "optuna.Trial", trial: Trial) -> None:
        config = with_dim(self.config.replace(**trial.values))
        data = self.data_of(config)
        trial.num_bytes = model_bytes(config, data, self.ngrams)
        if self.budget.max_bytes is not None and trial.num_bytes > self.budget.max_bytes:
            return
        make_encoder(config, data, on_report=self._check_time)
        shutil.rmtree(self.run / "trial", ignore_errors=True)
        run = RunDirectory(self.run / "trial")
        ask_first(run, config, data)
        data, _ = taught(run, config, data, ALONE, self.signals, self._check_time)
        session = Session.start(run, config, data, ALONE)
        trainer = session.trainer
        trial.state = "finished"
        stage = 0
        with freed_memory_kept() as bound_memory:
            for report in session.reports(self.signals):
                bound_memory()
                trial.score = trainer.progress.best_value
                if isinstance(report, EvaluationReport):
                    while stage < STAGES * report.row["step"] / trainer.total_steps:
                        stage += 1
                        proposal.report(report.row[self.score_name], stage)
                    if stage < STAGES and proposal.should_prune():
                        trial.state = "pruned"
                        return
                if not trainer.is_out_of_epochs:
                    self._check_time()

    def _keep(self) -> None:
        """Writes the table and the winning config."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(self._rows())
        write_atomic(self.run / "trials.csv", text.getvalue())
        if (best := self.best) is not None:
            path, name = self.run / WINNER, f"{self.config.name}-best"[-80:].lstrip(".-")
            write_atomic(
                path,
                f"# The best of the trials in {self.run.path}: trial {best.number}.\n# bilstm-cls train -c {path}\n"
                f"# {self.score_name} {best.score:.4f}, which the test split has not confirmed yet.\n"
                f"{dump_config(self.config.replace(name=name, **best.values))}",
            )


def _importances(study: "optuna.Study") -> dict[str, float]:
    """Returns the share of each key in the variance of the scores (fANOVA, Hutter et al. 2014), largest first."""
    import optuna

    scores = [trial.value for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    if len(scores) < TRIALS_FOR_IMPORTANCES or len(set(scores)) < 2:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def model_bytes(config: Config, data: PreparedData, ngrams: NgramModel | None) -> int:
    """Returns the bytes of weights, tokenizer and labels, as `train` writes them."""
    model = build_model(config, len(data.tokenizer), len(data.dataset.labels))
    with tempfile.TemporaryDirectory(prefix="bilstm-cls-") as folder:
        run = RunDirectory(Path(folder))
        run.save_model(LoadedModel(model, data.tokenizer, data.dataset.labels, config, ngrams))
        return sum(path.stat().st_size for path in run.path.iterdir() if path.name != "config.yaml")
