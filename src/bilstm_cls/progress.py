"""The progress bar of a training run."""

import time
from typing import Any

from tqdm import tqdm

from bilstm_cls.training.loop import EvaluationReport, StepReport


class ProgressBar:
    """Shows step, epoch, loss, tokens per second and time left on stderr; a context manager.

    Args:
        is_shown: whether anything is shown at all.
    """

    def __init__(self, *, is_shown: bool) -> None:
        self.is_shown = is_shown
        self._bar: tqdm[Any] | None = None
        self._loss = 0.0
        self._tokens = 0
        self._started = 0.0

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, report: StepReport | EvaluationReport) -> None:
        """Takes the next report of the loop."""
        if not self.is_shown or isinstance(report, EvaluationReport):
            return
        if self._bar is not None and (self._bar.total != report.total_steps or report.step <= self._bar.n):
            self._bar.close()  # of another run: pretraining is over, or the next seed begins
            self._bar, self._tokens = None, 0
        if self._bar is None:
            self._bar = tqdm(total=report.total_steps, initial=report.step - 1, unit="step", leave=False)
            self._loss = report.loss
            self._started = time.monotonic()
        self._loss += 0.05 * (report.loss - self._loss)
        self._tokens += report.num_tokens
        rate = self._tokens / max(time.monotonic() - self._started, 1e-9)
        self._bar.set_description(f"epoch {report.epoch}", refresh=False)
        self._bar.set_postfix_str(f"loss {self._loss:.3f}, {rate / 1000:.1f} ktok/s", refresh=False)
        self._bar.update()
