"""What many tests share: a cache of their own, a small file of reviews, and a run that was really trained on it."""

import csv
import logging
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bilstm_cls.config import Config
from bilstm_cls.config_file import load_config

# Before torch is imported: the tests' own processes fill the cores, and threads that wait for others are slow then.
os.environ.setdefault("OMP_NUM_THREADS", "1")

WORDS = {
    "pos": ["good", "great", "fine", "lovely", "superb", "warm", "bright", "fun"],
    "neg": ["bad", "awful", "poor", "dull", "cold", "weak", "dark", "sad"],
}
PLAIN = ["the", "a", "film", "plot", "actor", "scene", "it", "was", "with", "and", "of", "music"]

TINY = [
    "text.max_length=20", "embedding.dim=8", "model.hidden_size=8", "train.epochs=4", "train.batch_size=16",
    "train.learning_rate=2e-2", "train.ema_decay=0.9", "train.patience=null", "train.threads=1",
]  # fmt: skip

PRETRAINED = [
    "pretrain.epochs=2", "pretrain.batch_size=16", "pretrain.bptt=8", "pretrain.num_samples=16",
    "pretrain.learning_rate=2e-2",
]  # fmt: skip
"""An encoder of the same sizes."""


def reviews(number: int, *, seed: int = 0) -> list[tuple[str, str]]:
    """Returns (text, label) rows that a small model learns in seconds."""
    chooser = random.Random(seed)
    rows = []
    for i in range(number):
        label = ("neg", "pos")[i % 2]
        words = chooser.choices(PLAIN, k=chooser.randint(2, 25)) + chooser.choices(WORDS[label], k=2)
        chooser.shuffle(words)
        rows.append((" ".join(words), label))
    return rows


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keeps all tests away from the user's cache and from the network."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BILSTM_CLS_CACHE", str(folder))
        patch.setenv("BILSTM_CLS_OFFLINE", "1")
        yield folder


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What is logged, also where an earlier test ran the command line, which keeps the messages to itself."""
    monkeypatch.setattr(logging.getLogger("bilstm_cls"), "propagate", True)
    caplog.set_level(logging.INFO, "bilstm_cls")
    return caplog


@pytest.fixture(scope="session")
def reviews_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of 240 rows with the columns text and label."""
    path = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(reviews(240))
    return path


@pytest.fixture(scope="session")
def tiny_config(reviews_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Config]:
    """Returns a config of a model that trains in a second; further overrides may be given."""
    output = tmp_path_factory.mktemp("runs")

    def make(*overrides: str) -> Config:
        data = [f"data.train={reviews_csv}", "data.test=0.2", "name=tiny", f"output_dir={output}"]
        return load_config(None, [*data, *TINY, *overrides])

    return make


@pytest.fixture(scope="session")
def chinese_run(tiny_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a model of Chinese characters and their pairs, with labels by name; do not write into it."""
    from bilstm_cls.training.run import train

    folder, chooser = tmp_path_factory.mktemp("headlines"), random.Random(0)
    words = ["中国", "上海", "今日", "公布", "新", "记者", "A股", "2010年", "the", "：", "！"]
    marks = [["球队", "比赛", "冠军", "教练", "联赛", "进球"], ["股票", "基金", "银行", "市场", "投资", "利率"]]
    texts = [chooser.choices(words, k=4) + chooser.choices(marks[i % 2], k=2) for i in range(160)]
    lines = [f"{''.join(chooser.sample(text, k=6))}\t{i % 2}\n" for i, text in enumerate(texts)]
    (folder / "names.txt").write_text("体育\n财经\n", "utf-8")
    (folder / "headlines.txt").write_text("".join(lines), "utf-8")
    data = [f"data.train={folder / 'headlines.txt'}", f"data.label_names={folder / 'names.txt'}"]
    return train(tiny_config(*data, "text.tokenizer=cjk", "model.bigrams=500", "name=chinese")).run.path


@pytest.fixture(scope="session")
def encoder(tiny_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an encoder that was pretrained on the train split for two epochs; do not write into it."""
    from bilstm_cls.training.pretrain import pretrain

    folder = tmp_path_factory.mktemp("pretrained") / "encoder"
    pretrain(tiny_config(*PRETRAINED), folder)
    return folder


@pytest.fixture(scope="session")
def trained_run(tiny_config: Callable[..., Config]) -> Path:
    """The run directory of a model that was trained once for the whole session; do not write into it."""
    from bilstm_cls.training.run import train

    return train(tiny_config()).run.path


@pytest.fixture(scope="module")
def short_config(tiny_config: Callable[..., Config]) -> Callable[..., Config]:
    """Returns the config of a run of 2 epochs of 11 steps."""
    return lambda *overrides: tiny_config("train.epochs=2", *overrides)


@pytest.fixture(scope="module")
def whole_run(short_config: Callable[..., Config], light: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of that config that nothing happened to."""
    from bilstm_cls.training.run import train

    return train(short_config(f"output_dir={tmp_path_factory.mktemp('whole')}")).run.path


@pytest.fixture(scope="module")
def light(trained_run: Path) -> Iterator[None]:
    """Lets runs end without drawing pictures or waiting for the disk, which is most of their time.

    The run that all tests share comes before it, whole.
    """
    from bilstm_cls.evaluation import plots
    from tests.training.runs import PICTURES, draw_nothing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        for name in PICTURES:
            patch.setattr(plots, name, draw_nothing)
        yield
