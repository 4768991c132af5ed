"""The Hugging Face Hub: addresses, downloads into its own cache, and which files of a data set are which split.

Files are taken as they are and read by this project's readers: a repository's own code is never downloaded.
"""

import contextlib
import fnmatch
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bilstm_cls.config_file import parse_yaml
from bilstm_cls.errors import ConfigError, DataError

OFFLINE_VARIABLE = "BILSTM_CLS_OFFLINE"

SPLITS = {
    "train": "train", "training": "train",
    "validation": "valid", "valid": "valid", "dev": "valid", "val": "valid",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
    "unsupervised": "unlabelled", "unlabelled": "unlabelled", "unlabeled": "unlabelled", "unsup": "unlabelled",
}  # fmt: skip
"""What data sets call their splits."""

SUFFIXES = {".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
CONVERTED = "refs/convert/parquet"
"""Where the Hub itself keeps the Parquet files of a data set that has others."""


class DownloadError(DataError):
    """A file that could not be downloaded. Exit code 3."""


class UnreachableError(DownloadError):
    """No server answered: there is no network, or it is switched off. Other data may be used instead."""


@dataclass(frozen=True)
class Address:
    """A repository of the Hub, such as `user/name`, `name:subset` or `user/name@revision`.

    Attributes:
        repository: `user/name`, or the name alone.
        subset: of a data set that has several.
        revision: a branch, tag or commit; None for the newest.
    """

    repository: str
    subset: str | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Reads an address, with `hf://` or `hf/` in front of it or not.

        Raises:
            ConfigError: it is none.
        """
        name = r"[A-Za-z0-9][\w.-]*"
        match = re.fullmatch(rf"(?:hf:?/+)?({name}(?:/{name})?)(?::([^:@\s]+))?(?:@([^:@\s]+))?", text)
        if match is None:
            raise ConfigError(f"{text!r} is no repository of the Hub; write user/name or user/name@revision")
        return cls(*match.groups())

    def __str__(self) -> str:
        return (
            self.repository + (f":{self.subset}" if self.subset else "") + (f"@{self.revision}" * bool(self.revision))
        )


@dataclass(frozen=True)
class HubDataset:
    """The files of a data set, in the cache of the Hub's library.

    Attributes:
        files: by split: train, valid, test, unlabelled; each in order.
        label_names: of labels that are numbers, by number; empty where the data set has none.
    """

    files: dict[str, list[Path]]
    label_names: list[str]


def hub() -> Any:
    """Returns the library `huggingface_hub`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import huggingface_hub
        import huggingface_hub.errors
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError as error:
        raise ConfigError(f"the Hub needs huggingface_hub; run: pip install 'bilstm-cls[hub]' ({error})") from error
    if not sys.stderr.isatty():
        disable_progress_bars()
    return huggingface_hub


def endpoint() -> str | None:
    """Returns where the Hub is, if the environment says so; the library itself reads that only once."""
    return os.environ.get("HF_ENDPOINT") or None


def is_offline() -> bool:
    """Whether nothing may be asked over the network."""
    return os.environ.get(OFFLINE_VARIABLE, "0") not in ("", "0")


@contextlib.contextmanager
def naming_hub_faults(address: Address) -> Iterator[None]:
    """Says in our words what goes wrong with a repository.

    Raises:
        ConfigError: there is no such repository, revision or permission.
        UnreachableError: the Hub does not answer, or may not be asked.
        DownloadError: it answers with a fault of its own.
    """
    errors = hub().errors
    of_the_network = errors.HfHubHTTPError.__bases__  # of the HTTP library that it is built on
    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise ConfigError(f"hf://{address}: there is no such revision") from error
    except errors.RepositoryNotFoundError as error:  # the Hub does not tell a private one from none
        raise ConfigError(
            f"hf://{address}: there is no such repository, or you may not read it; check the name, or log in with "
            f"`hf auth login`"
        ) from error
    except errors.HFValidationError as error:
        raise ConfigError(f"hf://{address}: is no name that the Hub takes") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise ConfigError(f"hf://{address}: not allowed (status {status}); log in with `hf auth login`") from error
        raise DownloadError(f"hf://{address}: the Hub answers with status {status}; try again later") from error
    except (OSError, errors.LocalEntryNotFoundError, *of_the_network) as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise  # of this machine's disk
        reason = f"{OFFLINE_VARIABLE} is set" if is_offline() else "the Hub cannot be reached"
        raise UnreachableError(f"hf://{address}: not in the cache, and {reason}") from error


def download(address: Address, *, kind: str, patterns: Sequence[str]) -> Path:
    """Returns a folder with the files of a repository that match one of the patterns; unchanged ones are not fetched.

    Args:
        address: of the repository.
        kind: `model` or `dataset`.
        patterns: of paths in the repository.

    Raises:
        ConfigError, DownloadError: as `naming_hub_faults` says.
    """
    with naming_hub_faults(address):
        folder = hub().snapshot_download(
            address.repository,
            repo_type=kind,
            revision=address.revision,
            allow_patterns=list(patterns),
            local_files_only=is_offline(),
            endpoint=endpoint(),
        )
    return Path(folder)


def fetch_dataset(address: Address, label_column: str) -> HubDataset:
    """Fetches a data set's files and says which split each belongs to.

    The card's `configs` decide; without them, the names of files and folders. Where there is no file that can be read
    the Parquet files that the Hub has made are taken. A split whose labels are kept secret is left out.

    Args:
        address: of the data set.
        label_column: whose numbers may have names.

    Raises:
        ConfigError: there is no such data set, or its subset must be named.
        DataError: nothing in it can be read.
    """
    card = _card(download(address, kind="dataset", patterns=["README.md"]) / "README.md")
    found = _fetch_splits(address, _globs(card, address))
    if not found and address.revision is None:
        converted = Address(address.repository, address.subset, CONVERTED)
        with contextlib.suppress(ConfigError):  # there is no such branch where the Hub could not convert
            found = _fetch_splits(converted, {"": [f"{address.subset or '*'}/*/*.parquet"]})
    if "train" not in found:
        raise DataError(
            f"hf://{address}: has no files of a split 'train' that can be read ({', '.join(SUFFIXES)}); download what "
            f"you need and name it with data.train"
        )
    kept: dict[str, list[Path]] = {
        name: found[name]
        for name in ("train", "valid", "test", "unlabelled")
        if name in found and (name == "unlabelled" or _has_labels(found[name], label_column))
    }
    return HubDataset(kept, _names_in_file(found["train"][0], label_column) or _names_in_card(card, label_column))


def _fetch_splits(address: Address, globs: dict[str, list[str]]) -> dict[str, list[Path]]:
    """Downloads what matches, and sorts it by split: that of the glob, or where that is empty by the path's words."""
    folder = download(address, kind="dataset", patterns=[glob for several in globs.values() for glob in several])
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    found: dict[str, list[Path]] = {}
    subsets: set[str] = set()
    for split, several in globs.items():
        for name in names:
            if PurePosixPath(name).suffix in SUFFIXES and any(fnmatch.fnmatchcase(name, glob) for glob in several):
                home = PurePosixPath(name).parts[0] if "/" in name else ""
                if home != "data" and not split and _split_in(home) is None:
                    subsets.add(home)
                if of_file := split or _split_of(name):
                    found.setdefault(of_file, []).append(folder / name)
    if address.subset is None and len(subsets) > 1:
        raise ConfigError(_subsets(address, sorted(subsets)))
    return found


def _split_of(name: str) -> str | None:
    """Returns the split that a path speaks of: its last part that names one."""
    return next(filter(None, map(_split_in, reversed(PurePosixPath(name).parts))), None)


def _split_in(part: str) -> str | None:
    return next((SPLITS[word] for word in re.split(r"[^a-z]+", part.lower()) if word in SPLITS), None)


def _subsets(address: Address, names: Sequence[str]) -> str:
    example = Address(address.repository, names[0], address.revision)
    return f"hf://{address}: has the subsets {', '.join(names)}; name one, as in hf/{example}"


def _globs(card: dict[str, Any], address: Address) -> dict[str, list[str]]:
    """Returns the patterns of each split as the card gives them, or of all readable files under the empty name."""
    configs = {str(item.get("config_name")): item for item in _mappings(card.get("configs"))}
    if not configs:
        folder = f"{address.subset}/" if address.subset else ""
        return {"": [f"{folder}*{suffix}" for suffix in SUFFIXES]}
    default = [name for name, item in configs.items() if item.get("default") is True or name == "default"]
    names = [address.subset] if address.subset else default[:1] or list(configs)
    if len(names) > 1 or names[0] not in configs:
        raise ConfigError(_subsets(address, list(configs)))
    entries = configs[names[0]].get("data_files")
    globs: dict[str, list[str]] = {}
    for entry in entries if isinstance(entries, list) else [entries]:
        if isinstance(entry, dict):
            paths, split = entry.get("path"), SPLITS.get(str(entry.get("split")).lower())
            if split is None:
                continue
        else:
            paths, split = entry, ""
        globs.setdefault(split, []).extend(str(path) for path in (paths if isinstance(paths, list) else [paths]))
    return globs


def _card(path: Path) -> dict[str, Any]:
    """Returns the YAML in front of a card; empty where there is none that can be read."""
    if not path.exists():
        return {}
    match = re.match(r"---\r?\n(.*?)\r?\n---", path.read_text("utf-8", errors="replace"), re.DOTALL)
    value = parse_yaml(match[1]).value if match else None
    return value if isinstance(value, dict) else {}


def _names_in_file(path: Path, column: str) -> list[str]:
    """Returns the names of a column's numbers, which the library `datasets` writes into Parquet files."""
    if path.suffix != ".parquet":
        return []
    try:
        metadata = _parquet(path).schema_arrow.metadata
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][column]
        return _checked_names(feature["names"])
    except (LookupError, TypeError, ValueError):
        return []


def _names_in_card(card: dict[str, Any], column: str) -> list[str]:
    for facts in _mappings(card.get("dataset_info")):
        for feature in _mappings(facts.get("features")):
            kind = feature.get("dtype")
            if feature.get("name") == column and isinstance(kind, dict) and isinstance(kind.get("class_label"), dict):
                names = kind["class_label"].get("names")
                return _checked_names(list(names.values()) if isinstance(names, dict) else names)
    return []


def _checked_names(names: Any) -> list[str]:
    is_sound = isinstance(names, list) and all(isinstance(name, str) and name.strip() for name in names)
    return names if is_sound and len(set(names)) == len(names) else []


def _has_labels(files: Sequence[Path], column: str) -> bool:
    """Whether a label is not -1, which stands for a secret one in the test split of a competition."""
    for path in files:
        if path.suffix != ".parquet":
            return True
        table = _parquet(path)
        if column not in table.schema_arrow.names or not str(table.schema_arrow.field(column).type).startswith("int"):
            return True
        labels = table.read(columns=[column]).column(column).unique().to_pylist()
        if any(label is None or label >= 0 for label in labels):
            return True
    return False


def _parquet(path: Path) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError(f"the Hub's data need pyarrow; run: pip install 'bilstm-cls[hub]' ({error})") from error
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from error


def _mappings(value: Any) -> list[dict[str, Any]]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, dict)]
