"""The Hugging Face Hub: addresses, snapshots of repositories, and data sets by way of the library `datasets`.

`datasets` 4 and later execute no code of a repository; one that needs a script is read from the Parquet files
that the Hub has made of it.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bilstm_cls.config import DataConfig
from bilstm_cls.data.store import cache_folder
from bilstm_cls.data.types import BadRow, Example
from bilstm_cls.errors import ConfigError, DataError, UserError
from bilstm_cls.files import write_atomic

logger = logging.getLogger(__name__)

OFFLINE_VARIABLE = "BILSTM_CLS_OFFLINE"

SPLITS = {
    "train": "train", "training": "train",
    "validation": "valid", "valid": "valid", "dev": "valid", "val": "valid",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
    "unsupervised": "unlabelled", "unlabelled": "unlabelled", "unlabeled": "unlabelled", "unsup": "unlabelled",
}  # fmt: skip
"""What data sets call their splits."""

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
    """A data set of the Hub, in the cache of the library `datasets`.

    Attributes:
        address: of the data set.
        identity: equal ones mean equal rows.
        splits: which of train, valid, test, unlabelled there are.
        label_names: of labels that are numbers, by number; empty where the data set has none.
        rows: for each split a `datasets.Dataset`, whose rows are dicts; empty where the Hub could not be reached.
    """

    address: Address
    identity: list[str]
    splits: list[str]
    label_names: list[str]
    rows: dict[str, Any] = field(default_factory=dict)


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
    """Turns what goes wrong with a repository into an error that says what to do.

    Raises:
        ConfigError: there is no such repository, revision or permission.
        UnreachableError: the Hub does not answer, or may not be asked.
        DownloadError: it answers with an error.
    """
    errors = hub().errors
    of_the_network = errors.HfHubHTTPError.__bases__  # of the HTTP library that it is built on
    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise ConfigError(f"hf://{address}: there is no such revision") from error
    except errors.RepositoryNotFoundError as error:  # a private one gives the same answer as none
        raise ConfigError(
            f"hf://{address}: there is no such repository, or you may not read it; check the name, or log in with "
            f"`hf auth login`"
        ) from error
    except errors.HFValidationError as error:
        raise ConfigError(f"hf://{address}: is no name that the Hub takes") from error
    except (OSError, errors.LocalEntryNotFoundError, errors.HfHubHTTPError, *of_the_network) as error:
        status = _status_in(error)
        if status in (401, 403):
            raise ConfigError(f"hf://{address}: not allowed (status {status}); log in with `hf auth login`") from error
        if status is not None:
            raise DownloadError(f"hf://{address}: the Hub answers with status {status}; try again later") from error
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            raise  # of this machine's disk
        reason = f"{OFFLINE_VARIABLE} is set" if is_offline() else "the Hub cannot be reached"
        raise UnreachableError(f"hf://{address}: not in the cache, and {reason}") from error


def _status_in(error: BaseException | None) -> int | None:
    """Returns the status of the Hub's answer that an error or its causes come from."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return int(status)
        error = error.__cause__ or error.__context__
    return None


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


def find_hub_dataset(address: Address, label_column: str) -> HubDataset:
    """Downloads a data set, or finds it in the cache of the library; without a connection it is what it was last time.

    A split whose labels are all -1, which marks secret ones in a competition, is left out.

    Args:
        address: of the data set.
        label_column: whose numbers may have names.

    Raises:
        ConfigError: there is no such data set or revision, it may not be read, or its subset must be named.
        UnreachableError: the Hub does not answer, or may not be asked, and the data set is not known.
        DataError: nothing in it can be read, or there is no split `train`.
    """
    digest = hashlib.sha256(json.dumps([str(address), label_column]).encode()).hexdigest()[:32]
    record = cache_folder() / "hub" / f"{digest}.json"
    try:
        found = _load(address, label_column)
    except UnreachableError as error:
        if not record.is_file():
            raise
        logger.warning(f"{error}; using what was read last")
        return HubDataset(address, **json.loads(record.read_text("utf-8")))
    known = {"identity": found.identity, "splits": found.splits, "label_names": found.label_names}
    with contextlib.suppress(UserError):  # a cache that cannot be written
        write_atomic(record, json.dumps(known))
    return found


def _load(address: Address, label_column: str) -> HubDataset:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"data of the Hub need datasets; run: pip install 'bilstm-cls[hub]' ({error})") from error
    if is_offline():
        raise UnreachableError(f"hf://{address}: not in the cache, and {OFFLINE_VARIABLE} is set")
    if Path(address.repository).is_dir():  # which the library would read instead
        raise ConfigError(f"hf://{address}: there is a folder {address.repository} here; run in another directory")
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    with naming_hub_faults(address):
        try:
            loaded = datasets.load_dataset(address.repository, address.subset, revision=address.revision)
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error) or address.revision is not None:
                raise DataError(f"hf://{address}: needs a script of its repository, which is not run") from error
            subset = address.subset or _converted_subset(address)
            loaded = datasets.load_dataset(address.repository, data_dir=subset, revision=CONVERTED)
        except datasets.exceptions.DatasetNotFoundError as error:
            raise ConfigError(f"hf://{address}: {error} Check the name, or log in with `hf auth login`.") from error
        except (ValueError, datasets.exceptions.DatasetBuildError, datasets.exceptions.DataFilesNotFoundError) as error:
            if "BuilderConfig" in str(error) or "Config name" in str(error):
                raise ConfigError(_without_subset(address, str(error))) from error
            raise DataError(f"hf://{address}: cannot be read ({str(error.__cause__ or error)[:300]})") from error
    splits = {SPLITS[name.lower()]: split for name, split in loaded.items() if name.lower() in SPLITS and len(split)}
    if "train" not in splits:
        raise DataError(
            f"hf://{address}: has no split 'train' (its splits: {', '.join(loaded)}); download what you need and name "
            f"it with data.train"
        )
    feature = splits["train"].features.get(label_column)
    secret = [name for name, split in splits.items() if name != "unlabelled" and _is_secret(split, label_column)]
    order = ["train", "valid", "test", "unlabelled"]
    names = [name for name in order if name in splits and name not in secret]
    label_names = list(getattr(feature, "names", None) or [])
    identity = [*label_names, *(f"{name} {splits[name]._fingerprint}" for name in names)]
    return HubDataset(address, identity, names, label_names, {name: splits[name] for name in names})


def _converted_subset(address: Address) -> str:
    """Returns the only subset among the converted files.

    Raises:
        ConfigError: there are several, or the Hub has converted none.
    """
    files = hub().HfApi(endpoint=endpoint()).list_repo_files(
        address.repository, repo_type="dataset", revision=CONVERTED
    )  # fmt: skip
    subsets: list[str] = sorted({name.partition("/")[0] for name in files if name.endswith(".parquet")})
    if len(subsets) != 1:
        raise ConfigError(_without_subset(address, f"it has the subsets {', '.join(subsets)}"))
    return subsets[0]


def _without_subset(address: Address, reason: str) -> str:
    example = Address(address.repository, "SUBSET", address.revision)
    return f"hf://{address}: {' '.join(reason.split())[:300]}; name a subset that it has, as in hf/{example}"


def _is_secret(split: Any, label_column: str) -> bool:
    if label_column not in split.column_names or not str(split.features[label_column].dtype).startswith("int"):
        return False
    return all(label is not None and label < 0 for label in split.unique(label_column))


def hub_examples(
    dataset: HubDataset, split: str, config: DataConfig, on_bad_row: Callable[[BadRow], None]
) -> Iterator[Example]:
    """Yields the rows of a split as examples.

    Args:
        dataset: what `find_hub_dataset` gave.
        split: its name; the labels of `unlabelled` are not read.
        config: which columns to read, and what to do with bad rows.
        on_bad_row: called with every skipped row.

    Raises:
        UnreachableError: the rows are not here, and the Hub cannot be reached.
        DataError: a column is missing, or a row is bad and `data.bad_rows` is `error`.
    """
    path, names = f"hf://{dataset.address}/{split}", dataset.label_names
    if split not in dataset.rows:
        raise UnreachableError(f"{path}: not in the cache, and the Hub cannot be reached")
    rows = dataset.rows[split]
    wanted = [*config.text_columns, *([config.group_column] if config.group_column else [])]
    wanted += [config.label_column] if split != "unlabelled" else []
    for column in wanted:
        if column not in rows.column_names:
            raise DataError(f"{path}: no column {column!r} among {', '.join(map(repr, rows.column_names))}")
    number = 0
    for batch in rows.select_columns(list(dict.fromkeys(wanted))).iter(batch_size=1000):
        for values in zip(*batch.values(), strict=True):
            number += 1
            row = dict(zip(batch, values, strict=True))
            texts, label = [row[column] for column in config.text_columns], row.get(config.label_column)
            if split == "unlabelled":
                label = None
            elif names and isinstance(label, int):
                label = names[label] if 0 <= label < len(names) else ""
            if not all(isinstance(text, str) for text in texts):
                reason = f"a text must be a string, not {texts!r:.100}"
            elif split != "unlabelled" and (label is None or not str(label).strip()):
                reason = "the label is empty"
            else:
                yield Example("\n".join(texts), None if label is None else str(label).strip(), path, number, row)
                continue
            bad = BadRow(path, number, reason)
            if config.bad_rows == "error":
                raise DataError(f"{bad}; set data.bad_rows to skip")
            on_bad_row(bad)
