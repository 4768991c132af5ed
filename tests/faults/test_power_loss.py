"""F2: the power goes at any moment of a save, and what the system had not flushed is lost in any way.

A kill cannot test this, as what was written stays in the system's memory. So the calls of three saves are recorded, and
every prefix of them is replayed onto a disk that keeps only what was flushed, and of the rest all, nothing or some.
"""

import copy
import itertools
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from bilstm_cls.checkpoint import load_newest, save_checkpoint
from tests.faults.conftest import Tally

ENTRIES = ("none", "all", "renames alone", "removals alone")
CONTENTS = ("none", "all", "zeros")
SAVES = (("best", "last"), ("last",), ("best", "last"))
"""The roles of each of three checkpoints."""

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to read an open file")


@dataclass
class Disk:
    """What is on a disk after a power cut.

    Attributes:
        finished: saves that had returned.
        flushed: names that are safe, with the number of their file.
        pending: changes of names that the system has not flushed yet: (kind, name, file).
        contents: of each file, as written and whether that was flushed.
    """

    finished: int = 0
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

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.disk = Disk()
        self.calls: list[str] = []
        self.states: list[Disk] = []
        self._files: dict[int, int] = {}
        self._number = itertools.count()
        self._system = {name: getattr(os, name) for name in ("fsync", "replace", "unlink")}
        for name in self._system:
            patch.setattr(os, name, getattr(self, name))

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self.states.append(copy.deepcopy(self.disk))

    def _file(self, status: os.stat_result) -> int:
        """The number of a file; the system's would be used again once it is removed."""
        return self._files.setdefault(status.st_ino, next(self._number))

    def fsync(self, descriptor: int) -> None:
        self._system["fsync"](descriptor)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            self.disk.flushed, self.disk.pending = self.disk.names_if("all"), []
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
        self._system["replace"](source, target)
        self.disk.pending.append(("rename", Path(target).name, file))
        self._note("rename")

    def unlink(self, path: str) -> None:
        self._files.pop(Path(path).stat().st_ino, None)
        self._system["unlink"](path)
        self.disk.pending.append(("removal", Path(path).name, 0))
        self._note("removal")


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """The record of three saves."""
    (tmp_path / "checkpoints").mkdir()
    with monkeypatch.context() as patch:
        recorder = Recorder(patch)
        for step, roles in enumerate(SAVES, 1):
            weights = {"w": torch.full((50,), float(step))}
            save_checkpoint(tmp_path / "checkpoints", step, weights, {"trainer": {}}, roles=roles)
            recorder.disk.finished = step
    return recorder


def test_a_power_cut_at_any_moment_leaves_this_checkpoint_or_the_one_before(
    recorder: Recorder, tmp_path: Path, tally: Tally
) -> None:
    number = itertools.count()

    def survives(case: tuple[Disk, str, str]) -> None:
        disk, entries, contents = case
        folder = tmp_path / f"disk-{next(number)}"
        disk.after_a_power_cut(entries, contents, folder)
        loaded = load_newest(folder)
        step = 0 if loaded is None else loaded[1]["step"]
        assert step in (disk.finished, disk.finished + 1)
        assert loaded is None or torch.equal(loaded[0]["w"], torch.full((50,), float(step)))

    tally(itertools.product(recorder.states, ENTRIES, CONTENTS), survives)
