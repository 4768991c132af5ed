"""Evaluation of a trained model: on a split of its data, on another file, and at the end of a run."""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bilstm_cls.classifier import Classifier, LoadedModel, Task, network_logits
from bilstm_cls.config import Config
from bilstm_cls.config_file import dump_config
from bilstm_cls.data.corpus import Corpus
from bilstm_cls.data.dataset import load_dataset
from bilstm_cls.data.prepare import PreparedData
from bilstm_cls.data.readers import ReadOptions, read, read_label_names
from bilstm_cls.data.sources import read_options
from bilstm_cls.data.tables import Dialect
from bilstm_cls.data.types import MAX_LINEAR_LABELS, BadRow, Dataset, Example, Split, names_in
from bilstm_cls.errors import CheckpointError, ConfigError, DataError
from bilstm_cls.evaluation.baselines import BASELINES, known_baselines, run_baseline
from bilstm_cls.evaluation.metrics import Metrics, scored_split
from bilstm_cls.evaluation.predictions import Evaluation, label_ids_of, read_split, write_predictions
from bilstm_cls.evaluation.report import write_report
from bilstm_cls.files import write_atomic
from bilstm_cls.run_directory import BASELINE, RunDirectory, environment

logger = logging.getLogger(__name__)

Row = dict[str, Any]


def evaluate(
    path: Path,
    *,
    data: Path | None = None,
    split: str = "test",
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    data_format: str = "auto",
    bad_rows: str | None = None,
    device: str = "auto",
) -> tuple[str, Metrics]:
    """Evaluates a run on a split of its data, or on another labelled file.

    `data` is a labelled file or folder instead of the run's split, read with the columns of the run if none are given.
    `bad_rows` is `error` or `skip`, at a row that cannot be read or has a new label; as the run's if None.

    Returns:
        The name of what was evaluated, and its scores.

    Raises:
        CheckpointError: the run is damaged or not finished.
        ConfigError: there is no such split.
        DataError: the data cannot be read, are not those the run was trained on, or have a label it does not know.
    """
    run = RunDirectory(path)
    classifier = Classifier(run.load_model(), device)
    loaded = classifier.loaded
    if data is None:
        found = _split_of_run(run, loaded.config, split)
    else:
        config = loaded.config.data
        names = None if config.label_names is None else read_label_names(Path(config.label_names), config.encoding)
        options = replace(
            read_options(config, split, names),
            text_columns=tuple(text_columns or config.text_columns),
            label_column=label_column or config.label_column,
            csv=Dialect(),
        )
        found = _read_split(data, data_format, options, bad_rows or config.bad_rows, loaded.labels)
    corpus = classifier.encode(found.texts)
    counts = corpus.statistics
    logger.info(
        f"{found.name}: {counts['texts']:,} texts, {counts['truncated']:,} cut to {loaded.config.text.max_length} "
        f"tokens, {counts['empty']:,} empty, {counts['unknown']:,} of {counts['tokens']:,} tokens unknown"
    )
    return found.name, _evaluate_split(loaded, found, corpus, run.read_object("metrics.json")).metrics


def _split_of_run(run: RunDirectory, config: Config, name: str) -> Split:
    digest = run.read_object("environment.json").get("data_digest")
    if digest is None:
        raise DataError(f"{run.path}: imported or fitted in memory, without a data set; evaluate a file with --data")
    dataset = load_dataset(config.data)
    if name not in dataset.splits or name == "unlabelled":
        raise ConfigError(f"--split: the run has no {name!r} split; it has {', '.join(dataset.splits)}")
    if digest != dataset.digest:
        raise DataError(f"{run.path}: its data have changed since; restore them, or evaluate a file with --data")
    return dataset.splits[name]


def _read_split(path: Path, data_format: str, options: ReadOptions, bad_rows: str, labels: list[str]) -> Split:
    bad, found = list[BadRow](), list[Example]()
    for example in read(path, format=data_format, options=options, bad_rows=bad_rows, on_bad_row=bad.append):
        if unknown := [name for name in names_in(example.label) if name not in labels]:
            reason = f"label {unknown[0]!r} is not one that the run knows: {', '.join(labels[:20])}"
            bad.append(BadRow(example.path, example.line, reason))
            if bad_rows == "error":
                raise DataError(f"{bad[-1]}; fix the row, or --bad-rows skip")
        else:
            found.append(example)
    if bad:
        logger.warning(f"{len(bad)} rows are doubtful or could not be used, the first: {bad[0]}")
    if not found:
        raise DataError(f"{path}: there is no text to evaluate")
    ids = label_ids_of([example.label or () for example in found], labels)
    lines = np.array([example.line for example in found])
    return Split(str(path), [example.text for example in found], ids, [str(path)] * len(found), lines)


def _evaluate_split(loaded: LoadedModel, split: Split, corpus: Corpus, facts: Mapping[str, Any]) -> Evaluation:
    """Evaluates a model on encoded texts; with an n-gram model also what the network alone predicts.

    Of `metrics.json` the facts are the most frequent label, and the thresholds of the network alone.
    """
    known: Row = {"labels": loaded.labels, "majority": facts.get("data/majority_label")}
    network, task = network_logits(loaded, corpus), loaded.task
    if loaded.ngrams is None:
        return Evaluation.of(split, task.probabilities(network), task, **known)
    thresholds, both = facts.get("calibration/network_thresholds"), network + loaded.ngrams.logits(split.texts)
    alone = Task.of(split.label_ids) if thresholds is None else Task(np.array(thresholds))
    found = Evaluation.of(split, alone.probabilities(network), alone, **known)
    return replace(Evaluation.of(split, task.probabilities(both), task, **known), network=found.metrics)


def write_results(
    run: RunDirectory, loaded: LoadedModel, data: PreparedData, *, history: Sequence[Row], facts: Mapping[str, Any]
) -> Row:
    """Evaluates the chosen weights on the test split; writes metrics, predictions, plots, report and model card.

    `environment.json` is there already. `facts` are what else `metrics.json` says, such as `train/best_step`; what
    depends on the machine's load is under `time/`. Returns what `metrics.json` holds.
    """
    config, split, about = loaded.config, data.dataset.scored.name, {**data.facts(), **facts}
    evaluation = _evaluate_split(loaded, data.dataset.scored, data.corpora[split], about)
    network = evaluation.network or evaluation.metrics
    best = next((row for row in reversed(history) if row["step"] == facts.get("train/best_step")), {})
    metrics: Row = {
        **{key: value for key, value in best.items() if key.startswith("valid/")},
        **evaluation.metrics.flat(split),  # without a test split valid again, of probabilities that are calibrated
        **{f"network/{split}/{name}": getattr(network, name) for name in ("accuracy", "macro_f1", "micro_f1")},
        "model/parameters": sum(parameter.numel() for member in loaded.members for parameter in member.parameters()),
        **({} if loaded.ngrams is None else {"model/ngrams": config.model.ngrams}),
        **(_baseline_scores(data.dataset) if config.train.baselines else {}),
        **about,
        "time/peak_memory_mb": peak_memory_mb(),
    }
    write_predictions(run / f"predictions_{split}.csv", evaluation)
    write_report(run, loaded, evaluation, metrics, history=history)
    run.write_json("metrics.json", metrics)  # last, so that a run that has it has everything
    return metrics


def _baseline_scores(dataset: Dataset) -> Row:
    """Returns what `metrics.json` says of the baselines: nothing where there are too many labels for them."""
    row = Row()
    if len(dataset.labels) > MAX_LINEAR_LABELS:
        logger.info(f"no baselines with more than {MAX_LINEAR_LABELS} labels; bilstm-cls baseline evaluates them")
        return row
    for name in known_baselines(None):
        found, row[f"time/baseline_{name}_seconds"] = _evaluate_baseline(name, dataset)
        row |= {f"baseline/{name}/{key}": getattr(found.metrics, key) for key in ("accuracy", "macro_f1", "micro_f1")}
    return row


def _evaluate_baseline(name: str, dataset: Dataset) -> tuple[Evaluation, float]:
    """Returns how a linear model answers, and the seconds that it took; thresholds are chosen on valid."""
    logger.info(f"evaluating the baseline {name}: {BASELINES[name].description}")
    train, valid, split = dataset.splits["train"], dataset.splits["valid"], dataset.scored
    both = replace(split, texts=[*valid.texts, *split.texts])
    probabilities, seconds = run_baseline(name, train, both, len(dataset.labels))
    task = Task.of(train.label_ids).tuned(probabilities[: len(valid)], valid.label_ids)
    known: Row = {"labels": dataset.labels, "majority": dataset.facts()["data/majority_label"]}
    return Evaluation.of(split, probabilities[len(valid) :], task, **known), seconds


def write_baselines(config: Config, only: Sequence[str] | None, *, overwrite: bool) -> dict[str, Row]:
    """Evaluates linear models on the splits of a config, each in a run directory `NAME-BASELINE`.

    Returns what each `metrics.json` holds, by baseline.

    Raises:
        ConfigError: a baseline is not known, or its directory is taken.
        DataError: the data cannot be read.
    """
    runs = {name: RunDirectory(Path(config.output_dir) / f"{config.name}-{name}") for name in known_baselines(only)}
    for run in runs.values():
        if run.is_taken and not overwrite:
            raise ConfigError(f"{run.path}: exists already; add --overwrite to replace it, or --set name=NAME")
    dataset = load_dataset(config.data)
    results: dict[str, Row] = {}
    for name, run in runs.items():
        with run.locked():
            run.clear()
            run.remove_leftovers()
            run.write_status("running", "evaluating")
            evaluation, seconds = _evaluate_baseline(name, dataset)
            split = evaluation.split.name
            seconds_of = {f"time/baseline_{name}_seconds": seconds}
            results[name] = evaluation.metrics.flat(split) | dataset.facts() | seconds_of
            write_atomic(run / "config.yaml", dump_config(config))
            run.write_json("environment.json", environment("cpu", 1) | {"data_digest": dataset.digest})
            write_predictions(run / f"predictions_{split}.csv", evaluation)
            run.write_json("metrics.json", results[name])
            run.write_status("finished", BASELINE)
    return results


def rebuild_report(path: Path, *, device: str = "auto") -> Path:
    """Makes the pictures and the report of a finished run again, from what its directory holds.

    The model reads the texts of `predictions_test.csv` again; the data it was trained on are not needed.

    Raises:
        CheckpointError: the run is not finished, or damaged.
        ConfigError: the device does not exist, or the directory cannot be written.
    """
    run = RunDirectory(path)
    loaded = run.load_model()
    metrics, split = run.read_object("metrics.json"), read_split(path, loaded.labels)
    if f"{scored_split(metrics)}/examples" not in metrics:
        raise CheckpointError(f"{run / 'metrics.json'}: damaged, it holds no scores; restore it, or train again")
    evaluation = _evaluate_split(loaded, split, Classifier(loaded, device).encode(split.texts), metrics)
    with run.locked():
        write_report(run, loaded, evaluation, metrics, history=run.read_history())
    return run / "report.html"


def peak_memory_mb() -> float:
    """Returns the most resident memory this process ever had, in megabytes of 2**20 bytes."""
    if sys.platform == "win32":
        import psutil

        return float(psutil.Process().memory_info().peak_wset) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
