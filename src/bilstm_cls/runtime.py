"""What a model answers for a text, and how an exported bundle answers without PyTorch.

A bundle needs onnxruntime, tokenizers and numpy alone. Texts are split, cut, padded and batched by the same code as in
training, so its predictions are those of the run that it was made from. Also a command, see `main`.
"""

import argparse
import codecs
import functools
import hashlib
import io
import itertools
import json
import os
import signal
import sys
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from bilstm_cls.data.batches import evaluation_batches, pad
from bilstm_cls.data.corpus import Corpus, encode
from bilstm_cls.data.tokenizer import UNKNOWN_ID, Tokenizer
from bilstm_cls.data.types import LabelIds, checked_texts, named
from bilstm_cls.device import usable_cores
from bilstm_cls.errors import CheckpointError, ConfigError, UserError
from bilstm_cls.ngrams import NgramModel

FORMAT_VERSION = 2
FILES = ("model.onnx", "tokenizer.json", "labels.json")
NGRAMS = "ngrams.npz"  # of a run that has an n-gram model
CHUNK = 2048  # texts of a stream that are read, encoded and classified together
BATCH_TOKENS = 8192  # padded; onnxruntime is fastest where what it holds of a batch fits into the processor's cache
READ_BYTES = 2**20

Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction for one text.

    `labels`, of a run with several labels a text, are those that are at least as probable as their thresholds.
    """

    text: str
    label: str  # the most probable one
    probability: float  # of that label, 0 to 1
    probabilities: dict[str, float]  # in the order of the run's labels; they sum to 1 where a text has one label
    tokens: int  # of the text before it was cut
    truncated: bool  # whether it was longer than the model reads
    unknown_tokens: int  # which the vocabulary lacks
    labels: tuple[str, ...] | None = None

    def as_dict(self, *, top_k: int | None = None, min_probability: float = 0.0) -> dict[str, Any]:
        """Returns the fields in the order in which `--json` prints them.

        With `top_k`, so many probabilities are kept, the greatest first. A label below `min_probability` becomes None;
        several labels lose it.
        """
        fields = {name: getattr(self, name) for name in self.__slots__ if name != "labels"}
        if top_k is not None:
            fields["probabilities"] = most_probable(self.probabilities, top_k)
        if self.labels is not None:
            likely = [label for label in self.labels if self.probabilities[label] >= min_probability]
            return {"text": self.text, "labels": likely, **dict(list(fields.items())[3:])}
        if self.probability < min_probability:
            fields["label"] = None
        return fields


def most_probable(probabilities: Mapping[str, float], number: int) -> dict[str, float]:
    """Returns so many labels with their probabilities, the most probable first."""
    return dict(sorted(probabilities.items(), key=lambda pair: -pair[1])[:number])


def softmax(logits: npt.NDArray[Any]) -> Probabilities:
    """Returns `[N, C]` probabilities in 64 bits from `[N, C]` logits."""
    powers: Probabilities = logits.astype(np.float64)  # in place from here on: with thousands of labels it is large
    powers -= powers.max(axis=-1, keepdims=True)
    np.exp(powers, out=powers)
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers


def sigmoid(logits: npt.NDArray[Any]) -> Probabilities:
    """Returns the probabilities of labels that do not exclude each other, in 64 bits."""
    return softmax(np.stack([np.zeros_like(logits), logits], axis=-1))[..., 1]


@dataclass(frozen=True, eq=False)
class Task:
    """From logits to answers: a text has one label, or any number of them.

    `thresholds` `[C]` are those from which on a text has a label; None where it has the most probable one alone, which
    is no answer below `min_probability`, as `train.reject` asks for.
    """

    thresholds: Probabilities | None = None
    min_probability: float = 0.0

    @classmethod
    def of(cls, label_ids: LabelIds) -> "Task":
        """Returns the task before thresholds are chosen."""
        return cls(np.full(label_ids.shape[1], 0.5) if label_ids.ndim == 2 else None)

    def tuned(self, probabilities: Probabilities, label_ids: LabelIds) -> "Task":
        """Returns the task with the thresholds that give each label its greatest F1 on some texts.

        A threshold lies in the middle between two texts; of equally good ones it is the lowest, and of a label that no
        text has it stays as it is.
        """
        if self.thresholds is None:
            return self
        order = np.argsort(-probabilities, axis=0, kind="stable")
        ranked = np.take_along_axis(probabilities, order, 0)  # [N, C]
        following = np.concatenate([ranked[1:], np.zeros_like(ranked[:1])])
        num_right = np.take_along_axis(label_ids, order, 0).cumsum(0, dtype=np.int64)
        f1 = 2 * num_right / (np.arange(1, len(ranked) + 1)[:, np.newaxis] + num_right[-1])
        best = np.where(ranked > following, f1, -1.0)[::-1].argmax(0)  # of equal probabilities all or none
        rows, columns = len(ranked) - 1 - best, np.arange(ranked.shape[1])
        middle = (ranked[rows, columns] + following[rows, columns]) / 2
        return Task(np.where(num_right[-1] > 0, middle, self.thresholds))

    def rejecting(self, probabilities: Probabilities, label_ids: LabelIds, precision: float) -> "Task":
        """Returns the task that answers most of some texts so that this share of its answers is right, or none."""
        largest, is_right = probabilities.max(1), self.predicted(probabilities) == label_ids
        order = np.argsort(-largest, kind="stable")
        ranked, share = largest[order], is_right[order].cumsum() / np.arange(1, len(order) + 1)
        is_end = ranked > np.concatenate([ranked[1:], [0.0]])  # of equal probabilities all or none
        good = np.flatnonzero(is_end & (share >= precision))
        return Task(self.thresholds, float(ranked[good[-1]]) if len(good) else 1.0)

    def probabilities(self, logits: npt.NDArray[Any]) -> Probabilities:
        """Returns `[N, C]` in 64 bits from logits `[N, C]`."""
        return softmax(logits) if self.thresholds is None else sigmoid(logits)

    def logits(self, probabilities: Probabilities) -> Probabilities:
        """Returns logits `[N, C]` of such probabilities, none further from 0 than 21."""
        known: Probabilities = probabilities.clip(1e-9, None if self.thresholds is None else 1 - 1e-9)
        return np.asarray(np.log(known) if self.thresholds is None else np.log(known) - np.log1p(-known))

    def predicted(self, probabilities: Probabilities) -> LabelIds:
        """Returns the predicted labels, in the form of label ids."""
        if self.thresholds is None:
            return np.asarray(probabilities.argmax(axis=1))
        return (probabilities >= self.thresholds).astype(np.uint8)


class Predictor(ABC):
    """Texts to predictions. Texts may come in a list, tuple, array, pandas or polars series, or generator.

    `labels` are C class names, by label id. The logits of `ngrams` are added to those of the networks, which read at
    most `max_length` tokens of a text.
    """

    labels: list[str]
    task: Task
    tokenizer: Tokenizer
    max_length: int
    truncate: str
    ngrams: NgramModel | None

    @abstractmethod
    def logits(self, corpus: Corpus) -> npt.NDArray[Any]:
        """Returns the logits `[N, C]` of the networks, without the n-gram model."""

    def encode(self, texts: Sequence[str]) -> Corpus:
        """Returns N texts as the model reads them."""
        return encode(texts, self.tokenizer, max_length=self.max_length, truncate=self.truncate)

    def predict(self, texts: Iterable[str]) -> list[Prediction]:
        """Returns one prediction per text, in order; an empty text is one unknown token.

        Raises:
            TypeError: `texts` is one str, or an item is no str.
        """
        return list(self.stream(texts))

    def predict_proba(self, texts: Iterable[str]) -> Probabilities:
        """Returns probabilities `[N, C]`, columns in the order of `labels`; errors as in `predict`."""
        parts = [probabilities for *_, probabilities in self._answers(checked_texts(texts))]
        return np.concatenate(parts) if parts else np.empty((0, len(self.labels)))

    def stream(self, texts: Iterable[str]) -> Iterator[Prediction]:
        """Yields one prediction per text, in order, holding at most two chunks of texts; errors as in `predict`."""
        return self._predictions(self._answers(checked_texts(texts)))

    def _answers(self, texts: Iterator[str]) -> Iterator[tuple[list[str], Corpus, Probabilities]]:
        """Yields chunks of texts, the same encoded, and their probabilities `[N, C]`.

        While the networks read one chunk, a thread encodes the next one and looks up its n-grams. Texts are read, and
        the networks are called, in the caller's thread.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="encode") as thread:
            chunks = iter(lambda: list(itertools.islice(texts, CHUNK)), [])
            chunk = next(chunks, [])
            inputs: Callable[[], Any] = functools.partial(self._inputs, chunk)  # of the first nothing is read meanwhile
            while chunk:
                corpus, of_ngrams = inputs()
                if following := next(chunks, []):
                    inputs = thread.submit(self._inputs, following).result
                yield chunk, corpus, self.task.probabilities(self.logits(corpus) + of_ngrams)
                chunk = following

    def _inputs(self, texts: Sequence[str]) -> tuple[Corpus, npt.NDArray[Any] | float]:
        return self.encode(texts), 0.0 if self.ngrams is None else self.ngrams.logits(texts)

    def _predictions(self, answers: Iterable[tuple[list[str], Corpus, Probabilities]]) -> Iterator[Prediction]:
        for texts, corpus, probabilities in answers:
            unknown_before = np.concatenate([[0], np.cumsum(corpus.token_ids == UNKNOWN_ID)])
            columns = zip(
                texts,
                probabilities.tolist(),
                probabilities.argmax(1).tolist(),
                corpus.num_tokens.tolist(),
                (corpus.num_tokens > corpus.lengths).tolist(),
                np.diff(unknown_before[corpus.offsets]).tolist(),
                named(self.task.predicted(probabilities), self.labels),
                strict=True,
            )
            for text, row, best, tokens, truncated, unknown, found in columns:
                by_label = dict(zip(self.labels, row, strict=True))
                several = found if isinstance(found, tuple) else None
                yield Prediction(text, self.labels[best], row[best], by_label, tokens, truncated, unknown, several)


class Runtime(Predictor):
    """Classifies texts with the model of one bundle.

    Example:
        >>> runtime = Runtime.load("runs/imdb-onnx")
        >>> runtime.predict(["A wonderful film."])[0].label
        'pos'
    """

    @classmethod
    def load(cls, path: str | Path, *, threads: int | None = None) -> "Runtime":
        """Reads a bundle, to answer with so many CPU threads, by default one a core, or raises CheckpointError."""
        try:
            return cls(Path(path), threads or usable_cores())
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{path}: damaged, or not a bundle that export wrote ({error})") from error

    def __init__(self, path: Path, threads: int) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ConfigError("a bundle needs onnxruntime; run: pip install 'bilstm-cls[onnx]'") from error
        config = _read_config(path / "config.json")
        content = {name: _read(path / name, digest) for name, digest in config["sha256"].items()}
        self.tokenizer = Tokenizer.from_json(content["tokenizer.json"].decode())
        self.labels = json.loads(content["labels.json"])
        self.ngrams = None
        if NGRAMS in content:
            with np.load(io.BytesIO(content[NGRAMS]), allow_pickle=False) as arrays:
                self.ngrams = NgramModel.from_arrays(dict(arrays), len(self.labels))
        self.task = Task(np.array(config["thresholds"]) if config["thresholds"] else None, config["min_probability"])
        self.max_length, self.truncate = config["max_length"], config["truncate"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # several batches side by side instead: none waits for the slowest thread
        self._session = onnxruntime.InferenceSession(content["model.onnx"], options, ["CPUExecutionProvider"])
        self._threads = threads

    def logits(self, corpus: Corpus) -> npt.NDArray[np.float32]:
        logits = np.zeros((len(corpus), len(self.labels)), dtype=np.float32)
        batches = evaluation_batches(corpus.lengths, max_tokens=BATCH_TOKENS)
        with ThreadPoolExecutor(self._threads) as pool:
            for indices, part in zip(batches, pool.map(lambda i: self._run(*pad(corpus, i)), batches), strict=True):
                logits[indices] = part
        return logits

    def _run(self, token_ids: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> Any:
        return self._session.run(["logits"], {"token_ids": token_ids, "lengths": lengths})[0]


def sealed(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of `config.json` with a digest over itself."""
    return {**config, "digest": _digest_of(config)}


def _digest_of(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _read_config(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(_read(path))
    if (found := config.get("format_version")) != FORMAT_VERSION:
        raise CheckpointError(f"{path}: format {found!r} is not {FORMAT_VERSION}; export it again")
    if config.pop("digest") != _digest_of(config):
        raise CheckpointError(f"{path}: damaged, its contents do not match the digest inside")
    return config


def _read(path: Path, digest: str | None = None) -> bytes:
    """Returns a file's bytes, verified where a digest is given: they are not read a second time."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: missing, or not to be read ({error.strerror})") from error
    if digest is not None and hashlib.sha256(content).hexdigest() != digest:
        raise CheckpointError(f"{path}: damaged or of another bundle, it does not match its digest in config.json")
    return content


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints one JSON object a text, with `-` for the lines of stdin, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bilstm_cls.runtime", description="Classify texts with a bundle.")
    parser.add_argument("bundle", metavar="BUNDLE", help="a folder that `bilstm-cls export` wrote")
    parser.add_argument("texts", metavar="TEXT", nargs="+", help="texts to classify; - reads stdin, one text a line")
    given = parser.parse_args(arguments)
    try:
        runtime = Runtime.load(given.bundle)
        for prediction in runtime.stream(itertools.chain.from_iterable(given_chunks(given.texts))):
            print(json.dumps(prediction.as_dict(min_probability=runtime.task.min_probability)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def given_chunks(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Yields the texts in their order, as many at a time as are there; `-` stands for the lines of stdin.

    As in a txt file, empty lines are texts, a byte order mark is not, and bytes that are no characters are replaced.
    """
    for is_stdin, group in itertools.groupby(arguments, "-".__eq__):
        if not is_stdin:
            yield [os.fsencode(argument).decode("utf-8", errors="replace") for argument in group]
            continue
        if sys.stdin is None:
            raise ConfigError("-: there is no stdin to read; give texts or --input FILE")
        rest, decode = "", codecs.getincrementaldecoder("utf-8-sig")("replace").decode
        stream = cast("io.BufferedReader", sys.stdin.buffer)
        while read := stream.read1(READ_BYTES):
            *lines, rest = (rest + decode(read)).split("\n")
            yield [line.removesuffix("\r") for line in lines]
        if rest := rest + decode(b"", final=True):
            yield [rest.removesuffix("\r")]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, "SIGPIPE"):  # whoever reads the output, such as head, may have seen enough
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
