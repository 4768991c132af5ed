"""Predictions from an exported bundle with onnxruntime, tokenizers and numpy alone; PyTorch is not loaded.

A bundle whose texts are split by `chinese_words` needs rjieba too.

Texts are split, cut, padded and batched by the same code as in training, so the predictions are those of the run that
the bundle was made from. Also a command: `python -m bilstm_cls.runtime BUNDLE TEXT...`, where `-` reads stdin.
"""

import argparse
import hashlib
import io
import json
import os
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bilstm_cls.data.batches import evaluation_batches, pad
from bilstm_cls.data.corpus import Corpus, encode
from bilstm_cls.data.tokenizer import Tokenizer
from bilstm_cls.data.types import check_texts, iterate_texts
from bilstm_cls.device import usable_cores
from bilstm_cls.errors import CheckpointError, ConfigError, ExitCode, UserError
from bilstm_cls.ngrams import NgramModel
from bilstm_cls.prediction import Prediction, in_chunks, predictions, softmax

if TYPE_CHECKING:
    import onnxruntime

FORMAT_VERSION = 2
FILES = ("model.onnx", "tokenizer.json", "labels.json")
NGRAMS = "ngrams.npz"
"""The n-gram model of a run that has one. `config.json` has the digests of all files."""

BATCH_TOKENS = 8192
"""Padded tokens in a batch; onnxruntime is fastest where what it holds of one fits into the processor's cache."""


class Runtime:
    """Classifies texts with the model of one bundle.

    Texts may come in a list, tuple, array, pandas or polars series, or generator.

    Example:
        >>> runtime = Runtime.load("runs/imdb-onnx")
        >>> runtime.predict(["A wonderful film."])[0].label
        'pos'
    """

    def __init__(
        self,
        session: "onnxruntime.InferenceSession",
        tokenizer: Tokenizer,
        labels: Sequence[str],
        *,
        max_length: int,
        truncate: str,
        ngrams: NgramModel | None = None,
    ) -> None:
        self.labels = list(labels)
        self.max_length = max_length
        self.ngrams = ngrams
        self._truncate = truncate
        self._session = session
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, path: str | Path, *, threads: int | None = None) -> "Runtime":
        """Reads a bundle and verifies every file of it.

        Args:
            path: the folder that `bilstm-cls export` wrote.
            threads: CPU threads; as many as there are cores for this process if None.

        Raises:
            CheckpointError: a file is missing, damaged, or of another version.
            ConfigError: onnxruntime is not installed, or rjieba is not and the bundle needs it.
        """
        path = Path(path)
        config = _read_config(path / "config.json")
        content = {name: _read(path / name, digest) for name, digest in config["sha256"].items()}
        try:
            tokenizer = Tokenizer.from_json(content["tokenizer.json"].decode())
        except ValueError as error:
            raise CheckpointError(f"{path / 'tokenizer.json'}: damaged, it cannot be read ({error})") from error
        labels = json.loads(content["labels.json"])
        return cls(
            _session(content["model.onnx"], threads),
            tokenizer,
            labels,
            max_length=config["max_length"],
            truncate=config["truncate"],
            ngrams=_read_ngrams(path / NGRAMS, content[NGRAMS], len(labels)) if NGRAMS in content else None,
        )

    def predict(self, texts: Iterable[str]) -> list[Prediction]:
        """Returns one prediction per text, in order; an empty text is one unknown token.

        Raises:
            TypeError: `texts` is one str, or an item is no str.
        """
        checked = check_texts(texts)
        return self._predict(checked, self._encode(checked)) if checked else []

    def predict_proba(self, texts: Iterable[str]) -> npt.NDArray[np.float64]:
        """Returns probabilities `[N, C]`, columns in the order of `labels`.

        Raises:
            TypeError: as in `predict`.
        """
        checked = check_texts(texts)
        return self._answer(checked, self._encode(checked)) if checked else np.empty((0, len(self.labels)))

    def stream(self, texts: Iterable[str]) -> Iterator[Prediction]:
        """Yields one prediction per text, in order, holding no more than a few thousand texts.

        Raises:
            TypeError: as in `predict`.
        """
        return in_chunks(iterate_texts(texts), self._encode, self._predict)

    def logits(self, corpus: Corpus) -> npt.NDArray[np.float32]:
        """Returns the logits `[N, C]` of the networks, without the n-gram model."""
        logits = np.zeros((len(corpus), len(self.labels)), dtype=np.float32)
        for indices in evaluation_batches(corpus.lengths, max_tokens=BATCH_TOKENS):
            logits[indices] = self.run(*pad(corpus, indices))
        return logits

    def run(self, token_ids: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Returns the logits `[B, C]` of one batch.

        Args:
            token_ids: `[B, T]`.
            lengths: `[B]`, 1 to T; what stands past them is not read.
        """
        (logits,) = self._session.run(["logits"], {"token_ids": token_ids, "lengths": lengths})
        return np.asarray(logits)

    def _encode(self, texts: Sequence[str]) -> Corpus:
        return encode(texts, self._tokenizer, max_length=self.max_length, truncate=self._truncate)

    def _answer(self, texts: Sequence[str], corpus: Corpus) -> npt.NDArray[np.float64]:
        logits = self.logits(corpus)
        return softmax(logits if self.ngrams is None else logits + self.ngrams.logits(texts))

    def _predict(self, texts: Sequence[str], corpus: Corpus) -> list[Prediction]:
        return predictions(texts, corpus, self._answer(texts, corpus), self.labels)


def sealed(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of `config.json` with a digest over itself."""
    return {**config, "digest": _digest_of(config)}


def _digest_of(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged, it cannot be read ({error})") from error
    if not isinstance(config, dict) or "format_version" not in config:
        raise CheckpointError(f"{path}: not the config of a bundle; `bilstm-cls export` writes one")
    if (found := config["format_version"]) != FORMAT_VERSION:
        raise CheckpointError(f"{path}: format {found!r} is not {FORMAT_VERSION}; export it again")
    if config.pop("digest", None) != _digest_of(config):
        raise CheckpointError(f"{path}: damaged, its contents do not match the digest inside")
    return config


def _read(path: Path, digest: str | None = None) -> bytes:
    """Returns a file's bytes, verified where a digest is given: they are not read a second time."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing, so {path.parent} is not a bundle that export wrote") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise CheckpointError(f"{path}: damaged or of another bundle, it does not match its digest in config.json")
    return content


def _read_ngrams(path: Path, content: bytes, num_labels: int) -> NgramModel:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return NgramModel.from_arrays(dict(arrays), num_labels)
    except (ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: damaged, it cannot be read ({error})") from error


def _session(model: bytes, threads: int | None) -> "onnxruntime.InferenceSession":
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError("a bundle needs onnxruntime; run: pip install 'bilstm-cls[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()  # it would count all of the machine
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints one JSON object a text and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bilstm_cls.runtime", description="Classify texts with a bundle.")
    parser.add_argument("bundle", metavar="BUNDLE", help="a folder that `bilstm-cls export` wrote")
    parser.add_argument("texts", metavar="TEXT", nargs="+", help="texts to classify; - reads stdin, one text a line")
    given = parser.parse_args(arguments)
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    try:
        for prediction in Runtime.load(given.bundle).stream(_given_texts(given.texts)):
            print(json.dumps(prediction.as_dict(), ensure_ascii=False))
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would try it again when it exits
        return ExitCode.CLOSED_PIPE  # whoever read the output, such as head, has seen enough
    return 0


def _given_texts(arguments: Sequence[str]) -> Iterator[str]:
    for argument in arguments:
        if argument != "-":
            yield argument
            continue
        for number, line in enumerate(sys.stdin.buffer):
            text = line.decode("utf-8", errors="replace").removesuffix("\n").removesuffix("\r")
            yield text.removeprefix("\ufeff") if number == 0 else text


if __name__ == "__main__":
    sys.exit(main())
