"""A trained classifier, ready to answer."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bilstm_cls.data.corpus import Corpus, encode
from bilstm_cls.device import choose_device
from bilstm_cls.evaluation.explain import Explanation, explain
from bilstm_cls.evaluation.inference import answer
from bilstm_cls.run_directory import LoadedModel, RunDirectory
from bilstm_cls.serve.hub import fetched_run

CHUNK = 2048
"""Texts that are read, encoded and answered together when they come as a stream."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one text.

    Attributes:
        text: as it was given.
        label: the likeliest label.
        probability: of that label, 0 to 1.
        probabilities: of every label, in the order of the run's labels; they sum to 1.
        tokens: of the text before it was cut.
        truncated: whether it was longer than the model reads.
    """

    text: str
    label: str
    probability: float
    probabilities: dict[str, float]
    tokens: int
    truncated: bool

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields in the order in which `--json` prints them."""
        return asdict(self)


class Classifier:
    """Answers with the model of one run directory; the data it was trained on are not needed.

    Example:
        >>> classifier = Classifier.load("runs/imdb")
        >>> classifier.predict(["A wonderful film."])[0].label
        'pos'
    """

    def __init__(self, loaded: LoadedModel, device: str = "auto") -> None:
        self.loaded = loaded
        self.labels = loaded.labels
        self.config = loaded.config
        self.tokenizer = loaded.tokenizer
        self.device = choose_device(device)
        self.model = loaded.model
        for member in loaded.members:
            member.to(self.device).eval()

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto") -> "Classifier":
        """Reads and verifies a run directory, or with `hf://user/name` one on the Hugging Face Hub.

        Raises:
            CheckpointError: a file is missing, damaged, or does not fit the others.
            ConfigError: the device is not there, or there is no such repository.
            DownloadError: the Hub cannot be reached.
        """
        return cls(RunDirectory(fetched_run(path)).load_model(), device)

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """Returns one prediction per text, in order; an empty text is one unknown token."""
        if not texts:
            return []
        corpus = self._encode(texts)
        probabilities = answer(self.loaded, texts, corpus)
        max_length = self.config.text.max_length
        return [
            Prediction(
                text=text,
                label=self.labels[best],
                probability=row[best],
                probabilities=dict(zip(self.labels, row, strict=True)),
                tokens=tokens,
                truncated=tokens > max_length,
            )
            for text, row, best, tokens in zip(
                texts, probabilities.tolist(), probabilities.argmax(1).tolist(), corpus.num_tokens.tolist(), strict=True
            )
        ]

    def predict_proba(self, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """Returns probabilities `[N, C]`, columns in the order of `labels`."""
        if not texts:
            return np.empty((0, len(self.labels)))
        return answer(self.loaded, texts, self._encode(texts))

    def explain(self, text: str, *, label: str | None = None) -> Explanation:
        """Returns how much each token of a text moved a label's logit: of the predicted label if None.

        Raises:
            ConfigError: the run does not know the label.
        """
        return explain(self.loaded, text, label=label)

    def stream(self, texts: Iterable[str]) -> Iterator[Prediction]:
        """Yields one prediction per text, in order, holding no more than one chunk of texts."""
        remaining = iter(texts)
        while chunk := list(itertools.islice(remaining, CHUNK)):
            yield from self.predict(chunk)

    def _encode(self, texts: Sequence[str]) -> Corpus:
        text = self.config.text
        return encode(texts, self.tokenizer, max_length=text.max_length, truncate=text.truncate)
