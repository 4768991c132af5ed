"""Memory does not grow with the data, but for a few bytes a text."""

import random
import re
import tracemalloc
from pathlib import Path

import pytest
import torch  # noqa: F401 - before anything is measured

from bilstm_cls.config import Config
from bilstm_cls.config_file import load_config
from bilstm_cls.data.batches import collate, training_batches
from bilstm_cls.data.prepare import PreparedData, prepare

NUMBER = 80_000  # of few words, as the vocabulary is in memory
MAX_BYTES = 80
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
            words = chooser.choices(WORDS, k=2)
            file.write(f"{' '.join(words)} {i // 300} {i % 300},{('neg', 'pos')[i % 2]}\n")
    return load_config(None, [f"data.train={path}", "data.valid=0.01", "data.test=0.01"])


def an_epoch(config: Config) -> PreparedData:
    data = prepare(config)
    corpus = data.corpora["train"]
    for batch in training_batches(corpus.lengths, batch_size=64, batch_tokens=None, seed=1, epoch=0):
        collate(corpus, batch)
    return data


def test_texts_are_not_held_in_memory_on_the_way_from_the_file_to_the_batches(config: Config) -> None:
    tracemalloc.start()
    an_epoch(config)
    peak = tracemalloc.get_traced_memory()[1]  # that Python and NumPy held
    tracemalloc.stop()
    assert peak < MAX_BYTES * NUMBER


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system does not tell what is resident")
def test_what_was_read_of_the_files_is_not_kept_in_memory(cache: Path, config: Config) -> None:
    data = an_epoch(config)
    assert all(text for text in data.dataset.splits["train"].texts)
    mapped = re.findall(rf"^\S+ r\S+ .* {re.escape(str(cache))}/.*\nSize: +(\d+) kB\n(?:.*\n){{2}}Rss: +(\d+) kB",
                        Path("/proc/self/smaps").read_text(), re.MULTILINE)  # fmt: skip
    assert sum(int(size) for size, _ in mapped) > 500
    assert sum(int(resident) for _, resident in mapped) < 50
