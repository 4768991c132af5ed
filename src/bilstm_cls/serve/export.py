"""From a run directory to a bundle that needs no PyTorch: built, compared with PyTorch, then put in its place."""

import contextlib
import io
import json
import logging
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bilstm_cls.classifier import Classifier
from bilstm_cls.data.torchtext import PREFIX
from bilstm_cls.errors import CheckpointError, ConfigError
from bilstm_cls.files import make_folder, naming_disk_faults, sha256_of, sync_folder, write_atomic
from bilstm_cls.run_directory import LoadedModel, RunDirectory
from bilstm_cls.runtime import FILES, FORMAT_VERSION, NGRAMS, Runtime, sealed

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""The largest difference of a logit or probability that is accepted; a few times 1e-7 is usual."""

NUM_TEXTS = 500
"""Random ones, of which the first is empty and the second the longest."""

MAX_CHECKED_LENGTH = 2000
"""Tokens of the longest random text: a `max_length` of a million would take hours to check."""


def export(path: str | Path, output: str | Path | None = None, *, overwrite: bool = False) -> dict[str, Any]:
    """Writes the model of a run, ensembles and n-gram models included, as a bundle.

    Before it is put in its place it has given PyTorch's logits and probabilities for texts of random tokens.

    Returns:
        What `export --json` prints: `path` and `bytes` of the bundle, and the `largest_logit_difference` to PyTorch
        over how many texts of how many tokens.

    Raises:
        CheckpointError: the run is damaged, or onnxruntime does not agree with PyTorch within `TOLERANCE`.
        ConfigError: the folder is taken or cannot be written, its texts are split by torchtext, or the extra is not
            installed.
        ResourceError: the disk is full.
    """
    try:
        import onnxruntime  # noqa: F401

        from bilstm_cls.serve.onnx_graph import build_graph
    except ImportError as error:
        raise ConfigError(f"export needs more; run: pip install 'bilstm-cls[onnx]' ({error})") from error
    run = RunDirectory(Path(path))
    place = run.path.resolve()
    target = place.with_name(f"{place.name}-onnx") if output is None else Path(output)
    _check_free(target, overwrite=overwrite)
    loaded = run.load_model()
    if (kind := loaded.config.text.tokenizer).startswith(PREFIX):
        raise ConfigError(
            f"{path}: its texts are split by {kind}, which a bundle does not have; train it with text.tokenizer "
            f"{'basic_english, which gives the same tokens' if 'basic' in kind else 'words'}"
        )
    with _replacing_folder(target) as folder:
        write_atomic(folder / "model.onnx", build_graph(loaded.members).SerializeToString(deterministic=True))
        _write_rest(folder, loaded)
        difference, longest = _compare(Runtime.load(folder), loaded)
        if not difference <= TOLERANCE:
            raise CheckpointError(
                f"{path}: onnxruntime differs from PyTorch by {difference:.2g}, more than the accepted {TOLERANCE:g}, "
                f"so no bundle was written; this is a bug in bilstm-cls, please report it"
            )
        size = sum(file.stat().st_size for file in folder.iterdir())
    facts = {"checked_texts": NUM_TEXTS, "checked_longest": longest, "largest_logit_difference": difference}
    return {"path": str(target), "bytes": size, **facts}


def export_table(facts: Mapping[str, Any]) -> str:
    """Returns what `export` prints."""
    return (
        f"largest difference from PyTorch: {facts['largest_logit_difference']:.2g} in a logit, over {NUM_TEXTS} random "
        f"texts of up to {facts['checked_longest']:,} tokens (allowed: {TOLERANCE:g})\n"
        f"wrote {facts['path']}, {facts['bytes'] / 1000:,.0f} kB; try it: "
        f"python -m bilstm_cls.runtime {shlex.quote(facts['path'])} TEXT"
    )


def _check_free(target: Path, *, overwrite: bool) -> None:
    if not target.exists() and not target.is_symlink():
        return
    names = {entry.name for entry in target.iterdir()} if target.is_dir() and not target.is_symlink() else None
    if names is None or names - {*FILES, NGRAMS, "config.json"}:
        raise ConfigError(f"{target}: is not a bundle, so it is not replaced; choose another place with -o")
    if names and not overwrite:
        raise ConfigError(f"{target}: exists; add --overwrite to replace it, or choose another place with -o")


@contextlib.contextmanager
def _replacing_folder(target: Path) -> Iterator[Path]:
    """Yields a new folder that takes the place of `target` when the block succeeds, and is removed when it fails."""
    with naming_disk_faults(target):
        make_folder(target.parent)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as place:
            fresh, retired = Path(place) / "new", Path(place) / "old"
            fresh.mkdir()
            yield fresh
            if target.exists():
                target.rename(retired)
            fresh.rename(target)
            sync_folder(target.parent)


def _write_rest(folder: Path, loaded: LoadedModel) -> None:
    """Writes all but the networks, `config.json` with the digests of all files last."""
    write_atomic(folder / "tokenizer.json", loaded.tokenizer.to_json())
    write_atomic(folder / "labels.json", json.dumps(loaded.labels, ensure_ascii=False, indent=2) + "\n")
    if loaded.ngrams is not None:
        content = io.BytesIO()
        np.savez(content, **loaded.ngrams.arrays())  # type: ignore[arg-type]
        write_atomic(folder / NGRAMS, content.getvalue())
    text, task = loaded.config.text, loaded.task
    config = {
        "format_version": FORMAT_VERSION,
        "name": loaded.config.name,
        "max_length": text.max_length,
        "truncate": text.truncate,
        "thresholds": None if task.thresholds is None else task.thresholds.tolist(),
        "min_probability": task.min_probability,
        "sha256": {name: sha256_of(folder / name) for name in (*FILES, NGRAMS) if (folder / name).exists()},
    }
    write_atomic(folder / "config.json", json.dumps(sealed(config), ensure_ascii=False, indent=2) + "\n")


def _compare(runtime: Runtime, loaded: LoadedModel) -> tuple[float, int]:
    """Returns the largest difference of a logit or probability of random texts, and the tokens of the longest."""
    classifier, texts = Classifier(loaded, "cpu"), _random_texts(loaded)
    corpus = classifier.encode(texts)
    logits = np.abs(runtime.logits(runtime.encode(texts)) - classifier.logits(corpus)).max()
    probabilities = np.abs(runtime.predict_proba(texts) - classifier.predict_proba(texts)).max()
    return float(np.maximum(logits, probabilities)), int(corpus.lengths.max())  # unlike max it lets no nan hide


def _random_texts(loaded: LoadedModel) -> list[str]:
    generator = np.random.Generator(np.random.PCG64(1))
    tokens, longest = loaded.tokenizer.tokens, min(loaded.config.text.max_length, MAX_CHECKED_LENGTH)
    lengths = [0, longest, *generator.integers(1, longest, size=NUM_TEXTS - 2, endpoint=True)]
    joint = "" if loaded.ngrams is not None and not loaded.ngrams.is_spaced else " "
    return [joint.join(tokens[i] for i in generator.integers(1, len(tokens), size=length)) for length in lengths]
