"""Run directories on the Hugging Face Hub: pushed with their model card, pulled and verified like any other run."""

import logging
import shutil
from pathlib import Path
from typing import Any

from bilstm_cls.config import Config
from bilstm_cls.data.hub import Address, download, endpoint, hub, naming_hub_faults
from bilstm_cls.errors import ConfigError
from bilstm_cls.files import replacing
from bilstm_cls.run_directory import RunDirectory

logger = logging.getLogger(__name__)

SCHEME = "hf://"
MODEL_FILES = (
    "model.safetensors", "model-*.safetensors", "ngrams.safetensors", "tokenizer.json", "labels.json",
    "thresholds.json", "config.yaml",
)  # fmt: skip
PUSHED = (*MODEL_FILES, "metrics.json", "history.jsonl", "environment.json", "plots/*.png", "README.md")
WITH_TEXTS = ("report.html", "predictions_*.csv")  # hold texts of the data; pushed only when that is asked for


def push(run: str | Path, repository: str, *, is_private: bool = False, with_texts: bool = False) -> str:
    """Uploads a finished run in one commit, with its model card, and returns its address.

    The repository `user/name` is made if it is not there; `user/name@BRANCH` must be there. With `with_texts`, the
    report and the predictions, which hold texts of the data, go along. Raises CheckpointError where the run is
    unfinished or damaged, ConfigError without permission, DownloadError where the Hub cannot be reached.
    """
    address, run = _address(repository), Path(run)
    config = RunDirectory(run).load_model().config
    paths = (path for pattern in PUSHED + WITH_TEXTS * with_texts for path in sorted(run.glob(pattern)))
    contents: dict[str, Any] = {path.relative_to(run).as_posix(): str(path) for path in paths}
    contents["README.md"] = _card(run, config).encode()
    library = hub()
    with naming_hub_faults(address):
        api = library.HfApi(endpoint=endpoint(), library_name="bilstm-cls")
        api.create_repo(address.repository, private=is_private, exist_ok=True)
        operations = [library.CommitOperationAdd(name, content) for name, content in contents.items()]
        message = f"Add the run {config.name}"
        api.create_commit(address.repository, operations, commit_message=message, revision=address.revision)
    logger.info(f"pushed {len(contents)} files: {', '.join(contents)}")
    return f"{SCHEME}{address}"


def pull(repository: str, target: str | Path | None = None, *, overwrite: bool = False) -> Path:
    """Downloads a run into a new directory, by default `runs/NAME`, verified, and returns its path.

    Raises CheckpointError where what was downloaded is not a valid run, ConfigError where there is no such repository
    or the directory is taken, DownloadError where the Hub cannot be reached.
    """
    address = _address(repository)
    run = RunDirectory(Path("runs") / address.repository.rpartition("/")[2] if target is None else Path(target))
    if run.is_taken and not overwrite:
        raise ConfigError(f"{run.path}: exists; add --overwrite, or choose another place with -o")
    folder = download(address, patterns=PUSHED)
    RunDirectory(folder).load_model()
    with run.locked():
        run.clear()
        run.write_status("running", f"being copied from {SCHEME}{address}")
        for path in (path for pattern in PUSHED for path in sorted(folder.glob(pattern))):
            with path.open("rb") as original, replacing(run / path.relative_to(folder).as_posix()) as copy:
                shutil.copyfileobj(original, copy)
        run.write_status("finished", f"pulled from {SCHEME}{address}")
    return run.path


def fetched_run(path: str | Path) -> Path:
    """Returns the directory of a run: a path as it is, and of `hf://user/name` the copy in the Hub's cache.

    Raises ConfigError where there is no such repository, DownloadError where there is no copy and no Hub.
    """
    if not str(path).startswith("hf:/"):  # a `Path` has one slash where two were written
        return Path(path)
    return download(_address(str(path)), patterns=MODEL_FILES)


def _address(text: str) -> Address:
    address = Address.parse(text)
    if address.subset is not None:
        raise ConfigError(f"{text!r} names a subset, which only data sets have; write user/name or user/name@revision")
    return address


def _card(run: Path, config: Config) -> str:
    card = (run / "README.md").read_text("utf-8") if (run / "README.md").exists() else f"# {config.name}\n"
    if card.startswith("---\n"):
        return card
    source = config.data.source
    front = hub().ModelCardData(
        library_name="bilstm-cls",
        pipeline_tag="text-classification",
        tags=["text-classification", "bilstm", config.model.cell],
        datasets=[Address.parse(source).repository] if source.startswith("hf/") else None,
    )
    return f"---\n{front.to_yaml()}\n---\n\n{card}"
