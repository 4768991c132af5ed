"""Word vectors that torchtext downloads and keeps: GloVe (Pennington et al. 2014), fastText (Bojanowski et al. 2017).

Its own habits with them are not ours, so it is watched while it does that.
"""

import contextlib
import os
import ssl
import zipfile
from _pickle import UnpicklingError  # what torch raises for a cache that is more than plain tensors
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bilstm_cls.data.download import OFFLINE_VARIABLE
from bilstm_cls.data.torchtext_tokenizer import PREFIX, import_torchtext
from bilstm_cls.errors import DataError

CACHE = Path(".vector_cache")
"""Torchtext's own place for them, in the working directory."""


def torchtext_vectors(init: str) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Yields tokens and vectors of torchtext's `GloVe` or `FastText`, from its cache or else by its download.

    Args:
        init: such as `torchtext/glove.6B.100d` or `torchtext/fasttext.en.300d`.

    Raises:
        ConfigError: torchtext cannot be used here.
        DataError: the vectors cannot be downloaded or read.
    """
    vocab = import_torchtext(f"embedding.init {init}").vocab
    family, *names, dim = init.removeprefix(PREFIX).split(".")
    name = ".".join(names)
    if family == "glove":
        file, make = f"glove.{name}.{dim}.txt", partial(vocab.GloVe, name=name, dim=dim.removesuffix("d"))
    else:
        file, make = f"wiki.{name}.vec", partial(vocab.FastText, language=name)
    is_here = any(path.is_file() for path in (Path(file), CACHE / file, CACHE / f"{file}.pt"))
    if not is_here and os.environ.get(OFFLINE_VARIABLE, "0") not in ("", "0"):
        raise DataError(f"{CACHE / file}: missing; put it there, or unset {OFFLINE_VARIABLE} to download it")
    try:
        with _careful(vocab.vectors):
            vectors = make(cache=str(CACHE))
    except (OSError, EOFError, RuntimeError, ValueError, UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{init}: torchtext cannot load it; look for what is damaged in {CACHE} ({reason})") from error
    yield from zip(vectors.itos, vectors.vectors.numpy(), strict=True)


@contextlib.contextmanager
def _careful(module: Any) -> Iterator[None]:
    """Keeps torchtext from what it does while it loads vectors: stop verifying certificates, in the whole process from
    then on; run what a pickled cache says; draw progress bars where there is no terminal."""
    verified = ssl.create_default_context
    with contextlib.ExitStack() as stack:
        stack.enter_context(_replaced(ssl, "_create_unverified_context", verified))
        stack.enter_context(_replaced(ssl, "_create_default_https_context", verified))
        stack.enter_context(_replaced(module.torch, "load", partial(module.torch.load, weights_only=True)))
        stack.enter_context(_replaced(module, "tqdm", partial(module.tqdm, disable=None)))
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
