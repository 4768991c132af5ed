"""The program asks for nothing that Windows lacks: no `fcntl`, no `resource`, no `os.pread`."""

import os
import subprocess
import sys
from pathlib import Path

WITHOUT = """
import builtins, importlib, os, pkgutil

plain_import = builtins.__import__

def import_as_on_windows(name, globals=None, locals=None, fromlist=(), level=0):
    is_ours = (globals or {}).get("__name__", "").startswith("bilstm_cls")  # psutil itself needs them here
    if is_ours and name in ("fcntl", "resource"):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return plain_import(name, globals, locals, fromlist, level)

builtins.__import__ = import_as_on_windows
del os.pread

import bilstm_cls

for module in pkgutil.walk_packages(bilstm_cls.__path__, "bilstm_cls."):
    if module.name != "bilstm_cls.__main__":
        importlib.import_module(module.name)

from bilstm_cls import cli
cli.main()
"""


def test_every_module_is_imported_and_a_model_trained_without_what_windows_lacks(
    reviews_csv: Path, tmp_path: Path
) -> None:
    keys = [
        f"data.train={reviews_csv}", "data.test=0.2", "text.max_length=20", "embedding.dim=4", "model.hidden_size=4",
        "train.epochs=1", "train.threads=1", "name=toy", f"output_dir={tmp_path}",
    ]  # fmt: skip
    environment = os.environ | {"BILSTM_CLS_CACHE": str(tmp_path / "cache")}
    train = ["train", "--quiet", *(word for key in keys for word in ("--set", key))]
    for words in (train, ["predict", "good film", "--run", str(tmp_path / "toy")]):
        command = [sys.executable, "-W", "ignore", "-c", WITHOUT, *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "toy/model.safetensors").exists()
