"""The report of a finished run, made again."""

import json
from pathlib import Path
from typing import Any

from bilstm_cls.classifier import answer
from bilstm_cls.data.corpus import encode
from bilstm_cls.device import choose_device
from bilstm_cls.errors import CheckpointError
from bilstm_cls.evaluation.metrics import compute_metrics
from bilstm_cls.evaluation.pages import write_pages
from bilstm_cls.evaluation.predictions import Judged, read_predictions
from bilstm_cls.run_directory import RunDirectory


def rebuild(path: Path, *, device: str = "auto") -> Path:
    """Makes the pictures and the report of a finished run again, from what its directory holds.

    The model answers the texts of `predictions_test.csv` anew; the data it was trained on are not needed.

    Args:
        path: the run directory.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Returns:
        The report.

    Raises:
        CheckpointError: the run is not finished, or damaged.
        ConfigError: the device is not there, or the directory cannot be written.
    """
    run = RunDirectory(path)
    if run.read_status().get("status") == "finished" and not (run / "model.safetensors").exists():
        raise CheckpointError(
            f"{path}: holds no model (is it of `bilstm-cls baseline`?), so its report is made by that command alone; "
            f"to compare it with another run give both: --run DIR --run {path}"
        )
    loaded = run.load_model()
    predictions = read_predictions(path)
    unknown = sorted(set(predictions.labels) - set(loaded.labels))
    if unknown:
        raise CheckpointError(
            f"{path}: predictions_{predictions.split}.csv has the label {unknown[0]!r}, labels.json not"
        )
    metrics = run.read_object("metrics.json")
    chosen = choose_device(device)
    for member in loaded.members:
        member.to(chosen)
    split = predictions.as_split(loaded.labels)
    text = loaded.config.text
    corpus = encode(split.texts, loaded.tokenizer, max_length=text.max_length, truncate=text.truncate)
    probabilities = answer(loaded, split.texts, corpus)
    majority = metrics.get("data/majority_label")
    scores = compute_metrics(
        probabilities,
        split.label_ids,
        loaded.labels,
        majority_label_id=loaded.labels.index(majority) if majority in loaded.labels else None,
    )
    judged = Judged(split, probabilities, scores)
    with run.locked():
        write_pages(
            run, loaded.config, loaded.labels, judged, metrics,
            title=loaded.config.name, history=_history(run), loaded=loaded, corpus=corpus,
        )  # fmt: skip
    return run / "report.html"


def _history(run: RunDirectory) -> list[dict[str, Any]]:
    path = run / "history.jsonl"
    if not path.exists():  # as of an ensemble
        return []
    try:
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged, it cannot be read ({error})") from error
