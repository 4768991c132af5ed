"""What a study found: its trials, the winner among them, and how both are shown."""

import csv
import io
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bilstm_cls.errors import StoppedError
from bilstm_cls.run_directory import RunDirectory
from bilstm_cls.training.loop import Row

WINNER = "best.yaml"
FINISHED, PRUNED, FAILED, TOO_LARGE, REPEATED, INTERRUPTED = (
    "finished", "pruned", "failed", "too large", "repeated", "interrupted",
)  # fmt: skip
TRAINED = (FINISHED, PRUNED, FAILED)
"""What counts as one of `--trials`."""


@dataclass(frozen=True)
class Trial:
    """One proposal and what came of it.

    Attributes:
        number: counted from 0, which is the config as it was given where the space holds it.
        state: finished, pruned (its scores fell behind) or failed.
        values: of the searched keys.
        score: the best of `train.select_by`; of a pruned trial, the best until then.
        num_bytes: of weights, tokenizer and labels; None where that was not known.
        seconds: that it took.
        reason: why it failed.
    """

    number: int
    state: str
    values: dict[str, Any]
    score: float | None
    num_bytes: int | None
    seconds: float
    reason: str


@dataclass(frozen=True)
class TuneResult:
    """Where a study stands.

    Attributes:
        run: its folder, with `best.yaml` and `trials.csv`.
        score_name: what trials are compared by, such as `valid/accuracy`.
        is_lower_better: whether the lowest score wins.
        num_valid: texts of the valid split.
        trials: that were trained, best first.
        importances: share of each key in what the scores differ by; empty where there are too few trials to say.
        stopped: the signal that ended the study, if one did.
        reason: why it ended.
    """

    run: RunDirectory
    score_name: str
    is_lower_better: bool
    num_valid: int
    trials: Sequence[Trial]
    importances: dict[str, float]
    stopped: StoppedError | None
    reason: str

    @property
    def best(self) -> Trial | None:
        """The finished trial that won."""
        return next((trial for trial in self.trials if trial.state == FINISHED), None)

    def as_object(self) -> Row:
        """Returns what `tuning.json` holds and `tune --json` prints."""
        return {
            "score": self.score_name,
            "best": None if self.best is None else vars(self.best),
            "config": None if self.best is None else str(self.run / WINNER),
            "importances": self.importances,
            "trials": [vars(trial) for trial in self.trials],
            "reason": self.reason,
        }


def tune_table(result: TuneResult) -> str:
    """Returns what `tune` prints at its end: the winner, what mattered, and all trials."""
    best = result.best
    lines = [f"{_counted(result.trials)}; {result.reason}"]
    if best is None:
        return "\n".join(lines)
    given = next((trial for trial in result.trials if trial.number == 0 and trial.state == FINISHED), None)
    beside = f" (the config as given: {shown_score(given)})" if given is not None and given is not best else ""
    lines.append(f"best: trial {best.number}, {result.score_name} {shown_score(best)}{beside}, {_size(best)}")
    width = max(map(len, best.values))
    lines += [f"  {key:<{width}}  {json.dumps(value)}" for key, value in best.values.items()]
    if result.importances:
        lines.append("what the scores differ by:")
        lines += [f"  {key:<{width}}  {share:.0%}" for key, share in result.importances.items()]
    lines.append("trials, best first:")
    lines += ["  " + line for line in _columns(result.trials)]
    if result.score_name == "valid/accuracy" and best.score is not None:
        spread = 1.96 * math.sqrt(best.score * (1 - best.score) / result.num_valid)
        lines.append(
            f"note: valid has {result.num_valid:,} texts, so scores within {spread:.4f} of the best may be as good; "
            f"the best of many is a little lucky"
        )
    return "\n".join([*lines, f"next: bilstm-cls train -c {shlex.quote(str(result.run / WINNER))}"])


def _columns(trials: Sequence[Trial]) -> list[str]:
    keys = list(trials[0].values)
    rows = [["trial", "state", "score", "size", "seconds", *(key.partition(".")[2] for key in keys)]]
    for t in trials:
        values = [json.dumps(t.values.get(key)).strip('"') for key in keys]
        rows.append([str(t.number), t.state, shown_score(t), _size(t), f"{t.seconds:.0f}", *values])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def _counted(trials: Sequence[Trial]) -> str:
    counts = ", ".join(f"{sum(t.state == state for t in trials)} {state}" for state in TRAINED)
    minutes = sum(trial.seconds for trial in trials) / 60
    return f"{len(trials)} trials in {minutes:.1f} minutes: {counts}"


def shown_score(trial: Trial) -> str:
    """Returns a trial's score for people."""
    return "-" if trial.score is None else f"{trial.score:.4f}"


def _size(trial: Trial) -> str:
    return "-" if trial.num_bytes is None else f"{trial.num_bytes / 10**6:.2f} MB"


def as_csv(trials: Sequence[Trial], keys: Sequence[str]) -> str:
    """Returns what `trials.csv` holds, with a column for each searched key."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "score", "bytes", "seconds", *keys, "reason"])
    for t in trials:
        values = [json.dumps(t.values.get(key)).strip('"') for key in keys]
        writer.writerow([t.number, t.state, t.score, t.num_bytes, round(t.seconds, 2), *values, t.reason])
    return text.getvalue()
