"""Devices, threads and memory."""

import os
import platform
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from bilstm_cls import device
from bilstm_cls.device import configure_process, threads_of_each, usable_cores

PAGE_FAULTS = """
import contextlib
import resource
import sys
from collections import namedtuple

import torch

from bilstm_cls.device import freed_memory_kept

def measure():
    for _ in range(12):
        torch.ones(2**24)  # aligned pieces find their place after a few
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(2**24)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

with freed_memory_kept() if sys.argv[1] == "keep" else contextlib.nullcontext():
    faults = measure()
    inside = resident()
print(faults, inside - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
@pytest.mark.parametrize("mode", ["keep", "leave"])
def test_kept_memory_is_used_again_without_a_page_fault_and_given_back_at_the_end(mode: str) -> None:
    command = [sys.executable, "-c", PAGE_FAULTS, mode]
    output = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    faults, given_back = map(int, output.split())
    assert faults < 100 if mode == "keep" else faults > 1000
    assert given_back > 60 * 2**20 if mode == "keep" else given_back < 2**20


def test_what_is_kept_is_bounded_by_what_a_step_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back = list[float]()
    levels = iter([7.0, 8.0, 8.6, 8.8, 8.2, 9.0, 9.1, 8.0])  # GB: at the start, and after every step
    monkeypatch.setattr(device, "_private_memory", lambda: int(now[0] * 2**30))
    now = [next(levels)]
    after_step = device._bounded(lambda: given_back.append(now[0]))
    for now[0] in levels:
        after_step()
    assert given_back == [8.8, 9.1]


@pytest.mark.parametrize(
    ("grant", "expected"),
    [
        (None, 64), ("max 100000\n", 64), ("200000 100000\n", 2), ("50000 100000\n", 1), ("250000 100000\n", 3),
        ("9900000 100000\n", 64),
    ],
)  # fmt: skip
def test_cores_are_those_granted_and_libraries_keep_to_them(
    grant: str | None, expected: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(64), raising=False)
    monkeypatch.setattr(device, "CPU_GRANT", tmp_path / "cpu.max")
    if grant is not None:
        (tmp_path / "cpu.max").write_text(grant)
    assert usable_cores() == expected
    for name in ("OMP_NUM_THREADS", "MPLBACKEND"):
        monkeypatch.setenv(name, "")  # so that what is set below is undone
    monkeypatch.delenv("OMP_NUM_THREADS")
    configure_process()
    is_granted = grant is not None and not grant.startswith("max")
    assert os.environ.get("OMP_NUM_THREADS") == (str(expected) if is_granted else None)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    configure_process()
    assert os.environ["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize(
    ("given", "processes", "expected"), [("", 1, 64), ("", 4, 16), ("", 100, 1), ("1", 1, 1), ("3", 4, 3)]
)
def test_each_process_has_its_share_of_the_cores_or_what_the_user_says(
    given: str, processes: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "usable_cores", lambda: 64)
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert threads_of_each(processes) == expected


Times = namedtuple("Times", "user nice system idle iowait irq softirq steal guest")


@pytest.mark.parametrize(
    ("machine", "usable", "busy", "is_reported"),
    [(2, 2, 80.0, True), (2, 2, 70.0, False), (64, 2, 1940.0, True), (64, 2, 1900.0, False)],
)
def test_other_programs_that_take_the_cores_are_reported_once(
    machine: int, usable: int, busy: float, is_reported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 30 seconds, of which this process computes 50 and `busy - 50` are others'."""
    now = 0.0

    def spent() -> SimpleNamespace:
        return SimpleNamespace(user=50.0 * bool(now), system=0.0)

    monkeypatch.setattr(psutil, "cpu_times", lambda: Times(busy * bool(now), 0, 0, 7 * now, 3 * now, 0, 0, 0, 0))
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(cpu_times=spent))
    monkeypatch.setattr(psutil, "cpu_count", lambda: machine)
    monkeypatch.setattr(device, "usable_cores", lambda: usable)
    monkeypatch.setattr(device.time, "monotonic", lambda: now)
    device.watch_load.cache_clear()
    for threads in (1, 2):
        now = 0.0
        loads = device.watch_load(processes=1, threads=threads)
        assert next(loads) is None
        now = 29.0
        assert next(loads) is None
        now = 30.0
        warning = next(loads)
        assert (warning is not None) == is_reported
        assert ("threads=1" in (warning or "")) == (is_reported and threads > 1)  # no advice that is followed already
        assert next(loads) is None
