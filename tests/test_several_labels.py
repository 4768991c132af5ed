"""A run whose texts have several labels or none, from the file to every way of asking it."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.sparse import csr_matrix
from sklearn.metrics import f1_score

from bilstm_cls.classifier import Classifier, Task
from bilstm_cls.errors import CheckpointError
from bilstm_cls.estimator import TextClassifier
from bilstm_cls.evaluation.evaluate import rebuild_report
from bilstm_cls.evaluation.explain import explain_prediction
from bilstm_cls.run_directory import RunDirectory
from bilstm_cls.runtime import Runtime, sigmoid
from bilstm_cls.training.calibration import fit_scales
from tests.command_line import run_cli

pytestmark = pytest.mark.usefixtures("light")

WORDS = {"food": "soup", "rude": "grumpy", "late": "delayed"}
"""Each label and the word that stands for it."""


def texts(number: int, seed: int) -> list[tuple[str, set[str]]]:
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(number):
        labels = {label for label, share in zip(WORDS, (0.5, 0.4, 0.2), strict=True) if generator.random() < share}
        words = [
            *(word for label, word in WORDS.items() if label in labels),
            *generator.choice(["the", "waiter", "table", "door", "a"], 4),
        ]
        rows.append((" ".join(generator.permutation(words)), labels))
    return rows


def write_csv(path: Path, rows: list[tuple[str, set[str]]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text", *WORDS], *((x, *(int(w in y) for w in WORDS)) for x, y in rows)])
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    data = write_csv(folder / "a.csv", texts(240, 0))
    assert run_cli("init", "--data", data, "-o", folder / "a.yaml").code == 0
    sizes = ["embedding.dim=16", "embedding.init=random", "model.hidden_size=8", "train.epochs=4", "train.threads=1"]
    sets = [word for key in [*sizes, "train.baselines=false"] for word in ("--set", key)]
    outcome = run_cli("train", "-c", folder / "a.yaml", *sets, "-o", folder / "runs", "--quiet")
    assert outcome.code == 0, outcome.stderr
    return folder / "runs" / "a"


@settings(deadline=None, max_examples=30)
@given(
    arrays.arrays(np.float64, (12, 2), elements=st.sampled_from([0.1, 0.2, 0.4, 0.7, 0.9])),
    arrays.arrays(np.uint8, (12, 2), elements=st.integers(0, 1)),
)
def test_a_threshold_gives_its_label_the_greatest_f1_there_is(probabilities: Any, has_label: Any) -> None:
    tuned = Task.of(has_label).tuned(probabilities, has_label)
    assert tuned.thresholds is not None
    predicted = tuned.predicted(probabilities)
    for i, of_label in enumerate(has_label.T):
        if not of_label.any():
            assert tuned.thresholds[i] == 0.5
            continue
        best = max(f1_score(of_label, probabilities[:, i] >= t, zero_division=0) for t in probabilities[:, i])
        assert f1_score(of_label, predicted[:, i], zero_division=0) == pytest.approx(best)


def test_each_label_is_calibrated_by_itself() -> None:
    true = np.random.default_rng(0).normal(0, 2, (20000, 2))
    has_label = (np.random.default_rng(1).random(true.shape) < sigmoid(true)).astype(np.uint8)
    scales, weights = fit_scales(true * [4.0, 0.5], has_label)
    assert np.asarray(scales) == pytest.approx([0.25, 2.0], rel=0.05)
    assert not np.any(weights)


def test_a_run_learns_which_labels_a_text_has(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text("utf-8"))
    assert metrics["test/micro_f1"] > 0.9
    low, high = metrics["test/intervals/micro_f1"]
    assert low < metrics["test/micro_f1"] <= high + 1e-9
    assert metrics["data/labels/train/late"] > 0
    evaluated = json.loads(run_cli("eval", "--run", run, "--json").stdout)
    assert evaluated["micro_f1"] == metrics["test/micro_f1"]
    assert evaluated["per_class"]["late"]["average_precision"] == metrics["test/per_class/late/average_precision"]
    classifier = Classifier.load(run, device="cpu")
    found = classifier.predict(["the soup delayed", "grumpy waiter", "a door"])
    assert [set(prediction.labels or ()) for prediction in found] == [{"food", "late"}, {"rude"}, set()]
    thresholds = json.loads((run / "thresholds.json").read_text("utf-8"))
    for prediction in found:
        assert prediction.labels == tuple(
            label for label, probability in prediction.probabilities.items() if probability >= thresholds[label]
        )


def test_the_report_counts_what_each_label_is_taken_for_and_what_is_likely_wrong(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    path = copy / "predictions_test.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    late = Classifier.load(run, device="cpu").predict_proba([row["text"] for row in rows])[:, 2]
    wrong = rows[late.argmin()]
    wrong["labels"] = json.dumps([*json.loads(wrong["labels"]), "late"])
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    rebuild_report(copy, device="cpu")
    report = (copy / "report.html").read_text("utf-8")
    assert "wrongly predicted" in report
    doubtful = report.partition('<section id="doubtful">')[2].partition("</section>")[0]
    assert f"a.csv:{wrong['line']}" in doubtful
    assert "about <b>late</b>" in doubtful


def test_inspect_finds_labels_that_were_made_wrong(tmp_path: Path) -> None:
    rows, wrong = texts(120, 0), range(0, 120, 30)
    for i in wrong:
        rows[i] = rows[i][0], rows[i][1] ^ {"late"}
    done = run_cli("inspect", "--data", write_csv(tmp_path / "a.csv", rows), "--deep", "--json")
    found = {row["place"]: {row["label"], row["likelier"]} for row in done.json["likely_wrong_labels"]["found"]}
    places = {f"{tmp_path / 'a.csv'}:{i + 2}" for i in wrong}
    assert len(places & set(found)) > 1
    assert all(found[place] == {"late", "not late"} for place in places & set(found))


def test_predict_prints_the_labels_and_all_probabilities(run: Path) -> None:
    asked = ("predict", "--run", run, "the soup delayed")
    assert run_cli(*asked).stdout.split("\t")[0] == "food,late"
    answer = json.loads(run_cli(*asked, "--json").stdout)
    assert answer["labels"] == ["food", "late"]
    assert list(answer["probabilities"]) == list(WORDS)
    assert "label" not in answer
    sure = json.loads(run_cli(*asked, "--json", "--min-probability", "1").stdout)
    assert sure["labels"] == []


def test_it_is_said_that_a_label_is_explained_which_is_not_predicted(run: Path) -> None:
    found = {text: run_cli("predict", "--run", run, "--explain", text).stdout for text in ("a table", "the soup")}
    assert ["no label is predicted" in words for words in found.values()] == [True, False]


def test_a_comparison_calls_the_scores_what_eval_calls_them(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "other")
    shown = run_cli("report", "--run", run, "--run", tmp_path / "other").stdout
    assert shown.count("subset accuracy") == shown.count("accuracy") == 3


def test_every_predicted_label_is_explained(run: Path) -> None:
    classifier = Classifier.load(run, device="cpu")
    (prediction,) = classifier.predict(["the soup delayed"])
    food, late = explain_prediction(classifier.loaded, prediction)
    assert [food.label, late.label] == ["food", "late"]
    assert max(food.terms, key=lambda term: term.value).token == "soup"
    assert max(late.terms, key=lambda term: term.value).token == "delayed"
    assert sigmoid(np.array([food.logit]))[0] == pytest.approx(prediction.probabilities["food"], abs=1e-6)


def test_a_bundle_answers_as_the_run_does(run: Path, tmp_path: Path) -> None:
    outcome = run_cli("export", "--run", run, "-o", tmp_path / "bundle", "--json")
    assert outcome.code == 0, outcome.stderr
    asked = [text for text, _ in texts(40, 1)]
    runtime, classifier = Runtime.load(tmp_path / "bundle", threads=1), Classifier.load(run, device="cpu")
    assert runtime.predict_proba(asked) == pytest.approx(classifier.predict_proba(asked), abs=1e-5)
    assert [p.labels for p in runtime.predict(asked)] == [p.labels for p in classifier.predict(asked)]


@pytest.mark.parametrize(
    "content", ['{"rude": 0.5, "food": 0.5, "late": 0.5}', '{"food": 0.5, "rude": 2, "late": 0.5}']
)
def test_thresholds_that_do_not_fit_are_not_used(content: str, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "thresholds.json").write_text(content, "utf-8")
    with pytest.raises(CheckpointError, match=r"thresholds\.json"):
        RunDirectory(tmp_path / "run").load_model()


def test_a_run_is_resumed_to_the_same_bits(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    shutil.copytree(run, folder / "a")
    config = (folder / "a" / "config.yaml").read_text("utf-8")
    for name in ("model.safetensors", "metrics.json", "thresholds.json"):
        (folder / "a" / name).unlink()
    (folder / "a" / "status.json").write_text('{"status": "stopped"}', "utf-8")
    (folder / "c.yaml").write_text(config, "utf-8")
    outcome = run_cli("train", "-c", folder / "c.yaml", "-o", folder, "--resume", "--quiet")
    assert outcome.code == 0, outcome.stderr
    for name in ("model.safetensors", "thresholds.json"):
        assert (folder / "a" / name).read_bytes() == (run / name).read_bytes()


def test_texts_without_labels_are_learned_from(run: Path, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("".join(f"{text}\n" for text, _ in texts(60, 3)), "utf-8")
    changes = ["train.objective=virtual_adversarial", "train.teacher=auto", "train.epochs=1", "name=again"]
    sets = [word for key in [*changes, f"data.unlabelled={tmp_path / 'more.txt'}"] for word in ("--set", key)]
    outcome = run_cli("train", "-c", run / "config.yaml", *sets, "-o", tmp_path, "--quiet")
    assert outcome.code == 0, outcome.stderr
    metrics = json.loads((tmp_path / "again" / "metrics.json").read_text("utf-8"))
    assert metrics["test/micro_f1"] > 0.9
    assert metrics["teacher/valid/micro_f1"] > 0.9
    assert [len(factors) for factors in metrics["teacher/factors"]] == [3, 3]


@pytest.mark.parametrize("kind", ["array", "sparse", "frame"])
def test_the_estimator_takes_a_matrix(kind: str, tmp_path: Path) -> None:
    rows = texts(80, 2)
    asked, matrix = [text for text, _ in rows], np.array([[int(k in found) for k in WORDS] for _, found in rows])
    make = {"array": np.array, "sparse": csr_matrix}.get(kind)
    y = make(matrix) if make else pytest.importorskip("pandas").DataFrame(matrix, columns=list(WORDS))
    sizes = {"dim": 16, "hidden_size": 16, "batch_size": 8, "min_freq": 1, "threads": 1}
    model = TextClassifier(epochs=8, patience=None, valid=0.2, learning_rate=0.03, dropout=0.0, **sizes).fit(asked, y)
    assert model.classes_.tolist() == (list(WORDS) if kind == "frame" else [0, 1, 2])
    predicted = model.predict(asked)
    assert predicted.shape == matrix.shape
    assert f1_score(matrix, predicted, average="micro") > 0.9
    model.save(tmp_path / "run")
    again = TextClassifier.load(tmp_path / "run")
    assert (again.predict(asked) == predicted).all()
    assert again.classes_.tolist() == model.classes_.tolist()
    with pytest.raises(ValueError, match="y is a matrix"):
        TextClassifier().fit(["one text", "two"], np.array([[0, 1], [0, 1]]))
