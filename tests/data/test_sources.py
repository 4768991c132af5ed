import functools
import gzip
import hashlib
import http.server
import io
import os
import tarfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from bilstm_cls.data import sources
from bilstm_cls.data.hub import DownloadError, UnreachableError
from bilstm_cls.data.sources import fetch, identity_of
from bilstm_cls.errors import DataError
from bilstm_cls.files import sha256_of
from tests.data.rows import loaded, texts_of

REVIEWS = {
    f"aclImdb/{split}/{label}/{number}_{stars}.txt": f"{split} {label} {number} <br />caf\u00e9"
    for split in ("train", "test")
    for label, stars in (("pos", 9), ("neg", 2))
    for number in range(12)
}
UNLABELLED = {f"aclImdb/train/unsup/{number}_0.txt": f"no opinion {number}" for number in range(3)}
OTHERS = {"aclImdb/README": "words", "aclImdb/train/urls_pos.txt": "x", "aclImdb/train/pos/notes.txt": "x"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BILSTM_CLS_CACHE", str(tmp_path / "cache"))


def tar_of(files: Mapping[str, str], kind: bytes = tarfile.REGTYPE) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(text.encode()) * (kind == tarfile.REGTYPE), kind, "/etc/passwd"
            archive.addfile(info, io.BytesIO(text.encode()))
    return sink.getvalue()


def pack(path: Path, files: Mapping[str, str]) -> Path:
    path.write_bytes(gzip.compress(tar_of(files)))
    return path


def lay_out(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    return folder


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return pack(tmp_path / "reviews.tar.gz", REVIEWS | UNLABELLED | OTHERS)


def test_an_archive_has_its_own_train_test_and_unlabelled_reviews(archive: Path) -> None:
    dataset = loaded("source=imdb", f"path={archive}", "valid=0.25")
    texts = texts_of(dataset)
    assert dataset.labels == ["neg", "pos"]
    assert {name: len(split) for name, split in texts.items()} == {
        "train": 18, "valid": 6, "test": 24, "unlabelled": 3
    }  # fmt: skip
    assert texts["test"] == [f"test {label} {i} <br />café" for label in ("neg", "pos") for i in range(12)]
    assert dataset.splits["test"].paths[0] == f"{archive}/aclImdb/test/neg/0_2.txt"
    assert texts["unlabelled"] == [f"no opinion {i}" for i in range(3)]
    assert dataset.splits["test"].label_ids.tolist() == [0] * 12 + [1] * 12


def test_an_archive_in_any_order_and_a_folder_are_the_same_data(archive: Path, tmp_path: Path) -> None:
    files = REVIEWS | UNLABELLED | OTHERS
    turned = pack(tmp_path / "turned.tar.gz", dict(reversed(files.items())))
    folder = lay_out(tmp_path / "folder", files)
    digests = {loaded("source=imdb", f"path={path}").digest for path in (archive, turned, folder, folder / "aclImdb")}
    assert len(digests) == 1


def test_the_score_of_another_archive_is_not_official(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = loaded("source=imdb", f"path={archive}")
    assert not dataset.is_official
    assert len(dataset.notes) == 1
    monkeypatch.setattr(sources, "IMDB_SHA256", sha256_of(archive))
    monkeypatch.setenv("BILSTM_CLS_CACHE", str(archive.parent / "another cache"))
    official = loaded("source=imdb", f"path={archive}")
    assert (official.is_official, official.notes) == (True, [])
    downloaded = tmp_path / "cache/downloads/aclImdb_v1.tar.gz"
    downloaded.parent.mkdir(parents=True)
    archive.rename(downloaded)
    monkeypatch.setenv("BILSTM_CLS_CACHE", str(tmp_path / "cache"))
    assert loaded("source=imdb").is_official  # without a network


@pytest.mark.parametrize("half", ["train", "test"])
def test_an_archive_without_one_half_is_an_error(half: str, tmp_path: Path) -> None:
    path = pack(tmp_path / "half.tar.gz", {name: text for name, text in REVIEWS.items() if half not in name})
    with pytest.raises(DataError, match=rf"no {half}/pos/\*\.txt"):
        loaded("source=imdb", f"path={path}")


def test_a_review_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "folder", REVIEWS)
    (folder / "aclImdb/test/pos/0_9.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"test/pos/0_9\.txt: byte 0xe9 is not UTF-8"):
        loaded("source=imdb", f"path={folder}")


PLAIN = tar_of(REVIEWS)
HOSTILE = {
    "links": tar_of(REVIEWS, tarfile.SYMTYPE),
    "too many members": tar_of(dict.fromkeys(map(str, range(60)), "a")),
    "cut": PLAIN[: len(PLAIN) // 2],
    "cut gzip": gzip.compress(PLAIN, mtime=0)[:-20],
    "a wrong checksum": gzip.compress(PLAIN, mtime=0)[:-8] + bytes(8),
    "a damaged header": PLAIN[:10240] + b"x" * 512 + PLAIN[10752:],
    "no archive": b"<html>" * 200,
    "empty": b"",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_or_damaged_archive_is_an_error_that_names_it(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_MEMBERS", 50)
    (tmp_path / "reviews.tar.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"reviews\.tar\.gz"):
        loaded("source=imdb", f"path={tmp_path / 'reviews.tar.gz'}")


CONTENT = b"some bytes " * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BILSTM_CLS_OFFLINE", "0")
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def server(online: None, tmp_path: Path) -> Iterator[str]:
    """The address of a server on this machine that has one file."""
    lay_out(tmp_path / "served", {"good": CONTENT.decode()})
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_file_is_downloaded_once(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "folder" / "file.bin"
    assert fetch(f"{server}/good", target, sha256=DIGEST).read_bytes() == CONTENT
    monkeypatch.setenv("BILSTM_CLS_OFFLINE", "1")
    assert fetch(f"{server}/good", target, sha256=DIGEST) == target


@pytest.mark.parametrize(("name", "digest"), [("missing", DIGEST), ("good", "0" * 64)])
def test_what_is_not_the_wanted_file_leaves_no_file(name: str, digest: str, server: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        fetch(f"{server}/{name}", tmp_path / "file.bin", sha256=digest)
    assert not isinstance(caught.value, UnreachableError)
    assert list(tmp_path.glob("*.bin*")) == list(tmp_path.glob("tmp*")) == []


@pytest.mark.usefixtures("online")
def test_without_a_server_it_is_unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnreachableError):
        fetch("http://127.0.0.1:9/file", tmp_path / "file.bin", sha256=DIGEST)
    monkeypatch.setenv("BILSTM_CLS_OFFLINE", "1")
    with pytest.raises(UnreachableError, match="BILSTM_CLS_OFFLINE"):
        fetch("http://127.0.0.1:9/file", tmp_path / "file.bin", sha256=DIGEST)


@pytest.fixture
def reviews_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the place of the installed package of film reviews: 40 of IMDB, 20 of Rotten Tomatoes."""
    names = ["imdb"] * 40 + ["rotten_tomatoes"] * 20
    rows = [f"review {i} of {name},{i % 2},{name}\n" for i, name in enumerate(names)]
    folder = lay_out(tmp_path, {"reviews.csv": "text,label,source\n" + "".join(rows)})
    monkeypatch.setattr(sources, "packaged", lambda *_: folder / "reviews.csv")
    monkeypatch.setattr(sources, "REVIEWS_SHA256", sha256_of(folder / "reviews.csv"))


@pytest.mark.usefixtures("reviews_package")
def test_without_a_network_the_test_split_is_cut_from_the_packaged_half(caplog: pytest.LogCaptureFixture) -> None:
    dataset = loaded("source=imdb")
    assert (len(dataset.splits["test"]), dataset.is_official) == (8, False)
    assert len(loaded("source=imdb", "test=0.5").splits["test"]) == 20
    assert all("imdb" in text for texts in texts_of(dataset).values() for text in texts)
    assert "not the official one" in dataset.notes[0]
    assert "IMDB archive" in caplog.text


@pytest.mark.usefixtures("reviews_package")
def test_rotten_tomatoes_are_the_rows_of_that_source() -> None:
    dataset = loaded("source=rotten_tomatoes", "test=0.2")
    rows = [pair for split in dataset.splits.values() for pair in zip(split.texts, split.label_ids, strict=True)]
    assert sorted(rows) == sorted((f"review {i} of rotten_tomatoes", i % 2) for i in range(40, 60))
    assert dataset.labels == ["neg", "pos"]


def test_packages_that_were_not_checked_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = lay_out(tmp_path, {"news/sports/1.txt": "a", "news/arts/2.txt": "b", "reviews.csv": "text,label,source\n"})
    for source, name in (("rotten_tomatoes", "reviews.csv"), ("bbc_news", "news")):
        monkeypatch.setattr(sources, "packaged", lambda *_, path=folder / name: path)
        with pytest.raises(DataError, match="SHA-256"):
            loaded(f"source={source}")


def test_bbc_news_are_labelled_by_their_folders_and_decoded_as_they_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lay_out(
        tmp_path / "news", {f"{topic}/{i:03}.txt": "£5" for topic in ("business", "sports") for i in range(9)}
    )
    (folder / "sports/003.txt").write_bytes("£5".encode("latin-1"))
    contents = [file.read_bytes() for file in sorted(folder.glob("*/*"))]
    digest = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()
    monkeypatch.setattr(sources, "packaged", lambda *_: folder)
    monkeypatch.setattr(sources, "BBC_SHA256", digest)
    dataset = loaded("source=bbc_news", "test=0.2")
    assert dataset.labels == ["business", "sports"]
    assert [text for split in texts_of(dataset).values() for text in split] == ["£5"] * 18


def test_the_identity_changes_with_the_files(tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "folder", {"a.txt": "a", "b.txt": "a"})
    times, before = (folder / "a.txt").stat(), identity_of(folder / "a.txt")
    (folder / "a.txt").write_text("b", "utf-8")
    os.utime(folder / "a.txt", ns=(times.st_atime_ns, times.st_mtime_ns))  # as tools that keep times do
    assert identity_of(folder / "a.txt") != before
    identities = [identity_of(folder), identity_of(folder)]
    os.utime(folder / "a.txt", (1, 1))
    identities.append(identity_of(folder))
    (folder / "a.txt").rename(folder / "c.txt")
    identities.append(identity_of(folder))
    assert [identities.index(identity) for identity in identities] == [0, 0, 2, 3]
