"""What is in a data set, in a file, or in a run."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from bilstm_cls.config import Config
from bilstm_cls.config_file import dump_config, load_config
from bilstm_cls.data.batches import padding_share, training_batches
from bilstm_cls.data.corpus import statistics
from bilstm_cls.data.prepare import PreparedData, prepare
from bilstm_cls.data.types import Split
from bilstm_cls.evaluation.deciding_tokens import deciding_tokens
from bilstm_cls.evaluation.label_errors import label_errors
from bilstm_cls.evaluation.near_duplicates import Pair, clusters, near_duplicates
from bilstm_cls.run_directory import RunDirectory, build_model

LABELLED = ("train", "valid", "test")
_LONG = ("/per_class/", "confusion", "length_histogram")
_QUANTILES = (5, 25, 50, 75, 95)


LIMIT = 20
MAX_SHOWN = 160
"""Characters of a text that a finding shows."""

MAX_JUDGED = 30_000
"""Texts whose labels are judged: the memory of that grows with them."""


def inspect_data(config: Config, *, deep: bool = False, limit: int = LIMIT) -> dict[str, Any]:
    """Returns sizes, label balance, lengths, truncation, coverage, duplicates, overlap and deciding tokens of data.

    Args:
        config: what to read.
        deep: also look for near duplicates and likely wrong labels, which takes half a minute for 25,000 reviews.
        limit: findings of each kind that are listed; all are counted.
    """
    data = prepare(config)
    splits = data.dataset.splits
    findings = _describe_all(data) | _deciding_tokens(data, limit)
    if deep:
        labelled = _Labelled([splits[name] for name in LABELLED if name in splits])
        pairs = near_duplicates(labelled)
        findings |= _near_duplicates(labelled, pairs, data.dataset.labels, limit)
        findings |= _label_errors(labelled, pairs, data.dataset.labels, limit)
    return findings


def _describe_all(data: PreparedData) -> dict[str, Any]:
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


def inspect_file(path: Path, overrides: Sequence[str], *, deep: bool = False, limit: int = LIMIT) -> dict[str, Any]:
    """Guesses a file's columns as `init` does, and inspects it."""
    from bilstm_cls.data.starter import profile_data

    found = profile_data(path, overrides)
    guessed = [
        "data.source=files",
        f"data.train={_quoted(str(path))}",
        f"data.format={found.format}",
        f"data.encoding={_quoted(found.encoding)}",
        *([f"data.text_columns={_quoted(list(found.text_columns))}"] if found.text_columns else []),
        *([f"data.label_column={_quoted(found.label_column)}"] if found.label_column else []),
    ]
    return inspect_data(load_config(None, [*guessed, *overrides]), deep=deep, limit=limit)


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
        "metrics": {k: v for k, v in metrics.items() if not any(word in k for word in _LONG)},
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
            yield from (" " * (indent + 2) + _item(item) for item in value)
        elif isinstance(value, list | tuple):
            yield f"{name}: {', '.join(str(item) for item in value)}"
        else:
            yield f"{name}: {_shown(value)}"


def _item(item: Mapping[str, Any]) -> str:
    """Shows one finding on a line: where it is first, the text last."""
    rest = ", ".join(f"{key} {_shown(value)}" for key, value in item.items() if key not in ("place", "text"))
    place = f"{item['place']}: " if "place" in item else ""
    return f"{place}{rest}{': ' + _printable(item['text']) if 'text' in item else ''}"


class _Labelled(Sequence[str]):
    """The texts of several splits, one after the other, each read when it is asked for."""

    def __init__(self, splits: Sequence[Split]) -> None:
        self.splits = splits
        self.ends = np.cumsum([len(split) for split in splits])
        self.label_ids = np.concatenate([split.label_ids for split in splits])

    def __len__(self) -> int:
        return int(self.ends[-1])

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            begin, end, step = index.indices(len(self))
            assert step == 1
            starts = [0, *self.ends.tolist()]
            parts = (
                split.texts[max(0, begin - start) : max(0, end - start)]
                for split, start in zip(self.splits, starts, strict=False)
            )
            return [text for part in parts for text in part]
        split, own = self.locate(index)
        return split.texts[own]

    def locate(self, index: int) -> tuple[Split, int]:
        """Returns the split of a text and its number there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self.ends, index, side="right"))
        return self.splits[number], index - (int(self.ends[number - 1]) if number else 0)

    def place(self, index: int) -> str:
        """Returns file and line."""
        split, own = self.locate(index)
        return f"{split.paths[own]}:{split.lines[own]}"


def _deciding_tokens(data: PreparedData, limit: int) -> dict[str, Any]:
    train, labels = data.dataset.splits["train"], data.dataset.labels
    found = deciding_tokens(data.corpora["train"], data.tokenizer.tokens, len(labels))
    return {
        "deciding_tokens": {
            "tokens": len(found),
            "found": [
                {
                    "place": f"{train.paths[token.first]}:{train.lines[token.first]}",
                    "token": token.token,
                    "label": labels[token.label_id],
                    "texts": token.texts,
                    "share": round(token.with_label / token.texts, 4),
                }
                for token in found[:limit]
            ],
        }
    }


def _near_duplicates(texts: _Labelled, pairs: Sequence[Pair], labels: Sequence[str], limit: int) -> dict[str, Any]:
    """Lists first the pairs of other labels, then those across splits, then by similarity."""
    kinds: Counter[str] = Counter()
    ranks = []
    for pair in pairs:
        (split, _), (other, _) = texts.locate(pair.second), texts.locate(pair.first)
        kinds[f"{split.name} in {other.name}"] += 1
        ranks.append((texts.label_ids[pair.first] == texts.label_ids[pair.second], split is other, -pair.similarity))
    shown = sorted(range(len(pairs)), key=ranks.__getitem__)[:limit]
    return {
        "near_duplicates": {
            "texts": len(pairs),
            "of another label": sum(not rank[0] for rank in ranks),
            **kinds,
            "found": [
                {
                    "place": texts.place(pairs[i].second),
                    "of": texts.place(pairs[i].first),
                    "similarity": round(pairs[i].similarity, 4),
                    "splits": [texts.locate(place)[0].name for place in (pairs[i].second, pairs[i].first)],
                    "labels": [labels[texts.label_ids[place]] for place in (pairs[i].second, pairs[i].first)],
                    "text": _shortened(texts[pairs[i].second]),
                }
                for i in shown
            ],
        }
    }


def _label_errors(texts: _Labelled, pairs: Sequence[Pair], labels: Sequence[str], limit: int) -> dict[str, Any]:
    groups = clusters(pairs, len(texts))
    rows = np.arange(len(texts))
    if len(texts) > MAX_JUDGED:
        rows = np.sort(np.random.default_rng(0).permutation(len(texts))[:MAX_JUDGED])
    found = label_errors([texts[i] for i in rows.tolist()], texts.label_ids[rows], groups[rows], len(labels))
    answers = found.probabilities.argmax(axis=1)
    return {
        "likely_wrong_labels": {
            "texts": len(found.rows),
            "of": len(rows),
            "found": [
                {
                    "place": texts.place(int(rows[i])),
                    "split": texts.locate(int(rows[i]))[0].name,
                    "label": labels[texts.label_ids[rows[i]]],
                    "likelier": labels[answers[i]],
                    "probability": round(float(found.probabilities[i, answers[i]]), 4),
                    "loss": round(float(found.losses[i]), 4),
                    "text": _shortened(texts[int(rows[i])]),
                }
                for i in found.rows[:limit].tolist()
            ],
        }
    }


def _shortened(text: str) -> str:
    shown = " ".join(text.split())
    return shown if len(shown) <= MAX_SHOWN else shown[: MAX_SHOWN - 1] + "…"


def _describe(data: PreparedData, split: Split) -> dict[str, Any]:
    labels = data.dataset.labels
    counts = np.bincount(split.label_ids, minlength=len(labels)).tolist()
    repeats = Counter(Counter(split.texts).values())
    corpus = data.corpora[split.name]
    quantiles = np.percentile(corpus.num_tokens, _QUANTILES)
    facts = statistics(corpus)
    return {
        **facts,
        "known_tokens": round(1 - facts["unknown"] / max(1, int(corpus.lengths.sum())), 4),
        "lengths": {f"{q}%": int(length) for q, length in zip(_QUANTILES, quantiles, strict=True)},
        "labels": dict(zip(labels, counts, strict=True)),
        "median_length_by_label": {
            label: int(np.median(corpus.num_tokens[split.label_ids == i]))
            for i, label in enumerate(labels)
            if counts[i]
        },
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


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " / ".join(map(_shown, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _quoted(value: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)
