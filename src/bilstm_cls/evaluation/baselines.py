"""Linear models over word n-grams, trained on the train split alone: what a network has to beat."""

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bilstm_cls.data.types import Split, label_counts
from bilstm_cls.errors import ConfigError, DataError
from bilstm_cls.ngrams import SMALL_TRAIN, WORD, Floats, NgramCounts, NgramModel, count_pairs, is_spaced, kept
from bilstm_cls.runtime import Task

FEW_LABELS = 100
"""Up to which fastText computes the whole softmax; for more, a hierarchical one."""

_FASTTEXT = """
import json, sys
import fasttext, numpy
folder, options, *shape = sys.argv[1:]
model = fasttext.train_supervised(folder + "/train", **json.loads(options))
found = numpy.zeros(list(map(int, shape)))
with open(folder + "/test", encoding="utf-8", newline="\\n") as file:
    for row, line in zip(found, file):
        for label, probability in zip(*model.predict(line.rstrip("\\n"), k=-1)):
            row[int(label.removeprefix("__label__"))] = probability
numpy.save(folder + "/found.npy", found)
"""
"""In a process that has trained other models, fastText now and then meets numbers that are not finite."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """A linear classifier: `run` learns a train split and returns probabilities `[N, C]` of the texts of another."""

    description: str
    run: Callable[[Split, Split, int], Floats]


def run_baseline(name: str, train: Split, test: Split, num_labels: int) -> tuple[Floats, float]:
    """Trains a baseline; returns the probabilities `[N, C]` of the texts of `test`, and the seconds that it took.

    A label that `train` lacks has next to none. `DataError` where `train` holds no n-gram, or a single label.
    """
    started = time.monotonic()
    num_present = np.count_nonzero(label_counts(train.label_ids, num_labels))
    if num_present < 2:
        raise DataError(f"{train.name} split: a baseline needs texts of at least two labels, found {num_present}")
    return BASELINES[name].run(train, test, num_labels), time.monotonic() - started


def known_baselines(names: Sequence[str] | None) -> list[str]:
    """Returns the named baselines, or all whose packages are installed; `ConfigError` where one is not there."""
    known = [name for name in BASELINES if name != "fasttext" or importlib.util.find_spec("fasttext")]
    for name in names or ():
        if name not in known:
            more = "; fasttext needs: pip install fasttext-numpy2-wheel" if "fasttext" not in known else ""
            raise ConfigError(f"--only: baseline {name!r} is not one of {', '.join(known)}{more}")
    return list(dict.fromkeys(names or known))


def tfidf_model(**options: Any) -> Any:
    """Returns a scikit-learn pipeline that takes n-gram counts: TF-IDF and a `LogisticRegression` per label."""
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline

    linear = LogisticRegression(C=10.0, solver="liblinear", dual=True, random_state=0, **options)
    return make_pipeline(TfidfTransformer(sublinear_tf=True), OneVsRestClassifier(linear))


def by_label(predicted: Floats, present: Sequence[int], num_labels: int, *, is_multi: bool = False) -> Floats:
    """Spreads probabilities `[N, P]` of P label ids that occur to all `[N, C]`; rows sum to 1, but with `is_multi`."""
    probabilities = np.zeros((len(predicted), num_labels))
    probabilities[:, present] = np.clip(predicted, np.finfo(np.float64).tiny, 1.0)
    return probabilities if is_multi else np.asarray(probabilities / probabilities.sum(axis=1, keepdims=True))


def _tfidf(train: Split, test: Split, num_labels: int) -> Floats:
    spaced = is_spaced(train.texts)
    counts, columns = kept(count_pairs(train.texts, spaced=spaced), min_texts=1 if len(train) < SMALL_TRAIN else 2)
    with warnings.catch_warnings():  # the last digits of its optimum are of no interest
        warnings.simplefilter("ignore")
        model = tfidf_model(max_iter=300).fit(counts, train.label_ids)
    predicted = model.predict_proba(count_pairs(test.texts, spaced=spaced)[:, columns])
    return by_label(predicted, model.classes_, num_labels, is_multi=train.label_ids.ndim == 2)


def _nbsvm(train: Split, test: Split, num_labels: int) -> Floats:
    model = NgramModel.train(NgramCounts.of_split(train), train.label_ids, num_labels, is_mean=False)
    return Task.of(train.label_ids).probabilities(model.logits(test.texts))


def _fasttext(train: Split, test: Split, num_labels: int) -> Floats:
    """Joulin et al. 2017: linear in the mean of the vectors of words and pairs of words, in a process of its own."""
    is_multi = train.label_ids.ndim == 2
    token = re.compile(WORD if is_spaced(train.texts) else r"\S")
    order = np.random.default_rng(0).permutation(len(train)).tolist()  # fastText does not shuffle
    ids = [np.flatnonzero(row) for row in train.label_ids] if is_multi else train.label_ids[:, np.newaxis]
    rows: dict[str, Any] = {
        "train": ((train.texts[i], ids[i]) for i in order),
        "test": ((text, ()) for text in test.texts),
    }
    options = {
        "wordNgrams": 2, "dim": 10, "epoch": max(5, min(100, 100_000 // len(train))), "bucket": 2**20, "lr": 0.5,
        "loss": "ova" if is_multi else "softmax" if num_labels <= FEW_LABELS else "hs", "seed": 1, "verbose": 0,
        "thread": 1,  # several would give another result each time
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="bilstm-cls-") as folder:
        for name, marked in rows.items():
            with (Path(folder) / name).open("w", encoding="utf-8", errors="replace", newline="\n") as file:
                for text, label_ids in marked:
                    marks = "".join(f"__label__{label_id} " for label_id in label_ids)
                    file.write(f"{marks}{' '.join(token.findall(text.casefold()))}\n")
        command = [sys.executable, "-c", _FASTTEXT, folder, json.dumps(options), str(len(test)), str(num_labels)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")  # noqa: S603
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise DataError(f"the baseline fasttext failed ({reason}); leave it out with --only")
        predicted = np.load(Path(folder) / "found.npy", allow_pickle=False)
    present = np.flatnonzero(label_counts(train.label_ids, num_labels)).tolist()
    return by_label(predicted[:, present], present, num_labels, is_multi=is_multi)


BASELINES: dict[str, Baseline] = {
    "tfidf": Baseline("TF-IDF of 1-2 grams and logistic regression", _tfidf),
    "nbsvm": Baseline("NB-SVM of 1-3 grams", _nbsvm),
    "fasttext": Baseline("fastText with pairs of words", _fasttext),
}
