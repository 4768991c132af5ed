"""What a model answers for a text: the same with PyTorch (`Classifier`) and without (`Runtime`)."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bilstm_cls.data.corpus import Corpus
from bilstm_cls.data.tokenizer import UNKNOWN_ID

CHUNK = 2048
"""Texts of a stream that are read, encoded and classified together."""

Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction for one text.

    Attributes:
        text: as it was given.
        label: the most probable label.
        probability: of that label, 0 to 1.
        probabilities: of every label, in the order of the run's labels; they sum to 1.
        tokens: of the text before it was cut.
        truncated: whether it was longer than the model reads.
        unknown_tokens: how many of the tokens the vocabulary lacks.
    """

    text: str
    label: str
    probability: float
    probabilities: dict[str, float]
    tokens: int
    truncated: bool
    unknown_tokens: int

    def as_dict(self, *, top_k: int | None = None, min_probability: float = 0.0) -> dict[str, Any]:
        """Returns the fields in the order in which `--json` prints them.

        Args:
            top_k: keep the probabilities of so many labels, the most probable first; all in their order if None.
            min_probability: a label that is less probable becomes None.
        """
        fields = {name: getattr(self, name) for name in self.__slots__}
        if top_k is not None:
            fields["probabilities"] = most_probable(self.probabilities, top_k)
        if self.probability < min_probability:
            fields["label"] = None
        return fields


def most_probable(probabilities: Mapping[str, float], number: int) -> dict[str, float]:
    """Returns so many labels with their probabilities, the most probable first."""
    return dict(sorted(probabilities.items(), key=lambda pair: -pair[1])[:number])


def predictions(
    texts: Sequence[str], corpus: Corpus, probabilities: Probabilities, labels: Sequence[str]
) -> list[Prediction]:
    """Puts together what is known of each text.

    Args:
        texts: N raw texts.
        corpus: the same texts, encoded.
        probabilities: `[N, C]`.
        labels: C class names.
    """
    unknown_before = np.concatenate([[0], np.cumsum(corpus.token_ids == UNKNOWN_ID)])
    unknown = np.diff(unknown_before[corpus.offsets])
    columns = zip(
        texts,
        probabilities.tolist(),
        probabilities.argmax(1).tolist(),
        corpus.num_tokens.tolist(),
        (corpus.num_tokens > corpus.lengths).tolist(),
        unknown.tolist(),
        strict=True,
    )
    return [
        Prediction(text, labels[best], row[best], dict(zip(labels, row, strict=True)), tokens, truncated, number)
        for text, row, best, tokens, truncated, number in columns
    ]


def in_chunks(
    texts: Iterable[str],
    encode: Callable[[Sequence[str]], Corpus],
    predict: Callable[[Sequence[str], Corpus], list[Prediction]],
) -> Iterator[Prediction]:
    """Yields one prediction per text, in order, holding no more than two chunks of texts.

    While one chunk is classified the next one is encoded in a thread: the tokenizer releases the GIL. Texts are read,
    and the model is called, in the caller's thread.
    """
    chunks = _encoded(texts, encode)
    current = next(chunks, None)
    while current is not None:
        following = next(chunks, None)
        yield from predict(current[0], current[1].result())
        current = following


def _encoded(
    texts: Iterable[str], encode: Callable[[Sequence[str]], Corpus]
) -> Iterator[tuple[list[str], Future[Corpus]]]:
    remaining = iter(texts)
    with ThreadPoolExecutor(1, thread_name_prefix="encode") as thread:
        while chunk := list(itertools.islice(remaining, CHUNK)):
            yield chunk, thread.submit(encode, chunk)


def softmax(logits: npt.NDArray[Any]) -> Probabilities:
    """Returns `[N, C]` probabilities in 64 bits from `[N, C]` logits."""
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
