"""The Hugging Face Hub: addresses, snapshots of repositories, and data sets by way of the library `datasets`."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bilstm_cls.data.readers import SPLITS as FILE_SPLITS
from bilstm_cls.errors import ConfigError, DataError

OFFLINE_VARIABLE = "BILSTM_CLS_OFFLINE"

SPLITS = FILE_SPLITS | dict.fromkeys(("unsupervised", "unlabelled", "unlabeled"), "unlabelled")


class DownloadError(DataError):
    """A file that could not be downloaded. Exit code 3."""


class UnreachableError(DownloadError):
    """No server answered: there is no network, or it is switched off. Other data may be used instead."""


@dataclass(frozen=True)
class Address:
    """A repository of the Hub, such as `user/name`, `name:subset` or `user/name@revision`.

    The subset is of a data set that has several; the revision is a branch, tag or commit, None for the newest.
    """

    repository: str
    subset: str | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Reads an address, with `hf://` or `hf/` in front of it or not, or raises ConfigError."""
        name = r"[A-Za-z0-9][\w.-]*"
        match = re.fullmatch(rf"(?:hf:?/+)?({name}(?:/{name})?)(?::([^:@\s]+))?(?:@([^:@\s]+))?", text)
        if match is None:
            raise ConfigError(f"{text!r} is no repository of the Hub; write user/name or user/name@revision")
        return cls(*match.groups())

    def __str__(self) -> str:
        subset, revision = self.subset and f":{self.subset}", self.revision and f"@{self.revision}"
        return f"{self.repository}{subset or ''}{revision or ''}"


def hub() -> Any:
    """Returns the library `huggingface_hub`."""
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
    return os.environ.get(OFFLINE_VARIABLE, "0") not in ("", "0")


@contextlib.contextmanager
def naming_hub_faults(address: Address) -> Iterator[None]:
    """Turns what goes wrong with a repository into a ConfigError, UnreachableError or DownloadError with advice."""
    errors = hub().errors
    of_the_network = errors.HfHubHTTPError.__bases__  # of the HTTP library that it is built on
    try:
        yield
    except (OSError, errors.HFValidationError, errors.LocalEntryNotFoundError, *of_the_network) as error:
        status = _status_in(error)
        if status in (401, 403, 404) or isinstance(error, errors.HFValidationError):
            advice = "you may not use it; check the name, or log in with `hf auth login`"
            raise ConfigError(f"hf://{address}: there is no such repository or revision, or {advice}") from error
        if status is not None:
            raise DownloadError(f"hf://{address}: the Hub answers with status {status}; try again later") from error
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise  # of this machine's disk
        reason = f"{OFFLINE_VARIABLE} is set" if is_offline() else "the Hub cannot be reached"
        raise UnreachableError(f"hf://{address}: not in the cache, and {reason}") from error


def _status_in(error: BaseException | None) -> int | None:
    while error is not None:
        if (response := getattr(error, "response", None)) is not None:
            return int(response.status_code)
        error = error.__cause__ or error.__context__
    return None


def download(address: Address, *, patterns: Sequence[str]) -> Path:
    """Returns a folder with the files of a model's repository that match one of the patterns."""
    with naming_hub_faults(address):
        folder = hub().snapshot_download(
            address.repository, revision=address.revision, allow_patterns=list(patterns),
            local_files_only=is_offline(), endpoint=endpoint(),
        )  # fmt: skip
    return Path(folder)


def load_hub_dataset(address: Address, label_column: str) -> dict[str, Any]:
    """Returns a `datasets.Dataset` for each of train, valid, test and unlabelled that there is, in this order.

    The library keeps what it downloads. A split whose labels are all -1, which marks secret ones in a competition, is
    left out. Errors are those of `naming_hub_faults`, or DataError where a subset must be named, it cannot be read, or
    there is no split `train`.
    """
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"data of the Hub need datasets; run: pip install 'bilstm-cls[hub]' ({error})") from error
    if is_offline():
        advice = "set HF_HUB_OFFLINE=1 instead to use what datasets has cached"
        raise UnreachableError(f"hf://{address}: {OFFLINE_VARIABLE} is set; {advice}")
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    with naming_hub_faults(address):
        try:
            loaded = datasets.load_dataset(address.repository, address.subset, revision=address.revision)
        except datasets.exceptions.DatasetNotFoundError as error:
            raise ConfigError(f"hf://{address}: {error} Check the name, or log in with `hf auth login`.") from error
        except (RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
            reason = " ".join(str(error.__cause__ or error).split())[:300]
            advice = f"try a subset, hf/{address.repository}:SUBSET, or for a script {address}@refs/convert/parquet"
            raise DataError(f"hf://{address}: cannot be read ({reason}); {advice}") from error
    splits = {SPLITS[name.lower()]: split for name, split in loaded.items() if name.lower() in SPLITS and len(split)}
    if "train" not in splits:
        raise DataError(f"hf://{address}: has no split 'train' (its splits: {', '.join(loaded)}); save it to files")
    names = [
        name for name in ("train", "valid", "test") if name in splits and not _is_secret(splits[name], label_column)
    ]
    return {name: splits[name] for name in [*names, "unlabelled"] if name in splits}


def _is_secret(split: Any, label_column: str) -> bool:
    column = split.features.get(label_column)
    return str(getattr(column, "dtype", "")).startswith("int") and {*split.unique(label_column)} <= {-1}
