"""Judging a finished run on its own splits or on another file."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bilstm_cls.classifier import answer
from bilstm_cls.config import Config, DataConfig
from bilstm_cls.data.corpus import encode, statistics
from bilstm_cls.data.dataset import load_dataset
from bilstm_cls.data.readers import ReadOptions, read, read_label_names
from bilstm_cls.data.types import BadRow, Split
from bilstm_cls.device import choose_device
from bilstm_cls.errors import ConfigError, DataError
from bilstm_cls.evaluation.metrics import Metrics, compute_metrics
from bilstm_cls.run_directory import RunDirectory

logger = logging.getLogger(__name__)


def evaluate(
    path: Path,
    *,
    data: Path | None = None,
    split: str = "test",
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    data_format: str = "auto",
    device: str = "auto",
) -> tuple[str, Metrics]:
    """Judges a run on a split of its own data, or on another labelled file.

    Args:
        path: the run directory.
        data: a labelled file or folder instead of the run's own split.
        split: `train`, `valid` or `test`, where `data` is None.
        text_columns: of `data`; the run's own if None.
        label_column: of `data`; the run's own if None.
        data_format: of `data`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Returns:
        The name of what was judged, and its scores.

    Raises:
        CheckpointError: the run is damaged or not finished.
        ConfigError: there is no such split.
        DataError: the data cannot be read, are not those the run was trained on, or have a label it does not know.
    """
    run = RunDirectory(path)
    chosen = choose_device(device)
    loaded = run.load_model()
    if data is None:
        judged_split = _own_split(run, loaded.config, split)
    else:
        judged_split = _other_split(data, loaded.config.data, loaded.labels, text_columns, label_column, data_format)
    text = loaded.config.text
    corpus = encode(
        judged_split.texts, loaded.tokenizer, max_length=text.max_length, truncate=text.truncate,
        label_ids=judged_split.label_ids,
    )  # fmt: skip
    counts = statistics(corpus)
    logger.info(
        f"{judged_split.name}: {counts['texts']:,} texts, {counts['truncated']:,} cut to {text.max_length} tokens, "
        f"{counts['empty']:,} empty, {counts['unknown']:,} of {counts['tokens']:,} tokens unknown"
    )
    for member in loaded.members:
        member.to(chosen)
    probabilities = answer(loaded, judged_split.texts, corpus)
    majority = run.read_object("metrics.json").get("data/majority_label")
    return judged_split.name, compute_metrics(
        probabilities,
        judged_split.label_ids,
        loaded.labels,
        majority_label_id=loaded.labels.index(majority) if majority in loaded.labels else None,
    )


def _own_split(run: RunDirectory, config: Config, name: str) -> Split:
    digest = run.read_object("environment.json").get("data_digest")
    if digest is None:
        raise DataError(
            f"{run.path}: keeps no texts of its own (it was imported, or fitted in memory); judge a file with --data"
        )
    dataset = load_dataset(config.data)
    if name not in dataset.splits or name == "unlabelled":
        raise ConfigError(f"--split: the run has no {name!r} split; it has {', '.join(dataset.splits)}")
    if digest != dataset.digest:
        raise DataError(
            f"{run.path}: its data have changed since it was trained; bring them back, or judge a file with --data"
        )
    return dataset.splits[name]


def _other_split(
    path: Path,
    config: DataConfig,
    labels: list[str],
    text_columns: Sequence[str] | None,
    label_column: str | None,
    data_format: str,
) -> Split:
    options = ReadOptions(
        text_columns=tuple(text_columns or config.text_columns),
        label_column=label_column or config.label_column,
        encoding=config.encoding,
    )
    skipped: list[BadRow] = []
    texts, label_ids, lines = [], [], []
    known = {label: i for i, label in enumerate(labels)}
    for example in read(path, format=data_format, options=options, bad_rows=config.bad_rows, on_bad_row=skipped.append):
        label = str(example.label)
        if label not in known and config.label_names is not None:
            known |= _numbers_of(labels, Path(config.label_names), config.encoding)
        if label not in known:
            raise DataError(
                f"{example.path}:{example.line}: label {example.label!r} is not one that the run knows: "
                f"{', '.join(labels[:20])}"
            )
        texts.append(example.text)
        label_ids.append(known[label])
        lines.append(example.line)
    for row in (row for row in skipped if row.is_read):
        logger.warning(str(row))
    skipped = [row for row in skipped if not row.is_read]
    if skipped:
        logger.warning(f"{len(skipped)} rows could not be used, the first: {skipped[0]}")
    if not texts:
        raise DataError(f"{path}: there is no text to judge")
    return Split(str(path), texts, np.array(label_ids), [str(path)] * len(texts), np.array(lines))


def _numbers_of(labels: list[str], path: Path, encoding: str) -> dict[str, int]:
    """Returns the label id of each number that stands for a label in the files of a run with `data.label_names`."""
    names = read_label_names(path, encoding)
    return {number: labels.index(name) for number, name in names.items() if name in labels}


def metrics_table(metrics: Metrics, name: str) -> str:
    """Returns the scores as lines for a terminal."""
    low, high = metrics.confidence_interval or (metrics.accuracy, metrics.accuracy)
    lines = [
        f"{name}: {metrics.examples:,} texts",
        f"accuracy     {metrics.accuracy:.4f}  (95 % interval {low:.4f} to {high:.4f})",
    ]
    if metrics.majority is not None:
        lines.append(f"majority     {metrics.majority:.4f}  (always answering the most frequent label of train)")
    scores = {"macro F1": metrics.macro_f1, "weighted F1": metrics.weighted_f1, "AUROC": metrics.auroc}
    scores |= {"log loss": metrics.log_loss, "ECE": metrics.ece}
    lines += [f"{key:<12} {'undefined' if value is None else f'{value:.4f}'}" for key, value in scores.items()]
    width = max(5, *(len(label) for label in metrics.per_class))
    lines += ["", f"{'label':<{width}}  precision  recall      F1    texts"]
    lines += [
        f"{label:<{width}}     {s.precision:.4f}  {s.recall:.4f}  {s.f1:.4f}  {s.support:>7,}"
        for label, s in metrics.per_class.items()
    ]
    return "\n".join(lines)
