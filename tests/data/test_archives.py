import contextlib
import gzip
import io
import itertools
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from bilstm_cls.data.archives import MAX_DEPTH, MAX_PART_BYTES, read_members
from bilstm_cls.errors import DataError

LIMITS = {"max_member_size": 10_000, "max_members": 50, "max_total_size": 1_000_000}
END = bytes(1024)


def read(path: Path, wanted: Callable[[str], bool] = lambda name: True, **limits: int) -> list[tuple[str, bytes]]:
    return list(read_members(path, wanted, **{**LIMITS, **limits}))


def header(
    name: bytes = b"a.txt", *, size: bytes | int = 0, kind: bytes = b"0", magic: bytes = b"ustar\x0000"
) -> bytes:
    """A tar header with whatever is put into it and the checksum that fits."""
    size_field = b"%011o\0" % size if isinstance(size, int) else size
    parts = [name[:100].ljust(100, b"\0"), b"0000644\0" * 3, size_field.ljust(12, b"\0"), b"00000000000\0"]
    start, end = b"".join(parts), kind + bytes(100) + magic
    block = (start + b" " * 8 + end).ljust(512, b"\0")
    return start + b"%06o\0 " % sum(block) + block[156:]


def member(name: bytes = b"a.txt", content: bytes = b"text", **fields: Any) -> bytes:
    return header(name, **{"size": len(content), **fields}) + content + bytes(-len(content) % 512)


def record(key: str, value: bytes) -> bytes:
    body = b" " + key.encode() + b"=" + value + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length += 1
    return str(length).encode() + body


def extended(*records: bytes, kind: bytes = b"x") -> bytes:
    return member(b"extended", b"".join(records), kind=kind)


def tar_of(members: Iterable[tuple[str, bytes]], mode: str = "w", format: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, format=format) as tar:  # type: ignore[call-overload]
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def zip_of(
    *members: tuple[str | zipfile.ZipInfo, bytes], change: Callable[[bytearray], None] | None = None, method: int = 8
) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    data = bytearray(file.getvalue())
    if change is not None:
        change(data)
    return bytes(data)


def in_directory(offset: int, fmt: str, value: int) -> Callable[[bytearray], None]:
    """Sets a field of the first entry in a zip's central directory."""

    def change(data: bytearray) -> None:
        struct.pack_into(fmt, data, data.index(b"PK\1\2") + offset, value)

    return change


def zip_link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = 0o120777 << 16
    return info


TEXTS = [
    ("aclImdb/train/pos/1_9.txt", b"good"),
    ("aclImdb/train/neg/2_1.txt", b"bad" * 700),
    ("aclImdb/empty.txt", b""),
]

HOSTILE: dict[str, tuple[bytes, str]] = {
    "parent name": (member(b"../evil.txt") + END, "not safe"),
    "parent inside a name": (member(b"a/../../evil.txt") + END, "not safe"),
    "parent at the end of a name": (member(b"a/..") + END, "not safe"),
    "absolute name": (member(b"/tmp/evil.txt") + END, "not safe"),
    "drive name": (member(b"C:/evil.txt") + END, "not safe"),
    "backslash name": (member(b"..\\evil.txt") + END, "not safe"),
    "escape code in a name": (member(b"\x1b[2Ja.txt") + END, "not safe"),
    "long part": (extended(record("path", b"a" * (MAX_PART_BYTES + 1))) + member() + END, "not safe"),
    "deep name": (extended(record("path", b"a/" * MAX_DEPTH + b"a")) + member() + END, "not safe"),
    "NUL in a long name": (extended(record("path", b"a.txt\0/../b")) + member() + END, "not safe"),
    "unsafe folder name": (member(b"../", b"", kind=b"5") + END, "not safe"),
    "unsafe name of a link": (member(b"../a", b"", kind=b"2") + END, "not safe"),
    "unsafe long name": (member(b"././@LongLink", b"../" * 50 + b"a\0", kind=b"L") + member() + END, "not safe"),
    "unsafe overriding name": (extended(record("path", b"../evil.txt")) + member() + END, "not safe"),
    "name that is not UTF-8": (member(b"caf\xe9.txt") + END, "not UTF-8"),
    "duplicate name": (member() + member(content=b"other") + END, "two members named 'a.txt'"),
    "duplicate name in other words": (member() + member(b".//a.txt") + END, "two members named 'a.txt'"),
    "symbolic link": (member(content=b"", kind=b"2") + END, "symbolic link"),
    "hard link": (member(content=b"", kind=b"1") + END, "hard link"),
    "character device": (member(content=b"", kind=b"3") + END, "character device"),
    "block device": (member(content=b"", kind=b"4") + END, "block device"),
    "named pipe": (member(content=b"", kind=b"6") + END, "named pipe"),
    "unknown type": (member(kind=b"Z") + END, "type b'Z'"),
    "sparse file": (member(kind=b"S") + END, "sparse"),
    "sparse file in records": (extended(record("GNU.sparse.realsize", b"9" * 10)) + member() + END, "GNU.sparse"),
    "negative size": (header(size=b"-0000001000") + END, "for a size"),
    "negative binary size": (header(size=b"\xff" * 11 + b"\0") + END, "for a size"),
    "size with an underscore": (header(size=b"0000001_000") + END, "for a size"),
    "size that is not octal": (header(size=b"00000000009") + END, "for a size"),
    "enormous binary size": (header(size=b"\x80" + b"\xff" * 11) + END, "too many"),
    "negative size in a record": (extended(record("size", b"-512")) + member() + END, "for a size"),
    "enormous size in a record": (extended(record("size", b"9" * 30)) + member() + END, "for a size"),
    "false size in a record": (extended(record("size", b"3000")) + member() + member(b"b") + END, "cut off"),
    "name for all members": (extended(record("path", b"a"), kind=b"g") + member() + END, "where it must not"),
    "size for all members": (extended(record("size", b"4"), kind=b"g") + member() + END, "where it must not"),
    "name given twice": (extended(record("path", b"a"), record("path", b"b")) + member() + END, "twice"),
    "endless extended headers": (extended(record("comment", b"")) * 100 + END, "twice"),
    "endless long names": (member(b"././@LongLink", b"a\0", kind=b"L") * 100 + END, "twice"),
    "endless records": (extended(*[b"5 a=\n"] * 1000) + member() + END, "more than 50 records"),
    "record longer than its header": (extended(b"99 path=a\n") + member() + END, "not in order"),
    "record without a value": (extended(b"6 abc\n", record("path", b"b")) + member() + END, "not in order"),
    "record of no length": (extended(b"0 path=a\n") + member() + END, "not in order"),
    "record without an end": (extended(b"9 path=ab") + member() + END, "not in order"),
    "record without a key": (extended(b"path\n") + member() + END, "not in order"),
    "extended header of 2 MB": (header(size=2 << 20, kind=b"x") + END, "header of 2097152 bytes"),
    "long name of 2 MB": (header(size=2 << 20, kind=b"L") + END, "header of 2097152 bytes"),
    "header of no member": (extended(record("path", b"a")) + END, "does not follow"),
    "large member": (member(content=bytes(10_001)) + END, "10001 bytes"),
    "10 GB passed over": (header(b"skipped", size=b"\x80" + (10 << 30).to_bytes(11, "big")) + END, "more than 1000000"),
    "many members": (b"".join(member(b"%d" % i, b"") for i in range(51)) + END, "more than 50 members"),
    "many folders": (member(b"a/", b"", kind=b"5") * 51 + END, "more than 50 members"),
    "gzip bomb": (gzip.compress(member() + bytes(20_000_000)), "more than 1000000"),
    "no end mark": (member(), "cut off"),
    "wrong checksum": (member().replace(b"0000644", b"0000666", 1) + END, "is no tar"),
    "wrong checksum further on": (member() + member(b"b").replace(b"ustar", b"vstar") + END, "after 1024 bytes"),
    "wrong CRC": (gzip.compress(member() + END)[:-8] + struct.pack("<II", 7, 2048), "CRC check failed"),
    "wrong gzip length": (gzip.compress(member() + END)[:-4] + b"\0\0\0\0", "Incorrect length"),
    "rubbish after gzip": (gzip.compress(member() + END) + b"rubbish", "Not a gzipped file"),
    "bytes that are not deflate": (b"\x1f\x8b\x08\0\0\0\0\0\0\3\xff\xff\xff\xff" * 9, "is damaged"),
    "gzip of a text": (gzip.compress(b"text" * 200), "is no tar"),
    "web page": (b"<!DOCTYPE html><html>" + b" " * 600, "b'<!DOCTYPE html>"),
    "empty file": (b"", "cut off after 0 bytes"),
    "zip with a parent name": (zip_of(("../evil.txt", b"x")), "not safe"),
    "zip with an absolute name": (zip_of(("/tmp/evil.txt", b"x")), "not safe"),
    "zip with a backslash": (zip_of(("a\\b.txt", b"x")), "not safe"),
    "zip with a NUL": (zip_of(("a.tx_b", b"x")).replace(b"a.tx_b", b"a.tx\0b"), "not safe"),
    "zip with a link": (zip_of((zip_link("a.txt"), b"/etc/passwd")), "link or device"),
    "zip with a password": (zip_of(("a.txt", b"x"), change=in_directory(8, "<H", 1)), "password"),
    "zip by another method": (zip_of(("a.txt", b"x"), method=zipfile.ZIP_LZMA), "method 14"),
    "zip with duplicates": (zip_of(("a.txt", b"x"), ("b.txt", b"y")).replace(b"b.txt", b"a.txt"), "two members"),
    "zip with a wrong CRC": (zip_of(("a.txt", b"x"), change=in_directory(16, "<I", 7)), "CRC"),
    "zip with a small size": (zip_of(("a.txt", bytes(5_000_000)), change=in_directory(24, "<I", 9)), "CRC"),
    "zip with a large size": (zip_of(("a.txt", b"x"), change=in_directory(24, "<I", 99)), "cut off"),
    "zip with a wrong offset": (zip_of(("a.txt", b"x"), change=in_directory(42, "<I", 9999)), "is damaged"),
    "zip bomb": (zip_of(("a.txt", bytes(5_000_000))), "5000000 bytes"),
    "zip with many members": (zip_of(*((f"{i}", b"") for i in range(51))), "more than 50 members"),
    "zip with a vast directory": (zip_of(("a.txt", b"x")) + b"PK\1\2" * 100_000, "more than 50 members"),
    "zip cut off": (zip_of(("a.txt", b"x" * 900))[:-30], "is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("fault", HOSTILE)
def test_a_hostile_or_damaged_archive_ends_in_one_error_and_leaves_no_trace(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, words = HOSTILE[fault]
    folder = tmp_path / "work" / "here"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    path = folder / "archive"
    path.write_bytes(content)
    with pytest.raises(DataError, match="archive: ") as error:
        read(path, lambda name: name != "skipped")
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert words in message
    assert message.isprintable()
    assert len(message) < 400
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "work", folder, path]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(member(b"A.TXT", b"big") + member(b"a.txt", b"small") + END, id="names that differ in case"),
        pytest.param(member(b"link", b"", kind=b"2") + member() + END, id="symbolic link"),
        pytest.param(member(b"link", b"", kind=b"1") + member() + END, id="hard link"),
        pytest.param(header(b"link", size=2048, kind=b"1") + member() + END, id="hard link with a size"),
        pytest.param(member(b"pipe", b"", kind=b"6") + member() + END, id="named pipe"),
        pytest.param(member(b"label", b"", kind=b"V") + member() + END, id="volume label"),
        pytest.param(member(b"large.bin", bytes(20_000)) + member() + END, id="large file"),
        pytest.param(member(b"./", b"", kind=b"5") + member() + END, id="folder of all"),
        pytest.param(extended(record("comment", b"x"), kind=b"g") + member() + END, id="comment for all members"),
        pytest.param(extended() + member() + END, id="empty extended header"),
        pytest.param(member() + END + b"leftovers of an older record", id="leftovers after the end"),
        pytest.param(gzip.compress(member()) + gzip.compress(END), id="gzip in two pieces"),
    ],
)
def test_what_is_not_wanted_is_passed_over(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(content)
    names = [name for name, _ in read(path, lambda name: name.endswith("a.txt"))]
    assert names == ["a.txt"]


@pytest.mark.parametrize(
    "pack",
    [
        lambda: tar_of(TEXTS),
        lambda: tar_of(TEXTS, "w:gz"),
        lambda: tar_of([(f"./{name}", content) for name, content in TEXTS]),
        lambda: zip_of(*TEXTS),
        lambda: zip_of(("aclImdb/", b""), *TEXTS, method=zipfile.ZIP_STORED),
    ],
    ids=["tar", "tar.gz", "tar with dots", "zip", "zip stored"],
)
def test_every_kind_of_archive_gives_the_same_files(pack: Callable[[], bytes], tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(pack())
    assert read(path) == TEXTS


@pytest.mark.parametrize(
    ("content", "names"),
    [
        pytest.param(member(b"PK.txt") + END, ["PK.txt"], id="tar that begins like a zip"),
        pytest.param(member(b"old/", b"", kind=b"\0") + member(kind=b"\0") + END, ["a.txt"], id="before ustar"),
        pytest.param(member(magic=b"ustar\x0000" + bytes(80) + b"a/b") + END, ["a/b/a.txt"], id="ustar prefix"),
        pytest.param(member(magic=b"ustar  \0" + bytes(80) + b"14711") + END, ["a.txt"], id="times of GNU tar"),
        pytest.param(extended(record("size", b"4")) + member(size=0) + END, ["a.txt"], id="size in a record"),
    ],
)  # fmt: skip
def test_each_way_to_write_a_name_is_known(content: bytes, names: list[str], tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(content)
    assert read(path) == [(name, b"text") for name in names]


def test_only_wanted_files_are_yielded(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(tar_of(TEXTS))
    assert read(path, lambda name: "/neg/" in name) == TEXTS[1:2]


def test_the_whole_that_zip_members_unpack_to_is_limited(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(zip_of(("a", bytes(600)), ("b", bytes(600))))
    with pytest.raises(DataError, match="more than 1000 bytes"):
        read(path, max_total_size=1000)


@pytest.mark.parametrize("name", ["missing", "."])
def test_a_path_that_is_no_file_is_an_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / name)


@pytest.mark.parametrize("percent", range(0, 100, 5))
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_an_archive_cut_anywhere_is_an_error(mode: str, percent: int, tmp_path: Path) -> None:
    texts = [(f"{i}.txt", zlib.crc32(b"%d" % i).to_bytes(4, "big") * 200) for i in range(30)]
    whole = tar_of(texts, mode)
    content = whole.rstrip(b"\0") if mode == "w" else whole
    path = tmp_path / "archive"
    path.write_bytes(content[: len(content) * percent // 100])
    with pytest.raises(DataError, match=r"cut off|is damaged|is no tar"):
        read(path)


names = st.text(st.characters(categories=["L", "N"], include_characters="/._- "), min_size=1, max_size=230)
archived = st.lists(st.tuples(names, st.binary(max_size=1100)), max_size=5, unique_by=lambda text: text[0])


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much])
@given(archived, st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_a_tar_is_read_as_the_standard_library_reads_it(
    tmp_path: Path, members: list[tuple[str, bytes]], format: int
) -> None:
    normal = ["/".join(part for part in name.split("/") if part not in ("", ".")) for name, _ in members]
    assume(all(normal) and len(set(normal)) == len(normal) and not any(n.startswith("/") for n, _ in members))
    assume(not any(".." in name.split("/") for name in normal))
    assume(all(len(part.encode()) <= MAX_PART_BYTES for name in normal for part in name.split("/")))
    assume(all(name.count("/") < MAX_DEPTH for name in normal))
    try:
        content = tar_of(members, format=format)
    except ValueError:  # ustar has no room for a long name
        assume(False)
    path = tmp_path / "archive"
    path.write_bytes(content)
    with tarfile.open(path, "r|") as tar:
        expected = [tar.extractfile(entry).read() for entry in tar]  # type: ignore[union-attr]
    assert read(path) == list(zip(normal, expected, strict=True))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 7))
@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_a_flipped_bit_never_passes_for_a_text(tmp_path: Path, kind: str, place: float, bit: int) -> None:
    content = bytearray(tar_of(TEXTS, "w:gz") if kind == "tar.gz" else zip_of(*TEXTS))
    content[int(place * len(content))] ^= 1 << bit
    path = tmp_path / "archive"
    path.write_bytes(content)
    try:
        found = read(path)
    except DataError:
        return
    assert [text for _, text in found] == [text for _, text in TEXTS][: len(found)]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 511), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_tar_header_of_any_bytes_ends_well(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    block = bytearray(header(size=4))
    for position, value in changes:
        block[position] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    path = tmp_path / "archive"
    path.write_bytes(bytes(block) + b"text" + bytes(508) + member(b"b.txt") + END)
    with contextlib.suppress(DataError):
        assert len(read(path)) <= 2


def test_members_are_read_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(member() + b"what follows is not looked at before it is asked for" * 20)
    reading = read_members(path, lambda name: True, **LIMITS)
    assert list(itertools.islice(reading, 1)) == [("a.txt", b"text")]
    reading.close()  # type: ignore[attr-defined]
