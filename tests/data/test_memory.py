"""Memory does not grow with the data, but for a few bytes a text."""

import random
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch  # noqa: F401 - before anything is measured

from bilstm_cls.config import Config
from bilstm_cls.config_file import load_config
from bilstm_cls.data.batches import collate, training_batches
from bilstm_cls.data.dataset import load_dataset
from bilstm_cls.data.prepare import PreparedData, prepare

NUMBER = 80_000  # of few words, as the vocabulary is in memory
MAX_BYTES = 70
"""For each text; most of it is what stays the same however many there are. The text as a str takes as much."""

WORDS = [f"word{i}" for i in range(500)]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A config with a file of short texts that all differ."""
    path = tmp_path_factory.mktemp("memory") / "many.csv"
    chooser = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        file.write("text,label\n")
        for i in range(NUMBER):
            file.write(
                f"{chooser.choice(WORDS)} {chooser.choice(WORDS)} {i // 300} {i % 300},{('neg', 'pos')[i % 2]}\n"
            )
    return load_config(None, [f"data.train={path}", "data.valid=0.01", "data.test=0.01"])


def epoch(data: PreparedData) -> None:
    corpus = data.corpora["train"]
    for batch in training_batches(corpus.lengths, batch_size=64, batch_tokens=None, seed=1, epoch=0):
        collate(corpus, batch)


@pytest.fixture(scope="module")
def peaks(config: Config) -> dict[str, int]:
    """The most bytes that Python and NumPy held in each part of the way from a file to batches."""
    parts: dict[str, Callable[[], object]] = {
        "reading": lambda: load_dataset(config.data),
        "encoding": lambda: prepare(config),
        "batches": lambda: epoch(prepare(config)),
    }
    peaks = {}
    for name, part in parts.items():
        tracemalloc.start()
        part()
        peaks[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peaks


@pytest.mark.parametrize("part", ["reading", "encoding", "batches"])
def test_texts_are_not_held_in_memory(part: str, peaks: dict[str, int]) -> None:
    assert peaks[part] < MAX_BYTES * NUMBER


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell what is resident")
def test_what_was_read_of_the_files_is_not_kept_in_memory(cache: Path, config: Config) -> None:
    data = prepare(config)
    epoch(data)
    assert all(text for text in data.dataset.splits["train"].texts)
    mapped = re.findall(rf"^\S+ r\S+ .* {re.escape(str(cache))}/.*\nSize: +(\d+) kB\n(?:.*\n){{2}}Rss: +(\d+) kB",
                        Path("/proc/self/smaps").read_text(), re.MULTILINE)  # fmt: skip
    assert sum(int(size) for size, _ in mapped) > 500
    assert sum(int(resident) for _, resident in mapped) < 50
