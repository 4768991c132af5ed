"""Files that are either whole or not there, whatever the disk or the user does in between."""

import errno
import io
import os
import stat
from pathlib import Path

import pytest

from bilstm_cls.errors import ConfigError, ResourceError, UserError
from bilstm_cls.files import replacing, write_atomic


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "file.txt"
    path.write_text("old")
    return path


def refusing(number: int) -> object:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_byte_for_byte_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_atomic(path, "täxt\r\n")
    assert path.read_bytes() == "täxt\r\n".encode()
    assert names(path.parent) == ["file"]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(old: Path) -> None:
    with old.open() as opened, replacing(old) as file:
        file.write(b"new")
        file.flush()
        assert opened.read() == old.read_text() == "old"
    assert old.read_text() == "new"


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_file_has_the_permissions_of_any_other_new_file_and_the_umask_is_left_alone(
    tmp_path: Path, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may create a file at any time, and its permissions are the umask's."""
    before = os.umask(umask)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", refusing(errno.EPERM))
            write_atomic(tmp_path / "file", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(old: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), replacing(old) as file:  # noqa: PT012 - the block is what is tested
        file.write(b"half of it")
        raise error
    assert old.read_text() == "old"
    assert names(old.parent) == ["file.txt"]


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, ResourceError), (errno.EDQUOT, ResourceError), (errno.EROFS, ConfigError),
        (errno.EIO, ConfigError),
    ],
)  # fmt: skip
def test_a_refusing_disk_is_named_and_leaves_the_old_file(
    old: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, kind: type[UserError]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(io if call == "open" else os, call, refusing(number))
        with pytest.raises(kind) as caught:
            write_atomic(old, "new")
    assert str(caught.value).startswith(f"{old}: ")
    assert os.strerror(number) in str(caught.value)
    assert old.read_text() == "old"
    assert names(old.parent) == ["file.txt"]
