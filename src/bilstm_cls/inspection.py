"""What is in a data set, in a file, or in a run."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bilstm_cls.config import Config, dump_config, load_config
from bilstm_cls.data.batches import padding_share, training_batches
from bilstm_cls.data.corpus import statistics
from bilstm_cls.data.example import Split
from bilstm_cls.data.preparation import PreparedData, prepare
from bilstm_cls.run_directory import RunDirectory, build_model


def inspect_data(config: Config) -> dict[str, Any]:
    """Returns sizes, label balance, lengths, truncation, coverage, duplicates and overlap of a config's data."""
    data = prepare(config)
    splits = data.dataset.splits
    return {
        "origin": data.dataset.origin,
        "notes": list(data.dataset.notes),
        "rows": dict(data.dataset.counts),
        "labels": data.dataset.labels,
        "vocabulary": len(data.tokenizer),
        "splits": {name: _describe(data, split) for name, split in splits.items()},
        "overlap": _overlaps(splits),
    }


def inspect_file(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Guesses a file's columns as `init` does, and inspects it."""
    from bilstm_cls.data.sniff import sniff

    found = sniff(path, overrides)
    guessed = [
        "data.source=files",
        f"data.train={_quoted(str(path))}",
        f"data.format={found.format}",
        f"data.encoding={_quoted(found.encoding)}",
        *([f"data.text_columns={_quoted(list(found.text_columns))}"] if found.text_columns else []),
        *([f"data.label_column={_quoted(found.label_column)}"] if found.label_column else []),
    ]
    return inspect_data(load_config(None, [*guessed, *overrides]))


def inspect_run(path: Path) -> dict[str, Any]:
    """Returns how a run stands, what it is, and its scores."""
    run = RunDirectory(path)
    loaded = run.load_model()
    metrics = run.read_object("metrics.json")
    return {
        "run": str(path),
        "status": run.read_status(),
        "labels": loaded.labels,
        "vocabulary": len(loaded.tokenizer),
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "environment": run.read_object("environment.json"),
        "metrics": {k: v for k, v in metrics.items() if "/per_class/" not in k and "confusion" not in k},
    }


def plan(config: Config) -> dict[str, Any]:
    """Returns what training would do: reads and encodes the data, builds the model, writes nothing."""
    data = prepare(config)
    lengths = data.corpora["train"].lengths
    train = config.train
    epochs = [
        training_batches(
            lengths, batch_size=train.batch_size, batch_tokens=train.batch_tokens, seed=config.seed, epoch=epoch
        )
        for epoch in range(train.epochs)
    ]
    model = build_model(config, len(data.tokenizer), len(data.dataset.labels))
    return {
        "run_directory": str(Path(config.output_dir) / config.name),
        "origin": data.dataset.origin,
        "labels": data.dataset.labels,
        "texts": {name: len(split) for name, split in data.dataset.splits.items()},
        "vocabulary": len(data.tokenizer),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": sum(len(batches) for batches in epochs),
        "tokens_per_epoch": int(lengths.sum()),
        "padding": round(padding_share(epochs[0], lengths), 4),
    }


def with_overrides(text: str, overrides: Sequence[str], *, name: str) -> str:
    """Applies `--set` overrides to the text of a config, whose comments are lost."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.yaml"
        path.write_text(text, "utf-8")
        return dump_config(load_config(path, overrides))


def as_lines(findings: Mapping[str, Any], indent: int = 0) -> Iterator[str]:
    """Yields nested findings as indented lines for a terminal."""
    for key, value in findings.items():
        name = " " * indent + str(key)
        if isinstance(value, Mapping):
            yield f"{name}:"
            yield from as_lines(value, indent + 2)
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            yield f"{name}:"
            for item in value:
                yield " " * (indent + 2) + ", ".join(f"{k} {_shown(v)}" for k, v in item.items())
        elif isinstance(value, list | tuple):
            yield f"{name}: {', '.join(str(item) for item in value)}"
        else:
            yield f"{name}: {_shown(value)}"


def _describe(data: PreparedData, split: Split) -> dict[str, Any]:
    labels = data.dataset.labels
    counts = np.bincount(split.label_ids, minlength=len(labels)).tolist()
    repeats = Counter(Counter(split.texts).values())
    corpus = data.corpora[split.name]
    facts = statistics(corpus)
    return {
        **facts,
        "known_tokens": round(1 - facts["unknown"] / max(1, int(corpus.lengths.sum())), 4),
        "labels": dict(zip(labels, counts, strict=True)),
        "duplicates": sum((times - 1) * number for times, number in repeats.items()),
    }


def _overlaps(splits: Mapping[str, Split]) -> dict[str, int]:
    """Counts the texts of valid and test that stand in another split word for word."""
    texts = {name: set(split.texts) for name, split in splits.items()}
    pairs = [("valid", "train"), ("test", "train"), ("test", "valid")]
    return {
        f"{one} in {other}": sum(text in texts[other] for text in splits[one].texts)
        for one, other in pairs
        if one in splits and other in splits
    }


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _quoted(value: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)
