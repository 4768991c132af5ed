import subprocess
import sys

import pytest
import torch

from bilstm_cls.device import choose_device, keep_freed_memory, set_threads
from bilstm_cls.errors import ConfigError

PAGE_FAULTS = """
import resource
import sys

import torch

from bilstm_cls.device import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
elif sys.argv[1] == "back":
    keep_freed_memory()
    keep_freed_memory(False)
for _ in range(12):
    torch.ones(2**24)  # aligned pieces find their place after a few
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    torch.ones(2**24)  # 64 MB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str) -> int:
    command = [sys.executable, "-c", PAGE_FAULTS, mode]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


@pytest.mark.skipif(not keep_freed_memory(False) and not keep_freed_memory(), reason="the C library is not glibc")
def test_kept_memory_is_used_again_without_a_page_fault() -> None:
    assert page_faults("keep") < 100 < 1000 < page_faults("leave")
    assert page_faults("back") > 1000


def test_elsewhere_than_on_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("the C library was called"))
    assert not keep_freed_memory()


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
