import gzip
import logging
from typing import Any

import pytest

from bilstm_cls.data.encoding import find_encoding
from bilstm_cls.data.readers import ReadOptions
from bilstm_cls.errors import DataError
from tests.data.conftest import Write
from tests.data.rows import pairs, skipping

FRENCH = "très café, déjà vu à l’été"
TEXTS = {
    **dict.fromkeys(("utf-8", "utf-8-sig", "utf-16", "utf-32", "windows-1252"), FRENCH),
    "gb18030": "这部电影非常好看，我们都很喜欢，演员的表演也很精彩",
    "big5": "這部電影非常好看，我們都很喜歡，演員的表演也很精彩",
    "cp932": "この映画はとても良かったです。俳優の演技も素晴らしい",
    "euc-jp": "この映画はとても良かったです。俳優の演技も素晴らしい",
    "cp949": "이 영화는 정말 재미있었습니다. 배우들의 연기도 훌륭했어요",
    "cp1251": "этот фильм мне очень понравился, актёры играли хорошо",
    "cp1255": "הסרט הזה היה מצוין אבל הסוף היה ארוך ומשעמם ולא נהנינו",
    "koi8_r": "этот фильм мне очень понравился, актёры играли хорошо",
}


@pytest.mark.parametrize("encoding", TEXTS)
def test_auto_finds_the_encoding_and_logs_it(write: Write, caplog: pytest.LogCaptureFixture, encoding: str) -> None:
    path = write("a.csv", f'text,label\n"{TEXTS[encoding]}",pos\n', encoding)
    with caplog.at_level(logging.INFO):
        assert pairs(path, options=ReadOptions(encoding="auto")) == [(TEXTS[encoding], "pos")]
    assert f"reading as {encoding.removesuffix('-sig')}" in caplog.text


@pytest.mark.parametrize("place", [0, 7, 19])
def test_a_line_of_another_encoding_in_a_utf8_file_is_a_bad_row_and_no_other_changes(write: Write, place: int) -> None:
    rows = [f"café {i}" for i in range(20)]
    lines = [f"{row},pos\n".encode("latin-1" if i == place else "utf-8") for i, row in enumerate(rows)]
    path = write("a.csv", b"text,label\n" + b"".join(lines))
    assert find_encoding(path) == "utf-8"
    kept = [(row, "pos") for row in rows[:place] + rows[place + 1 :]]
    assert skipping(path, options=ReadOptions(encoding="auto")) == (kept, [place + 2])


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "gb18030", "utf-16-le", "shift_jis", "iso2022_jp"])
@pytest.mark.parametrize(
    ("name", "header", "row"),
    [
        ("a.csv", "text,label\n", "{},pos\n"),
        ("a.tsv", "text\tlabel\n", "{}\tpos\n"),
        ("a.txt", "", "pos {}\n"),
        ("a.jsonl", "", '{{"text": "{}", "label": "pos"}}\n'),
        ("a.json", "[\n", '{{"text": "{}", "label": "pos"}},\n'),
    ],
)
def test_a_byte_that_cannot_be_decoded_is_named_deep_in_a_file(
    write: Write, name: str, header: str, row: str, encoding: str
) -> None:
    text = "Q" if encoding == "ascii" else "Q中中中"  # which the blocks that are read cut apart
    content, num_before = row.format(text).encode(encoding), 1000
    wrong = b"\x00\xdc" if encoding == "utf-16-le" else b"\xff"
    harmed = content.replace("Q".encode(encoding), "Q".encode(encoding) + wrong)
    path = write(name, header.encode(encoding) + content * num_before + harmed + content * 5)
    kwargs: Any = {"options": ReadOptions(encoding=encoding), "format": "label-text" if name == "a.txt" else "auto"}
    line = num_before + bool(header) + 1
    with pytest.raises(DataError, match=rf":{line}: byte 0x{wrong[0]:02x} is not {encoding} "):
        pairs(path, **kwargs)
    assert skipping(path, **kwargs) == ([(text, "pos")] * (num_before + 5), [line])


@pytest.mark.parametrize(
    ("start", "kind"),
    [(b"PK\3\4", "Excel"), (b"\xd0\xcf\x11\xe0", "Excel"), (b"BZh91AY", "bzip2"), (b"%PDF-1.7", "PDF")],
)
def test_a_file_that_holds_no_text_is_called_by_its_kind(write: Write, start: bytes, kind: str) -> None:
    with pytest.raises(DataError, match=kind):
        find_encoding(write("a.csv", start + b"\0\xff\xfe\n\x81" * 50))


def test_compressed_files_are_read_and_damaged_ones_refused(write: Write) -> None:
    content = "text,label\n" + "".join(f"naïve {i * 7919 % 1000},pos\n" for i in range(1000))
    path = write("a.csv.gz", gzip.compress(content.encode()))
    assert pairs(path, options=ReadOptions(encoding="auto"))[-1] == (f"naïve {999 * 7919 % 1000}", "pos")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"a\.csv\.gz: cannot be read \("):
        pairs(path)
