"""Labels in doubt: those that were made wrong."""

import numpy as np
import pytest

from bilstm_cls.evaluation.label_errors import label_errors
from tests.conftest import reviews


@pytest.mark.parametrize("num_labels", [2, 3])
def test_labels_that_were_made_wrong_are_found(num_labels: int) -> None:
    rows = reviews(300)
    texts = [text for text, _ in rows]
    label_ids = np.array([label == "pos" for _, label in rows], dtype=np.int64)
    if num_labels == 3:
        texts += [f"sober report number {i} about finance" for i in range(60)]
        label_ids = np.concatenate([label_ids, np.full(60, 2)])
    wrong = np.array([3, 50, 51, 120, 200])
    label_ids[wrong] = 1 - label_ids[wrong]
    found = label_errors(texts, label_ids, np.arange(len(texts)), num_labels)
    assert len(set(wrong.tolist()) & set(found.rows[:6].tolist())) >= 4
    np.testing.assert_allclose(found.probabilities.sum(1), 1)
    answers = found.probabilities.argmax(1)
    assert (answers != label_ids)[found.rows].all()
    assert found.losses[wrong].mean() > found.losses.mean() + 1


def test_copies_of_a_text_do_not_bear_each_other_out() -> None:
    rows = reviews(200)
    texts = [text for text, _ in rows] + [rows[0][0]] * 10
    label_ids = np.array([label == "pos" for _, label in rows] + [rows[0][1] == "neg"] * 10, dtype=np.int64)
    apart = label_errors(texts, label_ids, np.arange(len(texts)), 2)
    groups = np.concatenate([np.arange(200), np.zeros(10, dtype=np.int64)])
    together = label_errors(texts, label_ids, groups, 2)
    copies = set(range(200, 210))
    assert copies <= set(together.rows.tolist())
    assert not copies & set(apart.rows.tolist())


def test_a_label_of_a_single_text_is_judged_too() -> None:
    rows = reviews(60)
    texts = ["quite another thing", *(text for text, _ in rows)]
    label_ids = np.array([2, *(label == "pos" for _, label in rows)], dtype=np.int64)
    found = label_errors(texts, label_ids, np.arange(61), 4)
    assert found.probabilities.shape == (61, 4)
    assert (found.probabilities[:, 3] == 0).all()
    assert np.isfinite(found.losses).all()
