"""A study: many short runs of one config with some keys changed, compared on valid alone.

Optuna proposes the values and keeps what came of them in a journal in the study's folder. The test split is dropped as
soon as the data are prepared, so nothing can be chosen by it.
"""

import json
import logging
import math
import re
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bilstm_cls.config import Config, config_keys
from bilstm_cls.config_file import dump_config, parse_config
from bilstm_cls.data.prepare import PreparedData, prepare, with_dim
from bilstm_cls.device import freed_memory_kept
from bilstm_cls.errors import CheckpointError, ConfigError, DataError, DivergedError, StoppedError, is_out_of_memory
from bilstm_cls.files import write_atomic
from bilstm_cls.run_directory import RunDirectory, build_model
from bilstm_cls.training.calibration import ask_first, taught
from bilstm_cls.training.distributed import ALONE, size_by_torchrun
from bilstm_cls.training.loop import LOWER_IS_BETTER, EvaluationReport
from bilstm_cls.training.pretrain import make_encoder
from bilstm_cls.training.record import StopSignals, check_resumable, recorded, remembered_log
from bilstm_cls.training.run import FREE_KEYS
from bilstm_cls.training.session import Session

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

WINNER, JOURNAL = "best.yaml", "study.journal"
DEFAULT_TRIALS = 20
SECTIONS = ("text", "embedding", "model", "train")
NOT_SEARCHED = (  # keys that change no score that trials are compared by, or the comparison itself
    "train.select_by", "train.device", "train.processes", "train.threads", "train.max_minutes",
    "train.checkpoint_seconds", "train.baselines", "train.loggers", "train.calibrate", "model.ngrams",
)  # fmt: skip
STAGES = 10  # trials of unlike lengths are compared at the same tenth of their schedules
RANDOM_TRIALS, TRIALS_BEFORE_PRUNING = 8, 4
MAX_SKIPPED = 50  # proposals in a row that are not trained, after which the space is taken to be exhausted
FAILURES = (ConfigError, DataError, CheckpointError, DivergedError)  # of a trial and not of the study


@dataclass(frozen=True)
class Budget:
    """The limits of a study, over all its calls together: trained trials, seconds, and bytes of a model."""

    trials: int | None = None
    seconds: float | None = None
    max_bytes: int | None = None


Space = dict[str, tuple[str, "optuna.distributions.BaseDistribution"]]
"""By key: the words as they are written, and what Optuna draws: numbers, or choices as JSON."""


def parse_space(searches: Sequence[str], config: Config) -> Space:
    """Reads the words of `--search`, of which the last of a key wins; without any, or by `default`, the default space.

    Raises:
        ConfigError: with all problems at once, or optuna is missing.
    """
    space: Space = {}
    problems = []
    for words in [w for given in searches or ["default"] for w in _words(given, config)]:
        key, text = (part.strip() for part in words.partition("=")[::2])
        try:
            space[key] = text, _parse(key, text, config)
        except ConfigError as error:
            problems.append(f"--search {words}: {error}".partition("\n")[0])
    if problems:
        raise ConfigError("\n".join(problems))
    return space


def _words(given: str, config: Config) -> list[str]:
    """Returns one search, or for `default` what is worth searching around a config and free to choose there."""
    if given != "default":
        return [given]
    train, hidden_size, dim = config.train, config.model.hidden_size, config.embedding.width
    space = [
        f"train.learning_rate={train.learning_rate / 5:.3g}..{train.learning_rate * 5:.3g}:log",
        f"train.epochs={max(1, train.epochs // 2)}..{2 * train.epochs}",
        "model.pooling=mean|max|attention|concat",
        "model.dropout=0..0.7",
        "model.embedding_dropout=0..0.5",
        "model.word_dropout=0..0.2",
    ]
    if not config.pretrain.enabled and config.model.init_from is None:  # else the encoder decides
        space += [f"model.hidden_size={max(4, hidden_size // 4)}..{2 * hidden_size}:log", "text.min_freq=1|2|3|5"]
        if config.embedding.init in ("random", "ppmi"):  # other vectors have their width
            space.append(f"embedding.dim={max(4, dim // 4)}..{2 * dim}:log")
    return space


def _parse(key: str, text: str, config: Config) -> Any:
    distributions = _optuna().distributions
    section = key.partition(".")[0]
    if key in NOT_SEARCHED or (section in config_keys()[""] and section not in SECTIONS):
        raise ConfigError("is not searched, trials would not compare by it; use --set to fix it")
    interval = re.fullmatch(r"([^|]+?)\.\.([^|]+?)(:log)?", text)
    parts = interval.groups()[:2] if interval else text.split("|")
    values = [attrgetter(key)(parse_config(dump_config(config), [f"{key}={part.strip()}"])) for part in parts]
    if interval:
        is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        if not is_number or values[0] >= values[1] or (interval[3] and values[0] <= 0):
            raise ConfigError("must go from a lower number to a higher one, and start above 0 with :log")
        kind = distributions.IntDistribution if isinstance(values[0], int) else distributions.FloatDistribution
        return kind(values[0], values[1], log=interval[3] is not None)
    if len(values) < 2 or any(value in values[:i] for i, value in enumerate(values)):
        raise ConfigError("must look like KEY.PATH=LOW..HIGH or KEY.PATH=A|B; use --set to fix one value")
    return distributions.CategoricalDistribution([json.dumps(value) for value in values])


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(f"tune needs optuna; run: pip install 'bilstm-cls[tune]' ({error})") from error
    return optuna


def _drawn(parameter: Any, distribution: Any) -> Any:
    """Returns what Optuna drew as the config has it; numbers get four digits."""
    if isinstance(parameter, float):
        return min(max(float(f"{parameter:.4g}"), distribution.low), distribution.high)
    return json.loads(parameter) if isinstance(parameter, str) else parameter


@dataclass
class Trial:
    """One proposal and what came of it: trial 0 is the config as it was given, where the space holds it.

    Its state is finished, pruned (its scores fell behind), failed, or skipped (too large, or trained already); its
    score the best of `train.select_by`, of a pruned trial until then; its bytes those of weights and tokenizer.
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

    Each trial trains in this process with the config's seed; `train -c best.yaml` comes to the same score on valid. A
    trial that diverges, finds no memory or does not fit together has failed, and the study continues. `resume`
    continues an interrupted study, whose last trial starts again, or a finished one with a larger budget.

    Raises:
        ConfigError: optuna is missing, the folder is taken, the study to resume was another one, or no trial finished.
        DataError: the data cannot be read, or are not those that the study began with.
        CheckpointError: the study's journal is damaged.
    """
    if size_by_torchrun() > 1:
        raise ConfigError("tune: trains each trial in one process; start it without torchrun")
    _optuna().logging.set_verbosity(_optuna().logging.ERROR)
    run = RunDirectory(Path(config.output_dir) / f"{config.name}-tune")
    with StopSignals() as signals, run.locked(), remembered_log() as earlier:
        check_resumable(run, config, free=FREE_KEYS, resume=resume, overwrite=overwrite)
        study = Study(run, config, space, budget, signals)
        digest = _data_of(config).dataset.digest  # an earlier study stays as it is until a new one can start
        known = study.opened(digest) if resume and (run / JOURNAL).exists() else None
        with recorded(run, config, earlier, "tuning", overwrite):
            study.search(known or study.opened(digest))
            if study.best is None and study.stopped is None:
                raise ConfigError(f"{run.path}: no trial was finished: {study.reason}; --resume with higher limits")
            exit_code = study.stopped.exit_code if study.stopped else 0
            run.write_status("stopped" if study.stopped else "finished", study.reason, exit_code=exit_code)
        return study


class Study:
    """Where a study stands: its folder, all proposals in their order, why it ended, and by which signal, if by one."""

    def __init__(self, run: RunDirectory, config: Config, space: Space, budget: Budget, signals: StopSignals) -> None:
        self.run, self.config, self.space, self.budget, self.signals = run, config, space, budget, signals
        self.proposals: list[Trial] = []
        self.stopped: StoppedError | None = None
        self.reason = ""
        self.score_name = config.train.select_by
        self.is_lower_better = self.score_name.rpartition("/")[2] in LOWER_IS_BETTER

    @property
    def trials(self) -> list[Trial]:
        """The trials that were trained: finished ones first, best first."""
        trained = [trial for trial in self.proposals if trial.state != "skipped"]
        sign = 1 if self.is_lower_better else -1
        return sorted(trained, key=lambda t: (t.state != "finished", math.inf if t.score is None else sign * t.score))

    @property
    def best(self) -> Trial | None:
        """The finished trial that won."""
        return next((trial for trial in self.trials if trial.state == "finished"), None)

    def as_object(self) -> dict[str, Any]:
        """Returns what `tuning.json` holds and `tune --json` prints."""
        best, config = (asdict(self.best), str(self.run / WINNER)) if self.best else (None, None)
        trials = [asdict(trial) for trial in self.trials]
        return {"score": self.score_name, "best": best, "config": config, "trials": trials, "reason": self.reason}

    def as_table(self) -> str:
        """Returns what `tune` prints at its end: all trials, best first, and what to do with the winner."""
        lines = [f"{len(self.trials)} trials; {self.reason}", f"by {self.score_name}, best first:"]
        for trial in self.trials:
            values = ", ".join(f"{key} {json.dumps(value)}" for key, value in trial.values.items())
            score = "" if trial.score is None else f"{trial.score:.4f}"
            lines.append(f"{trial.number:>4}  {trial.state:<8}  {score:<7}  {values}  {trial.reason}".rstrip())
        return "\n".join([*lines, f"next: bilstm-cls train -c {shlex.quote(str(self.run / WINNER))}"])

    def search(self, study: "optuna.Study") -> None:
        """Trains trials until the budget is spent, the space exhausted or a signal comes, and writes what was found."""
        data_logger = logging.getLogger("bilstm_cls.data")
        level_before = data_logger.level
        data_logger.setLevel(logging.ERROR)  # what there is to say of the data was said before the trials
        left = math.inf if self.budget.seconds is None else self.budget.seconds
        self.deadline = time.monotonic() + left - sum(trial.seconds for trial in self.proposals)
        try:
            with self.signals.deferred():
                while not self._is_over():
                    self._try(study)
        except StoppedError as error:
            self.stopped, self.reason = error if self.signals.received else None, str(error)
        finally:
            data_logger.setLevel(level_before)
            shutil.rmtree(self.run / "trial", ignore_errors=True)
        self._keep()

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
            raise StoppedError("the time is over", signal_number=0)

    def opened(self, data_digest: str) -> "optuna.Study":
        """Opens a journal that fits, and proposes the trial that a stop or a kill ended, or at first the config."""
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
        space = {key: words for key, (words, _) in self.space.items()}
        if before.get("data_digest", data_digest) != data_digest:
            raise DataError(f"{path}: the data are not those of this study; bring them back or add --overwrite")
        known = before.get("space", space)
        pairs = ((key, known.get(key, "not searched"), space.get(key, "not searched")) for key in known | space)
        if changes := "; ".join(f"{key}: {there} -> {here}" for key, there, here in pairs if there != here):
            fault = f"{path.parent}: trials of another search would not compare ({changes})"
            raise ConfigError(f"{fault}; undo that with --search, or add --overwrite, or --set name=NAME")
        for key, mark in {"space": space, "data_digest": data_digest}.items():
            study.set_user_attr(key, mark)
        self.proposals = [Trial(**trial.user_attrs["trial"]) for trial in trials if trial.user_attrs]
        for trial in trials:
            if trial.state.name == "RUNNING":
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        first = {} if not trials or trials[-1].user_attrs else trials[-1].params
        for key, (_, distribution) in () if trials else self.space.items():
            value, found = attrgetter(key)(self.config), vars(distribution)
            if "choices" in found and json.dumps(value) in found["choices"]:
                first[key] = json.dumps(value)
            elif isinstance(value, int | float) and "low" in found and found["low"] <= value <= found["high"]:
                first[key] = value
        if first.keys() == self.space.keys():
            study.enqueue_trial(first)
        return study

    def _try(self, study: "optuna.Study") -> None:
        """Trains the next proposal, and keeps what came of it on the disk."""
        optuna = _optuna()
        # Seeded by the number of trials, so that a study that was cut short comes to the same ones.
        seed = (self.config.seed + len(self.proposals)) % 2**32
        study.sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=seed)
        proposal = study.ask({key: distribution for key, (_, distribution) in self.space.items()})
        values = {key: _drawn(proposal.params[key], distribution) for key, (_, distribution) in self.space.items()}
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
        states = {"finished": "COMPLETE", "failed": "FAIL"}
        value = trial.score if trial.state == "finished" else None
        study.tell(proposal, value, state=optuna.trial.TrialState[states.get(trial.state, "PRUNED")])
        if trial.state != "skipped":
            outcome = trial.reason or f"{self.score_name} {trial.score:.4f}"
            logger.info(f"trial {trial.number} {trial.state} after {trial.seconds:.0f} s: {outcome}")
            self._keep()

    def _train(self, proposal: "optuna.Trial", trial: Trial) -> None:
        config = with_dim(self.config.replace(**trial.values))
        data = _data_of(config)
        weights = build_model(config, len(data.tokenizer), len(data.dataset.labels)).state_dict().values()
        trial.num_bytes = sum(tensor.nbytes for tensor in weights) + len(data.tokenizer.to_json().encode())
        if self.budget.max_bytes is not None and trial.num_bytes > self.budget.max_bytes:
            return
        make_encoder(config, data, on_report=self._check_time)
        shutil.rmtree(self.run / "trial", ignore_errors=True)
        run = RunDirectory(self.run / "trial")
        data, _ = taught(run, config, data, ALONE, self.signals, self._check_time, ask_first(run, config, data))
        session = Session.start(run, config, data, ALONE)
        trainer = session.trainer
        trial.state, stage = "finished", 0
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
        """Writes all trials and the winning config."""
        self.run.write_json("tuning.json", self.as_object())
        if (best := self.best) is not None:
            name = f"{self.config.name}-best"[-80:].lstrip(".-")
            found = f"# trial {best.number}: {self.score_name} {best.score:.4f}, which test has not confirmed yet\n"
            write_atomic(self.run / WINNER, found + dump_config(self.config.replace(name=name, **best.values)))


def _data_of(config: Config) -> PreparedData:
    """Returns the data of a trial without test."""
    data = prepare(config, only=["train", "valid", *(["unlabelled"] if config.reads_unlabelled else [])])
    splits = {name: data.dataset.splits[name] for name in data.corpora}
    return replace(data, dataset=replace(data.dataset, splits=splits))
