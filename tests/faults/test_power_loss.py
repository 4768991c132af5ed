"""F2: the power goes at any moment of a save, and what the system had not flushed is lost in any way.

A kill cannot test this, as what was written stays in the system's memory. So the calls of three saves are recorded, and
every prefix of them is replayed onto a disk that keeps only what was flushed, and of the rest all, nothing or some.
"""

import itertools
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from bilstm_cls.checkpoint import load_newest, save_checkpoint
from tests.faults.conftest import Tally

STEPS = (1, 2, 3)
ENTRIES = ("none", "all", "renames alone", "removals alone")
CONTENTS = ("none", "all", "zeros")


@dataclass
class Disk:
    """What is on a disk after a power cut.

    Attributes:
        flushed: names that are safe, with the number of their file.
        pending: changes of names that the system has not flushed yet: (kind, name, file).
        contents: of each file, as written and whether that was flushed.
    """

    flushed: dict[str, int] = field(default_factory=dict)
    pending: list[tuple[str, str, int]] = field(default_factory=list)
    contents: dict[int, tuple[bytes, bool]] = field(default_factory=dict)

    def names_if(self, entries: str) -> dict[str, int]:
        names = dict(self.flushed)
        for kind, name, file in self.pending:
            if entries == "all" or entries.startswith(kind):
                names.pop(name, None) if kind == "removal" else names.__setitem__(name, file)
        return names

    def after_a_power_cut(self, entries: str, contents: str, folder: Path) -> None:
        folder.mkdir()
        for name, file in self.names_if(entries).items():
            content, is_flushed = self.contents[file]
            lost = {"none": b"", "all": content, "zeros": bytes(len(content))}[contents]
            (folder / name).write_bytes(content if is_flushed else lost)


class Recorder:
    """Notes what a program asks of the system, and the disk that each call leaves."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.disk = Disk()
        self.calls: list[str] = []
        self.states: list[tuple[int, Disk]] = []
        self.step = 0
        self._files: dict[int, int] = {}
        self._number = itertools.count()
        self._fsync, self._replace, self._unlink = os.fsync, os.replace, os.unlink
        for name in ("fsync", "replace", "unlink"):
            patch.setattr(os, name, getattr(self, name))

    def _note(self, call: str) -> None:
        self.calls.append(call)
        disk = self.disk
        self.states.append((self.step, Disk(dict(disk.flushed), list(disk.pending), dict(disk.contents))))

    def _file(self, status: os.stat_result) -> int:
        """The number of a file; the system's own would be used again once it is removed."""
        return self._files.setdefault(status.st_ino, next(self._number))

    def fsync(self, descriptor: int) -> None:
        self._fsync(descriptor)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            self.disk.flushed = self.disk.names_if("all")
            self.disk.pending = []
            self._note("fsync folder")
        else:
            content = Path(f"/proc/self/fd/{descriptor}").read_bytes()
            self.disk.contents[self._file(os.fstat(descriptor))] = content, True
            self._note("fsync file")

    def replace(self, source: str, target: str) -> None:
        file = self._file(Path(source).stat())
        if Path(target).exists():
            self._files.pop(Path(target).stat().st_ino, None)
        self.disk.contents.setdefault(file, (Path(source).read_bytes(), False))
        self._replace(source, target)
        self.disk.pending.append(("rename", Path(target).name, file))
        self._note("rename")

    def unlink(self, path: str) -> None:
        self._files.pop(Path(path).stat().st_ino, None)
        self._unlink(path)
        self.disk.pending.append(("removal", Path(path).name, 0))
        self._note("removal")


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """The record of three saves: the first is the best one, the second the last one, the third both."""
    (tmp_path / "checkpoints").mkdir()
    with monkeypatch.context() as patch:
        recorder = Recorder(tmp_path / "checkpoints", patch)
        for step, roles in zip(STEPS, (("best", "last"), ("last",), ("best", "last")), strict=True):
            save_checkpoint(recorder.folder, step, {"w": torch.full((50,), float(step))}, {"trainer": {}}, roles=roles)
            recorder.step = step
    return recorder


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to read an open file")
def test_a_power_cut_at_any_moment_leaves_this_checkpoint_or_the_one_before(
    recorder: Recorder, tmp_path: Path, tally: Tally
) -> None:
    number = itertools.count()

    def survives(case: tuple[tuple[int, Disk], str, str]) -> None:
        (finished, disk), entries, contents = case
        folder = tmp_path / f"disk-{next(number)}"
        disk.after_a_power_cut(entries, contents, folder)
        loaded = load_newest(folder)
        step = 0 if loaded is None else loaded[1]["step"]
        assert step in (finished, finished + 1)
        assert loaded is None or torch.equal(loaded[0]["w"], torch.full((50,), float(step)))

    def every_case() -> Iterator[tuple[tuple[int, Disk], str, str]]:
        return itertools.product(recorder.states, ENTRIES, CONTENTS)

    tally(every_case(), survives)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to read an open file")
def test_every_file_is_flushed_renamed_and_its_name_flushed_in_that_order(recorder: Recorder) -> None:
    whole = ["fsync file", "rename", "fsync folder"]
    first, second, third = whole * 3, whole * 2, whole * 3
    assert [call for call in recorder.calls if call != "removal"] == [*first, *second, *third]
    assert recorder.calls[-2:] == ["removal"] * 2
