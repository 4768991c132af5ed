"""The end of a run: judge it once, and write everything that a person will look at."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bilstm_cls.classifier import answer
from bilstm_cls.config import Config
from bilstm_cls.config_file import dump_config
from bilstm_cls.data.corpus import Corpus
from bilstm_cls.data.dataset import load_dataset
from bilstm_cls.data.prepare import PreparedData
from bilstm_cls.data.types import Dataset
from bilstm_cls.device import peak_memory_mb
from bilstm_cls.errors import ConfigError
from bilstm_cls.evaluation.baselines import BASELINES, run_baseline
from bilstm_cls.evaluation.breakdown import length_histogram
from bilstm_cls.evaluation.metrics import compute_metrics
from bilstm_cls.evaluation.pages import NO_TEST, write_card, write_pages
from bilstm_cls.evaluation.predictions import Judged, write_predictions
from bilstm_cls.files import write_atomic
from bilstm_cls.run_directory import LoadedModel, RunDirectory, environment
from bilstm_cls.training.loop import Progress

logger = logging.getLogger(__name__)

Row = dict[str, Any]


def write_summary(
    run: RunDirectory, loaded: LoadedModel, data: PreparedData, progress: Progress, facts: Mapping[str, Any]
) -> Row:
    """Judges the chosen weights on the test split and writes metrics, predictions, plots, report and model card.

    Returns:
        What `metrics.json` holds. Everything that is a time or depends on the machine's load is under `time/`.
    """
    config = loaded.config
    judged = judge(loaded, data)
    baselines, seconds = _baselines(data.dataset, list(BASELINES) if config.train.baselines else [])
    metrics: Row = {
        **_best_of(progress),
        **judged.metrics.flat(judged.split.name),  # without a test split valid again, of answers that are calibrated
        "train/steps": progress.step,
        "train/best_step": progress.best_step,
        "model/parameters": sum(parameter.numel() for member in loaded.members for parameter in member.parameters()),
        **{f"baseline/{name}/accuracy": item.metrics.accuracy for name, item in baselines.items()},
        **{f"baseline/{name}/macro_f1": item.metrics.macro_f1 for name, item in baselines.items()},
        **_balance(data.dataset),
        **_lengths(data.corpora["train"], config),
        **data.facts(),
        **facts,
        "time/train_seconds": progress.seconds,
        "time/train_tokens_per_second": progress.num_tokens / max(progress.seconds, 1e-9),
        "time/peak_memory_mb": peak_memory_mb(),
        **{f"time/baseline_{name}_seconds": value for name, value in seconds.items()},
    }
    for member in loaded.members:
        member.eval()
    _write_all(
        run, config, data.dataset, judged, metrics,
        history=progress.history, loaded=loaded, corpus=data.corpora[judged.split.name],
    )  # fmt: skip
    return metrics


def write_baselines(config: Config, only: Sequence[str] | None, *, overwrite: bool) -> dict[str, Row]:
    """Judges linear models on the splits of a config, each in a run directory `NAME-BASELINE`.

    Returns:
        What each `metrics.json` holds, by baseline.

    Raises:
        ConfigError: a baseline is not known, or its directory is taken.
        DataError: the data cannot be read.
    """
    names = list(dict.fromkeys(only or BASELINES))
    for name in names:
        if name not in BASELINES:
            raise ConfigError(f"--only: baseline {name!r} is not known; choose one of {', '.join(BASELINES)}")
    runs = {name: RunDirectory(Path(config.output_dir) / f"{config.name}-{name}") for name in names}
    for run in runs.values():
        if run.is_taken and not overwrite:
            raise ConfigError(f"{run.path}: is there already; add --overwrite to replace it, or --set name=NAME")
    dataset = load_dataset(config.data)
    results: dict[str, Row] = {}
    for name, run in runs.items():
        with run.locked():
            run.clear()
            run.remove_leftovers()
            run.write_status("running", "judging")
            judged, seconds = _baselines(dataset, [name])
            results[name] = {
                **judged[name].metrics.flat(judged[name].split.name),
                **_balance(dataset),
                "data/origin": dataset.origin,
                "data/is_official": dataset.is_official,
                "data/notes": list(dataset.notes),
                **{f"data/{key}": count for key, count in dataset.counts.items()},
                f"time/baseline_{name}_seconds": seconds[name],
            }
            write_atomic(run / "config.yaml", dump_config(config))
            run.write_json("environment.json", environment("cpu", 1) | {"data_digest": dataset.digest})
            _write_all(run, config, dataset, judged[name], results[name], title=f"{config.name}-{name}")
            run.write_status("finished", "judged")
    return results


def judge(loaded: LoadedModel, data: PreparedData) -> Judged:
    """Judges a model on the test split, or on valid where there is none."""
    split = data.dataset.splits["test" if "test" in data.dataset.splits else "valid"]
    return _judged(data.dataset, answer(loaded, split.texts, data.corpora[split.name]))


def _judged(dataset: Dataset, probabilities: Any) -> Judged:
    split = dataset.splits["test" if "test" in dataset.splits else "valid"]
    majority = int(np.bincount(dataset.splits["train"].label_ids).argmax())
    metrics = compute_metrics(probabilities, split.label_ids, dataset.labels, majority_label_id=majority)
    return Judged(split, probabilities, metrics)


def _baselines(dataset: Dataset, names: Sequence[str]) -> tuple[dict[str, Judged], dict[str, float]]:
    judged, seconds = {}, {}
    test = dataset.splits["test" if "test" in dataset.splits else "valid"]
    for name in names:
        logger.info(f"judging the baseline {name}: {BASELINES[name].description}")
        probabilities, seconds[name] = run_baseline(name, dataset.splits["train"], test, dataset.labels)
        judged[name] = _judged(dataset, probabilities)
    return judged, seconds


def _best_of(progress: Progress) -> Row:
    row: Row = next((row for row in reversed(progress.history) if row["step"] == progress.best_step), {})
    return {key: value for key, value in row.items() if key.startswith("valid/")}


def _balance(dataset: Dataset) -> Row:
    """Returns the most frequent label of train, and the texts of each label in each split."""
    labels, row = dataset.labels, Row()
    for name, split in dataset.splits.items():
        if name != "unlabelled":
            counts = np.bincount(split.label_ids, minlength=len(labels)).tolist()
            row |= {f"data/labels/{name}/{label}": count for label, count in zip(labels, counts, strict=True)}
    return {"data/majority_label": labels[int(np.bincount(dataset.splits["train"].label_ids).argmax())], **row}


def _lengths(corpus: Corpus, config: Config) -> Row:
    counts, width = length_histogram(corpus.num_tokens, config.text.max_length)
    return {"text/train/length_histogram": counts, "text/train/length_width": width}


def _write_all(
    run: RunDirectory,
    config: Config,
    dataset: Dataset,
    judged: Judged,
    metrics: Row,
    *,
    title: str = "",
    history: Sequence[Row] = (),
    loaded: LoadedModel | None = None,
    corpus: Corpus | None = None,
) -> None:
    """Writes `metrics.json` last, so that a run that has it has everything."""
    write_predictions(run / f"predictions_{judged.split.name}.csv", judged, dataset.labels)
    report = write_pages(
        run, config, dataset.labels, judged, metrics,
        title=title or config.name, history=history, loaded=loaded, corpus=corpus,
    )  # fmt: skip
    write_card(run, report)
    run.write_json("metrics.json", metrics)


def score_table(metrics: Row, path: Path) -> str:
    """Returns what `train` prints at its end: the scores, what they have to beat, and where everything is."""
    split = "test" if "test/accuracy" in metrics else "valid"
    low, high = metrics[f"{split}/confidence_interval"]
    rows = {"this model": metrics[f"{split}/accuracy"]}
    for name, baseline in BASELINES.items():
        if f"baseline/{name}/accuracy" in metrics:
            rows[baseline.description] = metrics[f"baseline/{name}/accuracy"]
    rows["majority class"] = metrics[f"{split}/majority"]
    width = max(map(len, rows))
    lines = [f"accuracy on the {split} split, {metrics[f'{split}/examples']:,} texts:"]
    for name, score in rows.items():
        interval = f"  (95 % interval {low:.4f} to {high:.4f})" if name == "this model" else ""
        lines.append(f"  {name:<{width}}  {score:.4f}{interval}")
    before = metrics.get("time/pretrain_seconds")
    pretrained = f"pretrained in {before / 60:.1f} minutes, " if isinstance(before, float) else ""
    lines.append(
        f"macro F1 {metrics[f'{split}/macro_f1']:.4f}, log loss {metrics[f'{split}/log_loss']:.4f}, "
        f"ECE {metrics[f'{split}/ece']:.4f}; {pretrained}trained {metrics['train/steps']:,} steps in "
        f"{metrics['time/train_seconds'] / 60:.1f} minutes, peak memory {metrics['time/peak_memory_mb']:,.0f} MB"
    )
    lines += [f"note: {note}" for note in metrics["data/notes"]]
    if split != "test":
        lines.append(f"note: {NO_TEST}")
    return "\n".join([*lines, f"everything is in {path}; open {path / 'report.html'}"])


def baselines_table(results: Mapping[str, Row]) -> str:
    """Returns what `baseline` prints."""
    lines = []
    for name, metrics in results.items():
        split = "test" if "test/accuracy" in metrics else "valid"
        low, high = metrics[f"{split}/confidence_interval"]
        lines.append(
            f"{BASELINES[name].description}: accuracy {metrics[f'{split}/accuracy']:.4f} ({low:.4f} to {high:.4f}), "
            f"macro F1 {metrics[f'{split}/macro_f1']:.4f}, {metrics[f'time/baseline_{name}_seconds']:.0f} s"
        )
    first = next(iter(results.values()))
    split = "test" if "test/accuracy" in first else "valid"
    lines.append(f"majority class: accuracy {first[f'{split}/majority']:.4f}")
    return "\n".join([*lines, *(f"note: {note}" for note in first["data/notes"])])
