"""From a source to a data set: every row accounted for, split, and written to files."""

import hashlib
import json
import logging
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from bilstm_cls.config import DataConfig
from bilstm_cls.data.sources import Source, source_of
from bilstm_cls.data.splits import cut_splits
from bilstm_cls.data.store import BLOCK, ROW, Array, Texts, cached, chunks, mapped_numbers, release
from bilstm_cls.data.types import BadRow, Dataset, Example, Ints, Label, LabelIds, Split, label_counts, names_in
from bilstm_cls.errors import DataError

logger = logging.getLogger(__name__)

FORMAT = 11  # part of every key of the cache: raise it when what is read from the same files changes
IN_MEMORY = "(in memory)"
MAX_SHOWN = 5
LABELLED = ("train", "valid", "test")
ROWS = "rows.bin"
_NO_LABEL = -1
_EMPTY = 0  # the hash of a text without a visible character, which is no duplicate of another


def load_dataset(config: DataConfig) -> Dataset:
    """Reads and splits the data of a config, or finds in the cache what an earlier call made of the same files.

    `DataError` where something cannot be read, or there is not enough to train on.
    """
    source = source_of(config)
    key = hashlib.sha256(json.dumps([FORMAT, source.identity, config.model_dump()]).encode()).hexdigest()
    dataset = _open(cached("data", key[:32], lambda empty: _build(empty, source, config)))
    if "valid" not in dataset.splits:
        note = "There is no valid split: the best epoch is the best on the texts of train (data.valid: null)."
        splits = dataset.splits | {"valid": replace(dataset.splits["train"], name="valid")}
        dataset = replace(dataset, splits=splits, notes=[*dataset.notes, note])
    for note in dataset.notes:
        logger.warning(note)
    return dataset


def dataset_in_memory(
    texts: Sequence[str], label_ids: LabelIds, labels: list[str], *, valid: float | None, seed: int
) -> Dataset:
    """Splits texts that a program holds, in the way those of a file are split.

    With `valid` None the best epoch is chosen on the texts of train; `DataError` where it is less than one text.
    """
    everything = np.arange(len(texts))
    orders = cut_splits(everything, label_ids, {} if valid is None else {"valid": valid}, seed=seed)
    orders.setdefault("valid", everything)
    content = hashlib.sha256(json.dumps(labels).encode() + label_ids.tobytes())
    for text in texts:
        content.update(text.encode("utf-8", "surrogatepass") + b"\xff")
    splits = {}
    for name, order in orders.items():
        content.update(name.encode() + order.tobytes())
        splits[name] = Split(name, [texts[i] for i in order], label_ids[order], [IN_MEMORY] * len(order), order + 1)
    counts = {"read": len(texts), "used": len(texts), "skipped": 0}
    return Dataset(labels, splits, IN_MEMORY, is_official=False, counts=counts, digest=content.hexdigest())


def _open(folder: Path) -> Dataset:
    meta = json.loads((folder / "dataset.json").read_text("utf-8"))
    paths, splits = np.array(meta.pop("paths"), dtype=object), {}
    for name in meta.pop("splits"):
        rows = mapped_numbers(folder / f"{name}.bin", ROW)
        label_ids = np.load(folder / f"{name}.label_ids.npy", mmap_mode="r", allow_pickle=False)
        texts = Texts(folder / "texts.bin", rows)
        splits[name] = Split(name, texts, label_ids, paths[rows["path_ids"]], rows["lines"])
        release(rows)
    return Dataset(splits=splits, **meta)


class _Table:
    """All rows of a source as they are read: their texts in one file, and what is known of them in another."""

    def __init__(self, texts: IO[bytes], rows: IO[bytes], group_column: str | None) -> None:
        self.group_column, self._texts, self._rows = group_column, texts, rows
        self.labels: dict[Label, int] = {}  # numbers of all different sets, where texts have several
        self.paths: dict[str, int] = {}
        self.num_rows = self._end = 0
        self.content = hashlib.sha256()

    def add(self, example: Example) -> None:
        text, label = example.text.encode("utf-8", "surrogatepass"), example.label
        digest = hashlib.blake2b(text, digest_size=32).digest()
        self.content.update(digest)
        start = self._end
        self.num_rows, self._end = self.num_rows + 1, start + self._texts.write(text)
        row = (
            start,
            self._end,
            _NO_LABEL if label is None else self.labels.setdefault(label, len(self.labels)),
            self.paths.setdefault(example.path, len(self.paths)),
            example.line,
            0 if self.group_column is None else _group(example, self.group_column),
            _number(digest) if example.text.strip() else _EMPTY,
        )
        self._rows.write(struct.pack(f"={len(row)}q", *row))


def _group(example: Example, column: str) -> int:
    if example.record is None or column not in example.record:
        raise DataError(f"{example.path}:{example.line}: has no column {column!r} (data.group_column)")
    value = str(example.record[column]).encode("utf-8", "surrogatepass")
    return _number(hashlib.blake2b(value, digest_size=8).digest())


def _number(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "little", signed=True)


def _build(folder: Path, source: Source, config: DataConfig) -> None:
    bad_rows: list[BadRow] = []
    given: dict[str, Ints] = {}
    with (folder / "texts.bin").open("wb") as texts, (folder / ROWS).open("wb") as places:
        table = _Table(texts, places, config.group_column)
        for name, reader in source.read.items():
            start, known = table.num_rows, frozenset(name for label in table.labels for name in names_in(label))
            known |= {*source.labels} if config.labels == "multi" else set()
            for example in reader(bad_rows.append):
                if name not in ("valid", "test") or not _has_new_label(example, known, config, bad_rows):
                    table.add(example)
            given[name] = np.arange(start, table.num_rows)
    rows = mapped_numbers(folder / ROWS, ROW)
    label_ids, labels = _sorted_labels(table, rows["label_ids"], source.labels, is_multi=config.labels == "multi")
    if len(given["train"]) == 0:
        skipped = f"; {len(bad_rows)} rows were skipped, the first: {bad_rows[0]}" if bad_rows else ""
        raise DataError(f"{source.origin}: there is no text to train on{skipped}")
    splits = cut_splits(
        given["train"], label_ids, source.fractions, seed=config.split_seed, valid_split=config.valid_split,
        groups=None if config.group_column is None else rows["groups"],
    )  # fmt: skip
    orders = {**given, **splits}
    orders = {name: orders[name] for name in (*LABELLED, "unlabelled") if len(orders.get(name, ()))}
    _check(orders, label_ids, labels, source)
    num_skipped = sum(not row.is_read for row in bad_rows)
    counts = {"read": table.num_rows + num_skipped, "used": table.num_rows, "skipped": num_skipped}
    counts |= {"left_out": len(splits["left_out"])} if "left_out" in splits else {}
    counts |= _repeats(orders, rows["hashes"])
    notes = [*source.notes, *_notes_on_rows(bad_rows)]
    if overlap := counts.get("test_in_train"):
        notes.append(f"{overlap} test texts are exact duplicates of training texts.")
    notes += _notes_on_splits(orders, given, label_ids, len(labels), rows["hashes"])
    _write(folder, rows, table.content, orders, label_ids, labels)
    meta = {
        "labels": labels,
        "paths": list(table.paths),
        "origin": source.origin,
        "is_official": source.is_official,
        "counts": counts,
        "notes": notes,
        "digest": table.content.hexdigest(),
        "splits": list(orders),
    }
    (folder / "dataset.json").write_text(json.dumps(meta, ensure_ascii=False), "utf-8")
    (folder / ROWS).unlink()


def _write(
    folder: Path, rows: Array, content: Any, orders: Mapping[str, Ints], label_ids: LabelIds, labels: list[str]
) -> None:
    """Writes the rows of each split, and adds them to the digest of all content."""
    content.update(json.dumps(labels).encode())
    content.update(label_ids.data)
    for name, order in orders.items():
        content.update(name.encode())
        content.update(order.data)
        np.save(folder / f"{name}.label_ids.npy", label_ids[order], allow_pickle=False)
        with (folder / f"{name}.bin").open("wb") as file:
            for part in chunks(order, BLOCK):
                file.write(rows[part].data)
                release(rows)


def _has_new_label(example: Example, known: frozenset[str], config: DataConfig, bad_rows: list[BadRow]) -> bool:
    """Whether a row of valid or test has a label that no text of train has: never a new class."""
    new = [name for name in names_in(example.label) if name not in known]
    if not new:
        return False
    reason = f"label {new[0]!r} does not occur in train, whose labels are {', '.join(sorted(known)[:20])}"
    bad_rows.append(BadRow(example.path, example.line, reason))
    if config.bad_rows == "error":
        raise DataError(f"{bad_rows[-1]}; fix it, or set data.bad_rows to skip")
    return True


def _sorted_labels(table: _Table, ids: Ints, order: list[str], *, is_multi: bool) -> tuple[LabelIds, list[str]]:
    """Numbers the labels in the source's order, else by value where all are whole numbers, else by alphabet."""
    names = {name for label in table.labels for name in names_in(label)}
    is_numeric = all(name.isascii() and name.isdigit() for name in names)
    labels = sorted(names, key=(lambda name: (int(name), name)) if is_numeric else None)
    if order:
        labels = [name for name in order if is_multi or name in names]
    places = {name: place for place, name in enumerate(labels)}
    if is_multi:
        rows = np.zeros((len(table.labels) + 1, len(labels)), dtype=np.uint8)  # the last one of texts without labels
        for row, label in zip(rows, table.labels, strict=False):
            row[[places[name] for name in names_in(label)]] = 1
        return rows[ids], labels
    ranks = np.array([*(places[name] for label in table.labels for name in names_in(label)), _NO_LABEL])
    return ranks[ids], labels


def _check(orders: Mapping[str, Ints], label_ids: LabelIds, labels: list[str], source: Source) -> None:
    if np.count_nonzero(label_counts(label_ids[orders["train"]], len(labels))) < 2:
        found = f"only the label {labels[0]!r}" if labels else "no label"
        raise DataError(f"{source.origin}: {found} in train; a classifier needs at least two")
    for name in ("valid", "test"):
        if name in source.read and name not in orders:
            raise DataError(f"{source.origin}: there is no text in {name}")


def _repeats(orders: Mapping[str, Ints], hashes: Ints) -> dict[str, int]:
    """Counts exact duplicates within a split, and texts of one split that another has too; not empty ones."""
    prints = {name: hashes[orders[name]] for name in LABELLED if name in orders}
    prints = {name: values[values != _EMPTY] for name, values in prints.items()}
    for values in prints.values():
        values.sort()  # in its place: there may be a hundred million
    counts = {f"duplicates_{name}": int((values[1:] == values[:-1]).sum()) for name, values in prints.items()}
    for one, other in (("valid", "train"), ("test", "train"), ("test", "valid")):
        if one in prints and other in prints:
            first, last = (np.searchsorted(prints[other], prints[one], side) for side in ("left", "right"))
            counts[f"{one}_in_{other}"] = int((first < last).sum())
    return counts


def _notes_on_rows(bad_rows: list[BadRow]) -> Iterator[str]:
    doubtful, lost = ([row for row in bad_rows if row.is_read == is_read] for is_read in (True, False))
    title = f"{len(lost)} rows of {len({row.path for row in lost})} files could not be used"
    for what, rows in ((title, lost), ("Remarks of the readers", doubtful)):
        more = f" and {len(rows) - MAX_SHOWN} more" if len(rows) > MAX_SHOWN else ""
        if rows:
            yield f"{what}: {'; '.join(map(str, rows[:MAX_SHOWN]))}{more}."


def _notes_on_splits(
    orders: Mapping[str, Ints], given: Mapping[str, Ints], label_ids: LabelIds, num_labels: int, hashes: Ints
) -> Iterator[str]:
    labelled = np.concatenate([orders[name] for name in LABELLED if name in orders])
    num_empty = int((hashes[labelled] == _EMPTY).sum())
    if 3 * num_empty >= len(labelled):
        yield f"{num_empty} of {len(labelled)} texts are empty."
    in_train = label_counts(label_ids[orders["train"]], num_labels)
    for name in ("valid", "test"):
        if name in orders and name not in given:
            is_absent = (label_counts(label_ids[orders[name]], num_labels) == 0) & (in_train > 0)
            if is_absent.any():
                number, texts = is_absent.sum(), in_train[is_absent].sum()
                yield f"{number} of {np.count_nonzero(in_train)} labels, with {texts} texts, have no text in {name}."
