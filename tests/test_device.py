import platform
import subprocess
import sys

import pytest
import torch

from bilstm_cls import device
from bilstm_cls.device import choose_device, freed_memory_kept, set_threads
from bilstm_cls.errors import ConfigError

PAGE_FAULTS = """
import contextlib
import resource
import sys

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


def faults_and_bytes(mode: str) -> list[int]:
    command = [sys.executable, "-c", PAGE_FAULTS, mode]
    return list(map(int, subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_kept_memory_is_used_again_without_a_page_fault_and_given_back_at_the_end() -> None:
    faults, given_back = faults_and_bytes("keep")
    assert faults < 100
    assert given_back > 60 * 2**20
    faults, given_back = faults_and_bytes("leave")
    assert faults > 1000
    assert given_back < 2**20


def test_what_is_kept_is_bounded_by_what_a_step_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back = list[float]()
    levels = iter([7.0, 8.0, 8.6, 8.8, 8.2, 9.0, 9.1, 8.0])  # GB: at the start, and after every step
    monkeypatch.setattr(device, "_private_memory", lambda process: int(now[0] * 2**30))
    now = [next(levels)]
    after_step = device._bounded(lambda: given_back.append(now[0]))
    for now[0] in levels:
        after_step()
    assert given_back == [8.8, 9.1]


def test_elsewhere_than_on_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("the C library was called"))
    with freed_memory_kept():
        pass


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "CPU", "", "mps"])
def test_an_unknown_device_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=r"must be auto, cpu, cuda or cuda:N"):
        choose_device(name)


def test_threads_are_set_where_a_number_is_given() -> None:
    before = torch.get_num_threads()
    try:
        assert set_threads(1) == torch.get_num_threads() == 1
        assert set_threads(None) == 1
    finally:
        torch.set_num_threads(before)
