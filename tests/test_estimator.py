"""scikit-learn's contracts, and that `fit` depends on nothing but its arguments, texts and labels."""

import inspect
import json
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from joblib import parallel_config
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import estimator_checks_generator
from sklearn.utils.validation import check_is_fitted, validate_data

from bilstm_cls.classifier import Classifier
from bilstm_cls.config import Config
from bilstm_cls.data.dataset import load_dataset
from bilstm_cls.errors import CheckpointError, ConfigError
from bilstm_cls.estimator import ARGUMENTS, TextClassifier
from bilstm_cls.run_directory import RunDirectory
from tests.command_line import run_cli
from tests.conftest import reviews

TINY: dict[str, Any] = {
    "max_length": 20, "dim": 4, "hidden_size": 6, "epochs": 2, "batch_size": 16, "learning_rate": 2e-2,
    "patience": None, "threads": 1, "overrides": {"train.ema_decay": None},
}  # fmt: skip
TEXTS = [text for text, _ in reviews(60)]
LABELS = [label for _, label in reviews(60)]

NOT_FOR_TEXT = {
    # Texts are no numbers: they have no type, sign, NaN or order in memory, and every one must be a str.
    "check_array_api_input", "check_complex_data", "check_dtype_object", "check_estimators_dtypes",
    "check_estimators_nan_inf", "check_f_contiguous_array_estimator", "check_positive_only_tag_during_fit",
    "check_readonly_memmap_input",
    # They are no sparse matrix.
    "check_estimator_sparse_array", "check_estimator_sparse_matrix", "check_estimator_sparse_tag",
    # One dimension is what they have, and no number of features; there is no partial_fit.
    "check_estimators_partial_fit_n_features", "check_fit1d", "check_fit2d_predict1d", "check_fit2d_1feature",
    "check_n_features_in", "check_n_features_in_after_fitting",
}  # fmt: skip
"""scikit-learn's checks that make demands on arrays of numbers, and say nothing about one of texts."""


class OnNumbers(TextClassifier):
    """Reads each row of numbers as a text with a word for every cell.

    scikit-learn's checks make such rows and skip an estimator of texts altogether. Through this one they test fitting,
    refusing, cloning, pickling and predicting.
    """

    def fit(self, X: Any, y: Any) -> "OnNumbers":  # noqa: N803 - scikit-learn's names
        super().fit(self._texts(X, reset=True), y)
        return self

    def predict_proba(self, X: Any) -> Any:  # noqa: N803
        check_is_fitted(self)
        return super().predict_proba(self._texts(X, reset=False))

    def _texts(self, numbers: Any, *, reset: bool) -> list[str]:
        rows = validate_data(self, numbers, reset=reset)
        return [" ".join(f"{place}n{np.floor(2 * cell):.0f}" for place, cell in enumerate(row)) for row in rows]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.one_d_array, tags.input_tags.string = True, False, False
        return tags


def checks() -> dict[str, Any]:
    overrides = {"train.ema_decay": None, "train.evaluate_every": 1000}
    quick = {"epochs": 3, "learning_rate": 0.2, "min_freq": 1, "valid": None, "overrides": overrides}
    estimator = OnNumbers(**TINY | quick, dropout=0.0, embedding_dropout=0.0, word_dropout=0.0)
    found = {}
    for model, check in estimator_checks_generator(estimator):
        is_variant = hasattr(check.func, "func")  # that casts numbers or maps them into memory
        name = (check.func.func if is_variant else check.func).__name__
        if not is_variant or name in NOT_FOR_TEXT:
            found[name] = model, check
    return found


CHECKS = checks()


@pytest.mark.parametrize("name", [name for name in CHECKS if name not in NOT_FOR_TEXT])
def test_scikit_learns_check_passes(name: str) -> None:
    model, check = CHECKS[name]
    check(model)


def tiny(**options: Any) -> TextClassifier:
    return TextClassifier(**TINY | options)


@pytest.fixture(scope="module")
def fitted() -> TextClassifier:
    """Do not fit it again."""
    return tiny().fit(TEXTS, LABELS)


def weights(model: TextClassifier) -> dict[str, torch.Tensor]:
    return model.classifier_.model.state_dict()


def assert_same_model(one: TextClassifier, other: TextClassifier) -> None:
    torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=0)
    assert one.classifier_.tokenizer.to_json() == other.classifier_.tokenizer.to_json()
    np.testing.assert_array_equal(one.classes_, other.classes_)
    assert one.classes_.dtype == other.classes_.dtype


def test_arguments_have_the_defaults_of_their_keys() -> None:
    defaults = {name: value.default for name, value in inspect.signature(TextClassifier).parameters.items()}
    config = Config().model_dump()
    flat = {f"{s}.{key}": value for s in config if isinstance(config[s], dict) for key, value in config[s].items()}
    flat["seed"] = config["seed"]
    assert defaults == {argument: flat[key] for argument, key in ARGUMENTS.items()} | {"overrides": None}


def test_it_trains_the_very_model_that_the_command_line_trains(trained_run: Path) -> None:
    splits = load_dataset(RunDirectory(trained_run).load_config().data).splits
    rows = []
    for name in ("train", "valid"):
        rows += zip(splits[name].lines, splits[name].texts, splits[name].label_ids, strict=True)
    rows.sort()
    model = TextClassifier.load(trained_run)
    valid = len(splits["valid"]) / len(rows)  # the run's is a fraction of all texts, those of its test split too
    again = (
        clone(model).set_params(valid=valid).fit([text for _, text, _ in rows], [model.classes_[i] for *_, i in rows])
    )
    torch.testing.assert_close(weights(again), weights(model), rtol=0, atol=0)
    history = [json.loads(line) for line in (trained_run / "history.jsonl").read_text().splitlines()]
    assert [row["valid/accuracy"] for row in again.history_] == [row["valid/accuracy"] for row in history]


def test_fitting_depends_on_nothing_around_it_and_leaves_it_alone(
    fitted: TextClassifier,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    torch.manual_seed(99)
    np.random.seed(99)
    before, threads, cached = torch.get_rng_state(), torch.get_num_threads(), sorted(cache.rglob("*"))
    assert_same_model(tiny().fit(TEXTS, LABELS), fitted)
    tiny(epochs=1, threads=threads + 1).fit(TEXTS, LABELS)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert sorted(cache.rglob("*")) == cached
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("package", ["pandas", "polars"])
def test_columns_of_every_kind_give_the_same_model(package: str, fitted: TextClassifier) -> None:
    column = pytest.importorskip(package).Series
    model = tiny().fit(column(TEXTS), column(LABELS))
    torch.testing.assert_close(weights(model), weights(fitted), rtol=0, atol=0)
    np.testing.assert_array_equal(model.predict_proba(column(TEXTS)), fitted.predict_proba(TEXTS))


@pytest.mark.parametrize(
    ("negative", "positive", "dtype"),
    [(-3, 12, "int64"), (False, True, "bool"), (1.0, 2.0, "float64")],
)
def test_labels_come_back_as_they_were_given(negative: Any, positive: Any, dtype: str, tmp_path: Path) -> None:
    labels = [{"neg": negative, "pos": positive}[label] for label in LABELS]
    model = tiny().fit(TEXTS, labels)
    assert model.classes_.tolist() == [negative, positive]
    assert model.classes_.dtype == dtype
    assert set(model.predict(TEXTS).tolist()) <= {negative, positive}
    assert_same_model(pickle.loads(pickle.dumps(model)), model)
    model.save(tmp_path / "model")
    assert_same_model(TextClassifier.load(tmp_path / "model"), model)
    assert Classifier.load(tmp_path / "model").labels == [str(negative), str(positive)]


def test_class_weights_by_label_and_overrides_reach_the_network_and_come_back(tmp_path: Path) -> None:
    numbers = np.array([int(label == "pos") for label in LABELS])
    overrides = {"model.cell": "gru", "train.ema_decay": None, "text.lowercase": False}
    ones = tiny(class_weights={0: 1.0, np.int64(1): 50.0}, overrides=overrides).fit(TEXTS, numbers)
    zeros = tiny(class_weights={0: 50.0, 1: 1.0}).fit(TEXTS, numbers)
    assert ones.predict_proba(TEXTS)[:, 1].mean() > zeros.predict_proba(TEXTS)[:, 1].mean()
    assert ones.classifier_.config.model.cell == "gru"
    ones.save(tmp_path / "model")
    assert TextClassifier.load(tmp_path / "model").get_params() == ones.get_params()


@pytest.mark.parametrize(
    ("texts", "place"), [("a text", "X is 'a text', a str"), (["a", "b", float("nan")], r"X\[2\] is nan, a float")]
)
def test_texts_of_another_kind_are_refused(texts: Any, place: str, fitted: TextClassifier) -> None:
    for function in (lambda: tiny().fit(texts, ["x", "y"]), lambda: fitted.predict(texts)):
        with pytest.raises(TypeError, match=place):
            function()


@pytest.mark.parametrize(
    ("texts", "labels"),
    [
        ([], []),
        (["a", "b", "c"], ["x", None, "y"]),
        (["a", "b", "c"], [1.0, float("nan"), 2.0]),
        (["a", "b", "c"], [["x", "y"], ["y"], []]),
        (["a", "b", "c"], np.array([1, "1", "2"], dtype=object)),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(texts: list[str], labels: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        tiny().fit(texts, labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding": "glove"}, "^embedding: .*not 'glove'"),
        ({"dim": 8.5, "dropout": -1}, "(?s)dim: .*dropout: .*not -1"),
        ({"device": "cuda:99"}, "^device: 'cuda:99'"),
        ({"min_freq": 10**6}, "lower min_freq"),
        ({"class_weights": {"good": 1.0}}, "^class_weights: 'good'"),
        ({"overrides": {"train.epochs": 3}}, "^overrides: .*argument"),
        ({"overrides": {"train.processes": 2}}, "^overrides: 'train.processes'"),
        ({"overrides": {"model.num_layer": 2}}, "num_layer"),
    ],
)
def test_a_wrong_argument_is_named_when_fitting(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options).fit(TEXTS, LABELS)


def test_it_works_in_a_pipeline_and_a_grid_of_numpys_numbers() -> None:
    pipeline = make_pipeline(FunctionTransformer(_shout), tiny(overrides={"text.lowercase": False}))
    grid = {
        "textclassifier__hidden_size": np.array([3, 5]),
        "textclassifier__pooling": [("mean", "max")],
    }
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(TEXTS, LABELS)
    assert search.best_params_["textclassifier__hidden_size"] in (3, 5)
    assert "FILM" in search.best_estimator_[-1].classifier_.tokenizer.tokens


def _shout(texts: list[str]) -> list[str]:
    return [text.upper() for text in texts]


def test_it_is_cross_validated_in_threads_with_the_same_scores_each_time() -> None:
    options: dict[str, Any] = {"cv": 2, "scoring": "roc_auc", "error_score": "raise"}
    one = cross_val_score(tiny(), np.array(TEXTS), LABELS, **options)
    with parallel_config(backend="threading"):
        other = cross_val_score(tiny(), np.array(TEXTS), LABELS, n_jobs=2, **options)
    assert one.tolist() == other.tolist()


def test_a_pickle_holds_the_model_as_a_run_directory_and_no_code_but_the_class(fitted: TextClassifier) -> None:
    content = pickle.dumps(fitted, protocol=2)
    names = {argument for opcode, argument, _ in pickletools.genops(content) if opcode.name == "GLOBAL"}
    assert {name.partition(" ")[0] for name in names} <= {"bilstm_cls.estimator", "copyreg", "_codecs"}
    copy = pickle.loads(content)
    assert_same_model(copy, fitted)
    assert (copy.get_params(), copy.history_) == (fitted.get_params(), fitted.history_)


def test_what_is_saved_is_a_run_directory_that_gives_the_same_model(fitted: TextClassifier, tmp_path: Path) -> None:
    path = tmp_path / "model"
    fitted.save(path)
    loaded = TextClassifier.load(path)
    assert_same_model(loaded, fitted)
    assert (loaded.get_params(), loaded.history_) == (fitted.get_params(), fitted.history_)
    assert_same_model(clone(loaded).fit(TEXTS, LABELS), fitted)
    done = run_cli("predict", "--run", path, "--json", "a good film")
    assert done.json["probabilities"]["pos"] == fitted.predict_proba(["a good film"])[0, 1]
    assert run_cli("inspect", "--run", path).code == 0
    assert run_cli("eval", "--run", path).code == 3  # the texts were in memory
    with pytest.raises(ConfigError, match="overwrite=True"):
        fitted.save(path)
    fitted.save(path, overwrite=True)
    (path / "metrics.json").write_text(json.dumps({"data/label_type": "int", "data/label_dtype": "<i8"}))
    with pytest.raises(CheckpointError, match="of the type 'int'"):
        TextClassifier.load(path)
