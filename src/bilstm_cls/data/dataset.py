"""From a source to a data set: every row accounted for, split, and laid down in files."""

import contextlib
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bilstm_cls.config import DataConfig
from bilstm_cls.data.columns import alike_labels
from bilstm_cls.data.sources import Source, source_of
from bilstm_cls.data.store import (
    NumberWriter,
    Texts,
    TextWriter,
    cached,
    load_array,
    mapped_numbers,
    release,
    save_arrays,
)
from bilstm_cls.data.types import BadRow, Dataset, Example, Split
from bilstm_cls.errors import DataError

logger = logging.getLogger(__name__)

FORMAT = 4
"""Part of every key of the cache: raise it when what is read from the same files changes."""

IN_MEMORY = "(in memory)"
"""What stands in the place of a file's name where texts never were in a file."""

MAX_TOLD = 5
LABELLED = ("train", "valid", "test")
_NO_LABEL = -1

_COLUMNS = ("label_ids", "path_ids", "lines", "fingerprints")

Ints = npt.NDArray[np.int64]


def load_dataset(config: DataConfig) -> Dataset:
    """Reads and splits the data of a config, or finds in the cache what an earlier call made of the same files.

    Raises:
        DataError: something cannot be read, or there is not enough to train on.
    """
    source = source_of(config)
    key = hashlib.sha256(json.dumps([FORMAT, source.identity, config.model_dump()]).encode()).hexdigest()
    folder = cached("data", key[:32], lambda empty: _build(empty, source, config))
    dataset = _open(folder)
    for note in dataset.notes:
        logger.warning(note)
    return dataset


def dataset_in_memory(
    texts: Sequence[str], label_ids: Ints, labels: list[str], *, valid: float | None, seed: int
) -> Dataset:
    """Splits texts that a program holds, in the way those of a file are split.

    Args:
        texts: N raw texts.
        label_ids: `[N]`, indices into `labels`.
        labels: class names, at least two of them with a text.
        valid: the share of each label that chooses the best epoch; with None it is chosen on the texts of train.
        seed: of the split.

    Raises:
        DataError: the share is less than one text of every label.
    """
    everything = np.arange(len(texts))
    orders = _split({"train": everything}, label_ids, {} if valid is None else {"valid": valid}, seed)
    orders.setdefault("valid", everything)
    content = hashlib.sha256(json.dumps(labels).encode() + label_ids.tobytes())
    for text in texts:
        content.update(text.encode("utf-8", "surrogatepass") + b"\xff")
    splits = {}
    for name, order in orders.items():
        content.update(name.encode() + order.tobytes())
        paths = _Picked([IN_MEMORY], np.zeros_like(order))
        splits[name] = Split(name, [texts[i] for i in order], label_ids[order], paths, order + 1)
    counts = {"read": len(texts), "used": len(texts), "skipped": 0}
    return Dataset(labels, splits, IN_MEMORY, is_official=False, counts=counts, digest=content.hexdigest())


def _open(folder: Path) -> Dataset:
    meta = json.loads((folder / "dataset.json").read_text("utf-8"))
    offsets = mapped_numbers(folder / "offsets.bin")
    splits = {}
    for name in meta["splits"]:
        arrays = {key: load_array(folder, f"{name}.{key}") for key in ("order", "label_ids", "path_ids", "lines")}
        splits[name] = Split(
            name=name,
            texts=Texts(folder / "texts.bin", offsets, arrays["order"]),
            label_ids=arrays["label_ids"],
            paths=_Picked(meta["paths"], arrays["path_ids"]),
            lines=arrays["lines"],
        )
    return Dataset(
        labels=meta["labels"],
        splits=splits,
        origin=meta["origin"],
        is_official=meta["is_official"],
        counts=meta["counts"],
        notes=meta["notes"],
        digest=meta["digest"],
    )


class _Picked(Sequence[str]):
    """Names by number, so that a name that many texts share is held once."""

    def __init__(self, names: list[str], ids: npt.NDArray[Any]) -> None:
        self._names, self._ids = names, ids

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: Any) -> Any:
        return self._names[self._ids[index]]


class _Table:
    """All rows of a source as they are read, but for their texts: a file of numbers for each column."""

    def __init__(self, folder: Path) -> None:
        self.labels: dict[str, int] = {}
        self.paths: dict[str, int] = {}
        self.num_rows = 0
        self.content = hashlib.sha256()
        self.label_ids, self.path_ids, self.lines, self.fingerprints = (
            NumberWriter(folder / f"{name}.bin") for name in _COLUMNS
        )

    def add(self, example: Example) -> None:
        self.num_rows += 1
        coded = example.text.encode("utf-8", "surrogatepass")
        self.content.update(coded)
        self.content.update(b"\xff")  # a byte that no text holds
        fingerprint = hashlib.blake2b(coded, digest_size=8).digest()
        self.fingerprints.append(int.from_bytes(fingerprint, "little", signed=True))
        label = example.label
        self.label_ids.append(_NO_LABEL if label is None else self.labels.setdefault(label, len(self.labels)))
        self.path_ids.append(self.paths.setdefault(example.path, len(self.paths)))
        self.lines.append(example.line)

    def __enter__(self) -> "_Table":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.ExitStack() as stack:  # a full disk may stop any of them
            for column in (self.label_ids, self.path_ids, self.lines, self.fingerprints):
                stack.callback(column.close)


def _build(folder: Path, source: Source, config: DataConfig) -> None:
    bad_rows: list[BadRow] = []
    own: dict[str, Ints] = {}
    with TextWriter(folder / "texts.bin") as writer, _Table(folder) as table:
        for name, reader in source.read.items():
            start, known = table.num_rows, frozenset(table.labels)
            for example in reader(bad_rows.append):
                if _is_strange(example, name, known, config, bad_rows):
                    continue
                writer.append(example.text)
                table.add(example)
            own[name] = np.arange(start, table.num_rows)
    label_ids, labels = _sorted_labels(table, source.labels)
    if len(own["train"]) == 0:
        raise DataError(f"{source.origin}: there is no text to train on{_first_of(bad_rows)}")
    orders = _split(own, label_ids, source.fractions, config.split_seed)
    _check(orders, label_ids, labels, source)
    doubtful = [row for row in bad_rows if row.is_read]
    bad_rows = [row for row in bad_rows if not row.is_read]
    counts = {"read": table.num_rows + len(bad_rows), "used": table.num_rows, "skipped": len(bad_rows)}
    repeats = _repeats(orders, table.fingerprints.mapped())
    table.content.update(json.dumps(labels).encode())
    table.content.update(label_ids.data)
    for name, order in orders.items():
        table.content.update(name.encode())
        table.content.update(order.data)
        save_arrays(folder, **{f"{name}.order": order, f"{name}.label_ids": label_ids[order]})
        save_arrays(folder, **{f"{name}.path_ids": table.path_ids.mapped()[order]})
        save_arrays(folder, **{f"{name}.lines": table.lines.mapped()[order]})
    for name in _COLUMNS:
        (folder / f"{name}.bin").unlink()
    meta = {
        "labels": labels,
        "paths": list(table.paths),
        "origin": source.origin,
        "is_official": source.is_official,
        "counts": counts | repeats,
        "notes": [*source.notes, *_notes(bad_rows, doubtful, repeats), *_alike(labels)],
        "digest": table.content.hexdigest(),
        "splits": list(orders),
    }
    (folder / "dataset.json").write_text(json.dumps(meta, ensure_ascii=False), "utf-8")


def _is_strange(
    example: Example, split: str, known: frozenset[str], config: DataConfig, bad_rows: list[BadRow]
) -> bool:
    """Whether a row of valid or test has a label that no text of train has: never a new class, and never dropped
    without a word."""
    if split not in ("valid", "test") or example.label in known:
        return False
    reason = f"label {example.label!r} does not occur in train, whose labels are {', '.join(sorted(known)[:20])}"
    row = BadRow(example.path, example.line, reason)
    if config.bad_rows == "error":
        raise DataError(f"{row}; mend it, or set data.bad_rows to skip")
    bad_rows.append(row)
    return True


def _sorted_labels(table: _Table, order: list[str]) -> tuple[Ints, list[str]]:
    """Numbers the labels in the source's order, else by value where all are whole numbers, else by alphabet."""
    is_numeric = all(label.isascii() and label.isdigit() for label in table.labels)
    labels = sorted(table.labels, key=(lambda label: (int(label), label)) if is_numeric else None)
    if order:
        labels = [label for label in order if label in table.labels]
    ranks = np.array([*(labels.index(label) for label in table.labels), _NO_LABEL], dtype=np.int64)
    return ranks[table.label_ids.mapped()], labels


def _split(own: dict[str, Ints], label_ids: Ints, fractions: Mapping[str, float], seed: int) -> dict[str, Ints]:
    """Cuts `test` and then `valid` out of train where they have no texts of their own, the same share of each label."""
    orders = dict(own)
    train = own["train"]
    size = len(train)
    for number, name in enumerate(("test", "valid")):
        if name not in fractions:
            continue
        generator = np.random.Generator(np.random.PCG64([seed, number]))
        own_ids = label_ids[train]
        taken = [_sample(train[own_ids == i], fractions[name], generator) for i in np.flatnonzero(np.bincount(own_ids))]
        chosen = np.sort(np.concatenate(taken)) if taken else np.empty(0, dtype=np.int64)
        if len(chosen) == 0:
            raise DataError(
                f"data.{name}: the share {fractions[name]:g} of {size} texts is less than one text of every label; "
                f"give more texts, a greater share, or a file"
            )
        orders[name] = chosen
        is_left = np.ones(len(label_ids), dtype=bool)
        is_left[chosen] = False
        train = train[is_left[train]]
    orders["train"] = train
    return {name: orders[name] for name in (*LABELLED, "unlabelled") if name in orders and len(orders[name])}


def _sample(places: Ints, fraction: float, generator: np.random.Generator) -> Ints:
    """Some of one label's texts, never all of them."""
    number = min(round(fraction * len(places)), len(places) - 1)
    return generator.permutation(places)[:number].copy()  # a view would keep all of them


def _first_of(bad_rows: list[BadRow]) -> str:
    return f"; {len(bad_rows)} rows were skipped, the first: {bad_rows[0]}" if bad_rows else ""


def _check(orders: Mapping[str, Ints], label_ids: Ints, labels: list[str], source: Source) -> None:
    present = np.unique(label_ids[orders["train"]])
    if len(present) < 2:
        found = f"only the label {labels[0]!r}" if labels else "no label"
        raise DataError(f"{source.origin}: {found} in train; a classifier needs at least two")
    for name in ("valid", "test"):
        if name in source.read and name not in orders:
            raise DataError(f"{source.origin}: there is no text in {name}")


def _repeats(orders: Mapping[str, Ints], fingerprints: Ints) -> dict[str, int]:
    """Counts texts that stand in a split twice, and texts of one split that stand in another, word for word."""
    prints = {name: fingerprints[orders[name]] for name in LABELLED if name in orders}
    release(fingerprints)
    for values in prints.values():
        values.sort()
    counts = {f"duplicates_{name}": int((values[1:] == values[:-1]).sum()) for name, values in prints.items()}
    for one, other in (("valid", "train"), ("test", "train"), ("test", "valid")):
        if one in prints and other in prints:
            counts[f"{one}_in_{other}"] = _number_in(prints[one], prints[other])
    return counts


def _number_in(values: Ints, known: Ints) -> int:
    """Returns how many of some sorted numbers are among others, sorted too and at least one."""
    places = np.searchsorted(known, values)
    return int((known[np.minimum(places, len(known) - 1)] == values).sum())


def _notes(bad_rows: list[BadRow], doubtful: list[BadRow], repeats: Mapping[str, int]) -> list[str]:
    notes = []
    if bad_rows:
        num_files = len({row.path for row in bad_rows})
        notes.append(f"{len(bad_rows)} rows of {num_files} files could not be used: {_told(bad_rows)}.")
    if doubtful:
        notes.append(f"Remarks of the readers: {_told(doubtful)}.")
    overlap = repeats.get("test_in_train", 0)
    if overlap:
        stand = "text stands" if overlap == 1 else "texts stand"
        notes.append(f"{overlap} test {stand} word for word in train.")
    return notes


def _alike(labels: Sequence[str]) -> list[str]:
    return [
        f"The labels {', '.join(map(ascii, group))} look alike and count as {len(group)}; if they are one, fix them."
        for group in alike_labels(labels)
    ][:MAX_TOLD]


def _told(rows: list[BadRow]) -> str:
    more = f" and {len(rows) - MAX_TOLD} more" if len(rows) > MAX_TOLD else ""
    return "; ".join(map(str, rows[:MAX_TOLD])) + more
