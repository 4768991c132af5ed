"""Which device and how many threads a command runs on."""

import re

import torch

from bilstm_cls.errors import ConfigError


def choose_device(name: str = "auto") -> torch.device:
    """Returns the device that `auto`, `cpu`, `cuda` or `cuda:N` stands for: `auto` is CUDA where it is there.

    Apple's MPS is never chosen: its LSTM has a history of wrong results.

    Raises:
        ConfigError: the name is another one, or there is no such CUDA device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", name):
        raise ConfigError(f"device: {name!r} must be auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(f"train.device: {name!r} is not here, PyTorch sees {count} CUDA devices; use --device cpu")
    return device


def set_threads(threads: int | None) -> int:
    """Sets the number of threads of one process, where one is given, and returns the number in use."""
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()
