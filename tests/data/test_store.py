"""Texts in files, and a cache of folders that are complete or not there."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bilstm_cls.data.store import ROW, Texts, cache_entries, cached, clear_cache
from bilstm_cls.errors import DataError


def written(folder: Path, texts: list[str]) -> Texts:
    coded = [text.encode("utf-8", "surrogatepass") for text in texts]
    (folder / "texts.bin").write_bytes(b"".join(coded))
    rows = np.zeros(len(texts), ROW)
    rows["stops"] = np.cumsum([len(code) for code in coded])
    rows["starts"][1:] = rows["stops"][:-1]
    return Texts(folder / "texts.bin", rows)


@given(st.lists(st.text(st.characters(exclude_categories=()))), st.slices(8), st.integers(-9, 9))
def test_any_texts_survive_the_file_and_are_indexed_as_a_list_is(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], part: slice, index: int
) -> None:
    stored = written(tmp_path_factory.mktemp("texts"), texts)
    assert list(stored) == texts
    assert stored[part] == texts[part]
    assert len(stored) == len(texts)
    if -len(texts) <= index < len(texts):
        assert stored[index] == texts[index]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BILSTM_CLS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def builder(content: str = "made") -> tuple[Callable[[Path], None], list[Path]]:
    """Returns a function that fills a folder, and a list of the folders it was given."""
    folders: list[Path] = []

    def build(folder: Path) -> None:
        folders.append(folder)
        (folder / "content").write_text(content, "utf-8")

    return build, folders


def test_a_folder_is_made_once_and_found_again(own_cache: Path) -> None:
    build, folders = builder()
    first, second = cached("kind", "key", build), cached("kind", "key", build)
    assert first == second == own_cache / "kind/key"
    assert len(folders) == 1
    assert cached("kind", "other key", build) != first


@pytest.mark.parametrize("name", ["content", "files.json"])
@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_text("[]", "utf-8")], ids=["gone", "changed"])
def test_a_damaged_folder_is_noticed_and_made_again(
    name: str, change: Callable[[Path], object], own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build, folders = builder()
    change(cached("kind", "key", build) / name)
    assert (cached("kind", "key", build) / "content").read_text("utf-8") == "made"
    assert len(folders) == 2
    assert "damaged, it is made again" in caplog.text


def test_the_cache_is_listed_by_last_use_and_cleared_by_kind(own_cache: Path) -> None:
    build, folders = builder()
    for kind, key, used in (("data", "old", 1), ("data", "new", 3), ("corpus", "middle", 2)):
        os.utime(cached(kind, key, build), (used, used))
    entries = cache_entries()
    assert [(entry.kind, entry.key) for entry in entries] == [("data", "new"), ("corpus", "middle"), ("data", "old")]
    assert all(entry.size > 4 for entry in entries)
    cached("data", "old", build)
    assert cache_entries()[0].key == "old"
    assert {entry.key for entry in clear_cache("data")} == {"old", "new"}
    assert [entry.key for entry in cache_entries()] == ["middle"]
    clear_cache()
    assert cache_entries() == []
    cached("data", "old", build)
    assert len(folders) == 4


def test_what_is_being_made_is_neither_cleared_nor_made_by_others(
    own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    build, folders = builder()
    waiting = threading.Thread(target=lambda: cached("kind", "key", build))

    def build_slowly(folder: Path) -> None:
        build(folder)
        assert clear_cache() == []
        waiting.start()
        waiting.join(1.2)
        assert waiting.is_alive()
        assert "another process makes it" in caplog.text

    assert (cached("kind", "key", build_slowly) / "content").exists()
    waiting.join()
    assert len(folders) == 1


@pytest.mark.parametrize("cache", ["/proc/nowhere", "file/below"])
def test_a_cache_that_cannot_be_written_is_done_without(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BILSTM_CLS_CACHE", str(tmp_path / cache))
    build, folders = builder()
    for _ in range(2):
        assert (cached("kind", "key", build) / "content").read_text("utf-8") == "made"
    assert len(folders) == 2
    assert "cannot be written" in caplog.text


def test_a_folder_whose_making_fails_is_not_there(own_cache: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise DataError("wrong")

    with pytest.raises(DataError, match="wrong"):
        cached("kind", "key", fail)
    assert cache_entries() == []
