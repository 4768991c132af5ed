"""Labels that a linear model, trained on the other texts, holds for wrong."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bilstm_cls.data.store import chunks
from bilstm_cls.evaluation.breakdown import confident_disagreements
from bilstm_cls.evaluation.metrics import Floats, Ints, example_losses
from bilstm_cls.ngrams import CHUNK, WORD, is_spaced

NUM_FOLDS = 5
NUM_COLUMNS = 2**20


@dataclass(frozen=True)
class LabelErrors:
    """What the other texts say of the labels.

    Attributes:
        rows: texts whose label is likely wrong, the likeliest first.
        probabilities: `[N, C]` of models that were not trained on the text.
        losses: `[N]` of the labels, in nats.
    """

    rows: Ints
    probabilities: Floats
    losses: Floats


def label_errors(texts: Sequence[str], label_ids: Ints, groups: Ints, num_labels: int) -> LabelErrors:
    """Judges every label by a logistic regression over TF-IDF of 1-2 grams that was trained on the other folds.

    Args:
        texts: N texts.
        label_ids: `[N]`, of at least two labels.
        groups: `[N]`: texts of one number are kept in one fold, as near duplicates have to be.
        num_labels: C.
    """
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import PredefinedSplit, cross_val_predict
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline

    linear = LogisticRegression(C=10.0, solver="liblinear", dual=True, random_state=0, tol=1e-2)
    model = make_pipeline(TfidfTransformer(sublinear_tf=True), OneVsRestClassifier(linear))
    kinds, members = np.unique(groups, return_inverse=True)
    folds = np.random.default_rng(0).permutation(np.arange(len(kinds)) % NUM_FOLDS)[members]
    counts = _counts(texts)
    with warnings.catch_warnings():  # of labels that a fold lacks, and of an optimum's last digits
        warnings.simplefilter("ignore")
        present, ids = np.unique(label_ids, return_inverse=True)
        own = cross_val_predict(model, counts, ids, cv=PredefinedSplit(folds), method="predict_proba")
    probabilities = np.zeros((len(texts), num_labels))
    probabilities[:, present] = own
    probabilities /= np.maximum(probabilities.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return LabelErrors(
        confident_disagreements(probabilities, label_ids), probabilities, example_losses(probabilities, label_ids)
    )


def _counts(texts: Sequence[str]) -> Any:
    """Returns the counts `[N, K]` of hashed 1-2 grams of words, or of 1-3 characters, that two texts share."""
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import HashingVectorizer

    spaced = is_spaced(texts[:CHUNK])
    vectorizer = HashingVectorizer(
        preprocessor=lambda text: text.casefold().encode("utf-8", "replace").decode("utf-8"),
        token_pattern=WORD if spaced else None,
        analyzer="word" if spaced else "char",
        ngram_range=(1, 2 if spaced else 3),
        n_features=NUM_COLUMNS,
        alternate_sign=False,
        norm=None,
        dtype=np.float32,
    )
    counts = vstack([vectorizer.transform(chunk) for chunk in chunks(texts, CHUNK)], format="csr")
    shared = np.flatnonzero(np.bincount(counts.indices, minlength=NUM_COLUMNS) > 1)
    return counts[:, shared] if len(shared) else counts  # an n-gram of one text tells nothing of another
