"""A study: many short runs of one config with some keys changed, compared on valid alone.

Optuna proposes the values and remembers what came of them, in its own journal in the study's folder. The test split is
dropped as soon as the data are prepared: nothing in here can be judged by it.
"""

import contextlib
import gc
import json
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bilstm_cls.config import Config
from bilstm_cls.config_file import dump_config, with_overrides
from bilstm_cls.data.prepare import PreparedData, prepare
from bilstm_cls.device import freed_memory_kept
from bilstm_cls.errors import CheckpointError, ConfigError, DataError, DivergedError, StoppedError, is_out_of_memory
from bilstm_cls.files import write_atomic
from bilstm_cls.ngrams import NgramModel
from bilstm_cls.run_directory import LoadedModel, RunDirectory, build_model
from bilstm_cls.training.budget import Budget
from bilstm_cls.training.distributed import ALONE, is_started_by_torchrun
from bilstm_cls.training.loop import LOWER_IS_BETTER, EvaluationReport, Row
from bilstm_cls.training.pretrain import make_encoder
from bilstm_cls.training.record import (
    StopSignals,
    check_resumable,
    log_file,
    recorded_status,
    remembered_log,
)
from bilstm_cls.training.run import FREE_KEYS
from bilstm_cls.training.search_space import Choices, Range, Space, value_at
from bilstm_cls.training.session import Session
from bilstm_cls.training.tune_result import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    PRUNED,
    REPEATED,
    TOO_LARGE,
    TRAINED,
    WINNER,
    Trial,
    TuneResult,
    as_csv,
    shown_score,
)

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

JOURNAL = "study.journal"
STAGES = 10
"""Trials of unlike lengths are compared at the same tenth of their steps, where their learning rates have come as far
on the schedule."""

TRIALS_BEFORE_PRUNING = 4
RANDOM_TRIALS = 8
MAX_IN_A_ROW = 50
"""Proposals that cannot be trained, one after another, after which the space is taken to be exhausted."""

MAX_FAILURES_AT_FIRST = 5
MIN_TRIALS_TO_WEIGH = 4


class _TooLargeError(Exception):
    """The model would be larger than the budget lets it be."""


class _PrunedError(Exception):
    """The trial's scores fell behind those of others."""


class _OutOfTimeError(Exception):
    """The study's time is over; the trial can be gone on with."""


def tune(config: Config, space: Space, budget: Budget, *, resume: bool = False, overwrite: bool = False) -> TuneResult:
    """Looks for better values of some keys, and writes the winning config to `output_dir/NAME-tune/best.yaml`.

    Each trial trains in this process with the config's own seed and is judged on valid alone; `train -c best.yaml`
    comes to the same score there. A trial that diverges, finds no memory or does not fit together has failed, and the
    study goes on. A study that was stopped or killed goes on with the trial that it was at.

    Args:
        config: what all trials have in common.
        space: the keys that they differ in.
        budget: when to end.
        resume: go on with an interrupted study, or with a finished one and a larger budget.
        overwrite: delete an earlier study in the folder first.

    Raises:
        ConfigError: optuna is not installed, the folder is taken, the study to go on with was another one, or no trial
            could be finished.
        DataError: the data cannot be read, or are not those that the study began with.
        CheckpointError: the study's journal is damaged.
        ResourceError: the disk is full.
    """
    if is_started_by_torchrun():
        raise ConfigError("tune: trains each trial in one process; start it without torchrun")
    _import_optuna()
    run = RunDirectory(Path(config.output_dir) / f"{config.name}-tune")
    with StopSignals() as signals, run.locked(), remembered_log() as earlier:
        check_resumable(run, config, free=FREE_KEYS, resume=resume, overwrite=overwrite)
        data = Prepared()
        data.of(config)  # an earlier study is not deleted before it is clear that a new one can start
        if overwrite:
            run.clear()
            shutil.rmtree(run / "trial", ignore_errors=True)
        run.remove_leftovers()
        run.write_status("running", "tuning")
        write_atomic(run / "config.yaml", dump_config(config))
        with log_file(run / "train.log", earlier), recorded_status(run):
            result = _Study(run, config, space, budget, data, signals).result()
            if result.stopped is None:
                run.write_status("finished", result.reason)
            else:
                run.write_status("stopped", result.reason, exit_code=result.stopped.exit_code)
            if result.best is None and result.stopped is None:
                raise ConfigError(
                    f"{run.path}: no trial was finished: {result.reason}; add --resume with a larger budget, or "
                    f"--overwrite with another search"
                )
        return result


class Prepared:
    """Data sets without their test split, prepared once for each setting of the keys that touch them."""

    def __init__(self) -> None:
        self._known: dict[str, PreparedData] = {}
        self._ngrams: NgramModel | None = None

    def of(self, config: Config) -> PreparedData:
        """Returns the train and valid split of a config, and the texts without labels where they are read."""
        names = ["train", "valid", *(["unlabelled"] if config.reads_unlabelled else [])]
        key = json.dumps([config.text.model_dump(), config.model.init_from, names])
        if key not in self._known:
            data = prepare(config, only=names)
            splits = {name: split for name, split in data.dataset.splits.items() if name in names}
            self._known[key] = replace(data, dataset=replace(data.dataset, splits=splits))
        return self._known[key]

    def ngrams_of(self, config: Config) -> NgramModel | None:
        """Returns the n-gram model that `train` will put beside the network, which no searched key changes."""
        if config.model.ngrams is not None and self._ngrams is None:
            dataset = self.of(config).dataset
            train = dataset.splits["train"]
            self._ngrams = NgramModel.train(train.texts, train.label_ids, len(dataset.labels))
        return self._ngrams


class _Study:
    """A study under way: asks Optuna, trains, tells it, and keeps the results in the folder up to date."""

    def __init__(
        self, run: RunDirectory, config: Config, space: Space, budget: Budget, data: Prepared, signals: StopSignals
    ) -> None:
        self.run, self.config, self.space, self.budget, self.data, self.signals = (
            run, config, space, budget, data, signals,
        )  # fmt: skip
        self.distributions = {key: _distribution(found) for key, found in space.items()}
        self.is_lower_better = config.train.select_by.rpartition("/")[2] in LOWER_IS_BETTER
        self.study = self._opened()
        self.deadline = math.inf

    def result(self) -> TuneResult:
        """Trains until a limit is reached, and returns what was found."""
        stopped = None
        try:
            with self.signals.deferred():
                reason = self._search()
        except StoppedError as error:
            stopped, reason = error, str(error)
        return self._written(stopped, reason)

    def _opened(self) -> "optuna.Study":
        """Opens the journal, a new one or that of the study to go on with."""
        import optuna
        from optuna.storages.journal import JournalFileBackend

        path = self.run / JOURNAL
        _mend(path)
        marks = {
            "space": {key: str(found) for key, found in self.space.items()},
            "data_digest": self.data.of(self.config).dataset.digest,
        }
        try:
            backend = JournalFileBackend(str(path))
            study = optuna.create_study(
                study_name=self.config.name,
                storage=optuna.storages.JournalStorage(backend),
                pruner=optuna.pruners.MedianPruner(n_startup_trials=TRIALS_BEFORE_PRUNING),
                direction="minimize" if self.is_lower_better else "maximize",
                load_if_exists=True,
            )
            before = study.user_attrs
        except (AssertionError, LookupError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path}: damaged, it cannot be read ({error}); start again with --overwrite"
            ) from error
        if before and before["data_digest"] != marks["data_digest"]:
            raise DataError(
                f"{self.run.path}: the data are not those of this study; bring them back or add --overwrite"
            )
        if before and before["space"] != marks["space"]:
            raise ConfigError(
                f"{self.run.path}: cannot be resumed with another search, trials would not compare; it searched\n  "
                + "\n  ".join(f"{key}={text}" for key, text in before["space"].items())
                + "\ntake that back, or add --overwrite, or --set name=NAME"
            )
        if not before:
            for key, mark in marks.items():
                study.set_user_attr(key, mark)
            given = {key: value_at(self.config, key) for key in self.space}
            if all(found.holds(given[key]) for key, found in self.space.items()):
                study.enqueue_trial({key: _as_parameter(found, given[key]) for key, found in self.space.items()})
        return study

    def _search(self) -> str:
        """Tries proposals until a limit is reached, and returns which."""
        import optuna

        states = optuna.trial.TrialState
        for abandoned in self.study.get_trials(states=[states.RUNNING]):
            self.study.tell(abandoned.number, state=states.FAIL)
            if abandoned.params.keys() == self.space.keys():  # or it was killed while it was being asked for
                self.study.enqueue_trial(abandoned.params)
        self.deadline = math.inf
        if self.budget.seconds is not None:
            used = sum(trial.user_attrs.get("seconds", 0.0) for trial in self.study.trials)
            self.deadline = time.monotonic() + self.budget.seconds - used
        in_a_row = 0
        while True:
            if self.signals.received is not None:
                raise self.signals.error()
            trials = self._trials()
            trained = [trial for trial in trials if trial.state in TRAINED]
            if self.budget.trials is not None and len(trained) >= self.budget.trials:
                return f"{len(trained)} trials were trained"
            if time.monotonic() >= self.deadline:
                return "the time is over"
            if len(trained) >= MAX_FAILURES_AT_FIRST and all(trial.state == FAILED for trial in trained):
                return f"the first {len(trained)} trials failed, the last one: {trained[-1].reason}"
            if in_a_row >= MAX_IN_A_ROW:
                return f"{in_a_row} proposals in a row were too large or known already"
            # Of the number of trials, so that a study that was cut short goes on to the same ones.
            num_told = sum(trial.state != INTERRUPTED for trial in trials)
            self.study.sampler = optuna.samplers.TPESampler(
                n_startup_trials=RANDOM_TRIALS, seed=(self.config.seed + num_told) % 2**32
            )
            state = self._try(self.study.ask(self.distributions), trials)
            in_a_row = 0 if state in TRAINED else in_a_row + 1

    def _try(self, asked: "optuna.Trial", before: Sequence[Trial]) -> str:
        """Trains one proposal, tells Optuna what came of it, and returns that."""
        from optuna.trial import TrialState

        values = {key: _as_value(found, asked.params[key]) for key, found in self.space.items()}
        asked.set_user_attr("values", values)
        twin = next((trial for trial in before if trial.values == values and trial.state in TRAINED), None)
        started = time.monotonic()
        score, state, reason = None, FINISHED, ""
        try:
            if twin is None:
                score = self._trained(asked, values)
            else:
                state, reason = REPEATED, f"as trial {twin.number}"
        except _TooLargeError:
            state = TOO_LARGE
        except _PrunedError:
            state = PRUNED
        except (StoppedError, _OutOfTimeError) as error:
            asked.set_user_attr("seconds", time.monotonic() - started)
            if isinstance(error, StoppedError):
                raise
            return INTERRUPTED
        except (DivergedError, DataError, ConfigError, CheckpointError) as error:
            state, reason = FAILED, str(error).partition("\n")[0]
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            state, reason = FAILED, "out of memory"
        asked.set_user_attr("state", state)
        asked.set_user_attr("reason", reason)
        asked.set_user_attr("seconds", time.monotonic() - started)
        told = {FINISHED: TrialState.COMPLETE, PRUNED: TrialState.PRUNED, TOO_LARGE: TrialState.PRUNED}
        self.study.tell(asked, score, state=told.get(state, TrialState.FAIL))
        if state in TRAINED:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self._note(asked.number)
        return state

    def _trained(self, asked: "optuna.Trial", values: dict[str, Any]) -> float:
        """Trains a proposal from its start, or from where it was left, and returns its best score."""
        config = with_overrides(self.config, [f"{key}={json.dumps(value)}" for key, value in values.items()])
        data = self.data.of(config)
        num_bytes = model_bytes(config, data, self.data.ngrams_of(config))
        asked.set_user_attr("num_bytes", num_bytes)
        if self.budget.max_bytes is not None and num_bytes > self.budget.max_bytes:
            raise _TooLargeError
        make_encoder(config, data, on_report=self._watch_the_time)
        with _scratch(self.run / "trial", values):
            session = Session.start(RunDirectory(self.run / "trial"), config, data, ALONE)
            trainer = session.trainer
            stages = 0
            with freed_memory_kept() as bound_memory:
                for report in session.reports(self.signals):
                    bound_memory()
                    if isinstance(report, EvaluationReport):
                        stages = self._told(asked, trainer.progress.history, trainer.total_steps, stages)
                    if time.monotonic() >= self.deadline and not trainer.is_out_of_epochs:
                        session.save("last")
                        raise _OutOfTimeError
            best = trainer.progress.best_value
            assert best is not None, "a run ends with an evaluation"
            return best

    def _watch_the_time(self, _: object) -> None:
        if time.monotonic() >= self.deadline:
            raise _OutOfTimeError

    def _told(self, asked: "optuna.Trial", history: Sequence[Row], total_steps: int, stages: int) -> int:
        """Tells Optuna the scores at all stages after the first `stages`, and returns how many it knows now.

        Raises:
            _PrunedError: others were better at this stage.
        """
        for row in history:
            for stage in range(stages + 1, math.ceil(STAGES * row["step"] / total_steps) + 1):
                asked.report(row[self.config.train.select_by], stage)
                stages = stage
        if stages < STAGES and asked.should_prune():
            raise _PrunedError
        return stages

    def _trials(self) -> list[Trial]:
        """Returns all proposals in their order."""
        return [
            self._as_trial(trial)
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state.name not in ("WAITING", "RUNNING")
        ]

    def _as_trial(self, trial: "optuna.trial.FrozenTrial") -> Trial:
        attrs, scores = trial.user_attrs, list(trial.intermediate_values.values())
        score = trial.value if trial.state.name == "COMPLETE" else None
        if score is None and scores:
            score = min(scores) if self.is_lower_better else max(scores)
        return Trial(
            number=trial.number,
            state=attrs.get("state", INTERRUPTED),
            values=attrs.get("values", {}),
            score=score,
            num_bytes=attrs.get("num_bytes"),
            seconds=attrs.get("seconds", 0.0),
            reason=attrs.get("reason", ""),
        )

    def _ranked(self) -> list[Trial]:
        """Returns the trials that were trained: the finished ones before the others, the best first."""
        sign = 1 if self.is_lower_better else -1
        trained = [trial for trial in self._trials() if trial.state in TRAINED]
        return sorted(
            trained, key=lambda t: (t.state != FINISHED, math.inf if t.score is None else sign * t.score, t.number)
        )

    def _note(self, number: int) -> None:
        """Says what came of a trial, and keeps the winner and the table on the disk."""
        ranked = self._ranked()
        trial = next(trial for trial in ranked if trial.number == number)
        outcome = trial.reason if trial.state == FAILED else f"{self.config.train.select_by} {shown_score(trial)}"
        best = f"; best so far trial {ranked[0].number}" if ranked[0].state == FINISHED else ""
        logger.info(f"trial {number} {trial.state} after {trial.seconds:.0f} s: {outcome}{best}")
        self._keep(ranked)

    def _keep(self, ranked: Sequence[Trial]) -> None:
        write_atomic(self.run / "trials.csv", as_csv(ranked, list(self.space)))
        if ranked and ranked[0].state == FINISHED:
            write_atomic(self.run / WINNER, self._winning_config(ranked[0]))

    def _winning_config(self, best: Trial) -> str:
        name = f"{self.config.name}-best"[-80:].lstrip(".-")
        values = {"name": name, **best.values}
        config = with_overrides(self.config, [f"{key}={json.dumps(value)}" for key, value in values.items()])
        path = self.run / WINNER
        return (
            f"# The best of the trials in {self.run.path}: trial {best.number}.\n"
            f"# bilstm-cls train -c {path}\n"
            f"# {self.config.train.select_by} {shown_score(best)}, which the test split has not confirmed yet.\n"
            f"{dump_config(config)}"
        )

    def _written(self, stopped: StoppedError | None, reason: str) -> TuneResult:
        """Writes what was found, and returns it."""
        ranked = self._ranked()
        result = TuneResult(
            run=self.run,
            score_name=self.config.train.select_by,
            is_lower_better=self.is_lower_better,
            num_valid=len(self.data.of(self.config).dataset.splits["valid"].texts),
            trials=ranked,
            importances=self._importances(ranked),
            stopped=stopped,
            reason=reason,
        )
        self._keep(ranked)
        self.run.write_json("tuning.json", result.as_object())
        return result

    def _importances(self, ranked: Sequence[Trial]) -> dict[str, float]:
        """Returns the share of each key in the variance of the scores (fANOVA, Hutter et al. 2014), largest first."""
        import optuna

        scores = {trial.score for trial in ranked if trial.state == FINISHED}
        if len(scores) < 2 or sum(trial.state == FINISHED for trial in ranked) < MIN_TRIALS_TO_WEIGH:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        shares = optuna.importance.get_param_importances(self.study, evaluator=evaluator)
        return {key: float(share) for key, share in shares.items()}


def model_bytes(config: Config, data: PreparedData, ngrams: NgramModel | None) -> int:
    """Returns the bytes of weights, tokenizer and labels, as `train` writes them."""
    labels = data.dataset.labels
    model = build_model(config, len(data.tokenizer), len(labels))
    with tempfile.TemporaryDirectory(prefix="bilstm-cls-") as folder:
        run = RunDirectory(Path(folder))
        run.save_model(LoadedModel(model, data.tokenizer, labels, config, ngrams))
        return sum(path.stat().st_size for path in run.path.iterdir() if path.name != "config.yaml")


def _import_optuna() -> None:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(f"tune needs optuna; run: pip install 'bilstm-cls[tune]' ({error})") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def _mend(journal: Path) -> None:
    """Makes a journal sound after a kill in the midst of a line. Only the holder of the folder's lock may call it."""
    (journal.parent / f"{journal.name}.lock").unlink(missing_ok=True)
    if journal.exists():
        content = journal.read_bytes()
        if not content.endswith(b"\n"):
            write_atomic(journal, content[: content.rfind(b"\n") + 1])


@contextlib.contextmanager
def _scratch(folder: Path, values: dict[str, Any]) -> Iterator[None]:
    """Keeps the checkpoints of a trial until it has ended, so that it can be gone on with after an interruption."""
    note = json.dumps(values)
    mark = folder / "values.json"
    if not mark.exists() or mark.read_text("utf-8") != note:
        shutil.rmtree(folder, ignore_errors=True)
        write_atomic(mark, note)
    try:
        yield
    except (StoppedError, _OutOfTimeError):
        raise
    except BaseException:
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)


def _distribution(found: Range | Choices) -> "optuna.distributions.BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(found, Choices):
        return CategoricalDistribution([_as_parameter(found, value) for value in found.values])
    if found.is_whole:
        return IntDistribution(int(found.low), int(found.high), log=found.is_log)
    return FloatDistribution(found.low, found.high, log=found.is_log)


def _as_parameter(found: Range | Choices, value: Any) -> Any:
    """Returns a value as Optuna keeps it: a choice may be a list, and 1 is not true."""
    return json.dumps(value) if isinstance(found, Choices) else value


def _as_value(found: Range | Choices, parameter: Any) -> Any:
    """Returns a value for the config; of a real number, four digits."""
    if isinstance(found, Choices):
        return json.loads(parameter)
    return parameter if found.is_whole else min(max(float(f"{parameter:.4g}"), found.low), found.high)
