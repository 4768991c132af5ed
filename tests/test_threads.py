"""How many cores a process may use, on its own and in a container."""

import os
from pathlib import Path

import pytest

from bilstm_cls import device
from bilstm_cls.device import configure_process, threads_of_each, usable_cores


@pytest.fixture
def _many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(64), raising=False)


def place(monkeypatch: pytest.MonkeyPatch, folder: Path, own: str, files: dict[str, str]) -> None:
    """Puts this process into control groups."""
    (folder / "own").write_text(own)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    monkeypatch.setattr(device, "PROCESS_GROUPS", folder / "own")
    monkeypatch.setattr(device, "CONTROL_GROUPS", folder)


CASES = {
    "no limit": ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
    "a container's": ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
    "a part of a core": ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
    "two and a half": ("0::/\n", {"cpu.max": "250000 100000\n"}, 3),
    "a parent's": ("0::/pod/box\n", {"pod/cpu.max": "400000 100000\n", "pod/box/cpu.max": "max 100000\n"}, 4),
    "of version 1": (
        "4:memory:/\n3:cpu,cpuacct:/box\n",
        {"cpu/box/cpu.cfs_quota_us": "300000\n", "cpu/box/cpu.cfs_period_us": "100000\n"},
        3,
    ),
    "none of version 1": (
        "3:cpu:/\n",
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        64,
    ),
    "seen from elsewhere": (
        "3:cpu:/docker/1\n",
        {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"},
        1,
    ),
    "more than there is": ("0::/\n", {"cpu.max": "9900000 100000\n"}, 64),
}


@pytest.mark.usefixtures("_many_cores")
@pytest.mark.parametrize("case", CASES)
def test_cores_are_those_granted(case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own, files, expected = CASES[case]
    place(monkeypatch, tmp_path, own, files)
    assert usable_cores() == expected


@pytest.mark.usefixtures("_many_cores")
def test_libraries_keep_to_granted_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # so that what is set below is undone
    monkeypatch.setenv("MPLBACKEND", "")
    monkeypatch.delenv("OMP_NUM_THREADS")
    place(monkeypatch, tmp_path, "0::/\n", {"cpu.max": "max 100000\n"})
    configure_process()
    assert "OMP_NUM_THREADS" not in os.environ
    place(monkeypatch, tmp_path, "0::/\n", {"cpu.max": "200000 100000\n"})
    configure_process()
    assert os.environ["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    configure_process()
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_without_control_groups_cores_are_those_it_may_run_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device, "PROCESS_GROUPS", tmp_path / "none")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3}, raising=False)
    assert usable_cores() == 2


@pytest.mark.usefixtures("_many_cores")
@pytest.mark.parametrize(
    ("said", "processes", "expected"), [("", 1, 64), ("", 4, 16), ("", 100, 1), ("1", 1, 1), ("3", 4, 3), ("32", 4, 16)]
)
def test_each_process_has_its_share_of_the_cores_or_what_the_user_says(
    said: str, processes: int, expected: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place(monkeypatch, tmp_path, "0::/\n", {})
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert threads_of_each(processes) == expected
