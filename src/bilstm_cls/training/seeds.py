"""The same config with several seeds: what of a score is luck, and one run that answers with the mean of all."""

import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bilstm_cls.classifier import predict_logits
from bilstm_cls.config import Config
from bilstm_cls.data.prepare import PreparedData, prepare, with_dim
from bilstm_cls.device import choose_device
from bilstm_cls.errors import ConfigError
from bilstm_cls.evaluation.evaluate import write_results
from bilstm_cls.evaluation.metrics import main_score, score_names, scored_split
from bilstm_cls.ngrams import NgramModel
from bilstm_cls.run_directory import LoadedModel, RunDirectory, environment
from bilstm_cls.training.calibration import fit_scales, scale_logits
from bilstm_cls.training.distributed import rank_by_torchrun
from bilstm_cls.training.loop import Progress, Row
from bilstm_cls.training.record import StopSignals
from bilstm_cls.training.run import TrainResult, train

logger = logging.getLogger(__name__)

ENSEMBLE = "ensemble"  # the kind of run that is made of others, in `status.json`
SCORES = ("accuracy", "micro_f1", "macro_f1", "log_loss", "ece")


@dataclass(frozen=True)
class SeedsResult:
    """Runs of one config by rising seed, and the run that answers with the mean of their logits, where there is one."""

    runs: Sequence[TrainResult]
    ensemble: TrainResult | None

    def summary(self) -> Row:
        """Returns mean, sample deviation and values of each score, together with the ensemble's."""
        split = scored_split(self.runs[0].metrics)
        row: Row = {"runs": [str(result.run.path) for result in self.runs], "split": split}
        for name in SCORES:
            values = [result.metrics[f"{split}/{name}"] for result in self.runs]
            row[f"{split}/{name}"] = {
                "mean": statistics.mean(values),
                "deviation": statistics.stdev(values) if len(values) > 1 else None,
                "values": values,
                "ensemble": None if self.ensemble is None else self.ensemble.metrics[f"{split}/{name}"],
            }
        return row


def train_seeds(
    config: Config, number: int, *, keep_ensemble: bool = False, resume: bool = False, overwrite: bool = False,
    **more: Any,
) -> SeedsResult:  # fmt: skip
    """Trains `number` runs with the seeds `config.seed`, `config.seed + 1` and so on, in directories `NAME-seedS`.

    With `keep_ensemble` also `NAME-ensemble` is written, a run that answers with the mean of their logits. The splits
    do not depend on the seed. Other arguments and errors are those of `train`.

    Returns:
        The results; their metrics are empty in those of several processes that write nothing.
    """
    results: list[TrainResult] = []
    for seed in range(config.seed, config.seed + number):
        baselines = config.train.baselines and not results  # which the seed does not change
        changes = {"seed": seed, "name": f"{config.name}-seed{seed}", "train.baselines": baselines}
        logger.info(f"seed {seed}, {len(results) + 1} of {number}")
        results.append(train(config.replace(**changes), resume=resume, overwrite=overwrite, **more))
    if not keep_ensemble or rank_by_torchrun() > 0:
        return SeedsResult(results, None)
    runs = [result.run for result in results]
    return SeedsResult(results, _write_ensemble(config, runs, resume=resume, overwrite=overwrite))


def _write_ensemble(config: Config, runs: Sequence[RunDirectory], *, resume: bool, overwrite: bool) -> TrainResult:
    target = RunDirectory(Path(config.output_dir) / f"{config.name}-ensemble")
    config = config.replace(**{"train.baselines": False})
    with StopSignals(), target.locked():
        # Nothing is lost when the ensemble of finished runs is made again in its place.
        is_ours = resume and target.read_status().get("kind") == ENSEMBLE
        if target.is_taken and not overwrite and not is_ours:
            raise ConfigError(f"{target.path}: is there already; add --overwrite, or choose another place with -o")
        data = prepare(config)
        loaded = average(with_dim(config), [run.load_model() for run in runs], data)
        device = choose_device(config.train.device)
        for member in loaded.members:
            member.to(device)
        seconds = sum(run.read_object("metrics.json")["time/train_seconds"] for run in runs)
        target.clear()
        target.write_status("running", "writing the ensemble", kind=ENSEMBLE)
        target.write_json("environment.json", environment(str(device), 1) | {"data_digest": data.dataset.digest})
        target.save_model(loaded)
        facts = {"ensemble/members": len(runs), "ensemble/runs": [str(run.path) for run in runs]}
        metrics = write_results(target, loaded, data, history=[], facts=Progress(seconds=seconds).facts() | facts)
        target.write_status("finished", "written and evaluated", kind=ENSEMBLE)
    return TrainResult(target, metrics)


def average(config: Config, models: Sequence[LoadedModel], data: PreparedData) -> LoadedModel:
    """Returns one model whose logits are the mean of several, whose last layers it changes, scaled on valid if set."""
    for model in models:
        scale_logits(model.model, 1 / len(models))
    ngrams = None if models[0].ngrams is None else NgramModel.mean([m.ngrams for m in models if m.ngrams is not None])
    members = [model.model for model in models]
    first, task = models[0], models[0].task
    if config.train.calibrate or task.thresholds is not None:
        valid = data.dataset.splits["valid"]
        logits: Any = np.sum([predict_logits(m, data.corpora["valid"]) for m in members], axis=0, dtype=np.float64)
        if ngrams is not None:
            logits = logits + ngrams.logits(valid.texts)
        scale = fit_scales(logits, valid.label_ids)[0] if config.train.calibrate else 1.0
        for member in members:
            scale_logits(member, scale)
        ngrams = None if ngrams is None else ngrams.scaled(scale)
        probabilities = task.probabilities(scale * logits)
        task = task.tuned(probabilities, valid.label_ids)
        if config.train.reject is not None:
            task = task.rejecting(probabilities, valid.label_ids, config.train.reject)
    return LoadedModel(first.model, first.tokenizer, first.labels, config, ngrams, tuple(members[1:]), task)


def seeds_table(result: SeedsResult) -> str:
    """Returns what `train --seeds` prints at its end."""
    summary, names = result.summary(), score_names(main_score(result.runs[0].metrics), SCORES)
    split = summary["split"]
    heading = "" if result.ensemble is None else ", ensemble"
    lines = [f"{len(result.runs)} seeds, {split} split: mean and deviation, lowest to highest{heading}"]
    for name, word in names.items():
        row = summary[f"{split}/{name}"]
        deviation = "" if row["deviation"] is None else f" +- {row['deviation']:.4f}"
        ensemble = "" if row["ensemble"] is None else f"   {row['ensemble']:.4f}"
        values = f"{min(row['values']):.4f} to {max(row['values']):.4f}"
        lines.append(f"  {word:<15} {row['mean']:.4f}{deviation}   {values}{ensemble}")
    paths = [str(item.run.path) for item in (*result.runs, *filter(None, [result.ensemble]))]
    return "\n".join([*lines, "runs: " + ", ".join(paths)])
