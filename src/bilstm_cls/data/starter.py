"""What `init` does: finds how data are written and where texts and labels are, and writes a config that suits them."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bilstm_cls.config import DataConfig
from bilstm_cls.config_file import dump_yaml, load_config
from bilstm_cls.data.columns import ReadOptions, alike_labels, clean_label
from bilstm_cls.data.dialect import NONE, Dialect, TableRows
from bilstm_cls.data.encoding import COMPRESSIONS, find_encoding
from bilstm_cls.data.formats import BODY_NAMES, LABEL_NAMES, TITLE_NAMES, data_files, detect_format, find_splits
from bilstm_cls.data.readers import READERS, folder_files, read_labelled_files
from bilstm_cls.data.types import BadRow, Example
from bilstm_cls.errors import DataError, cut, shown

MAX_ROWS = 20_000
MAX_ROWS_FOR_COLUMNS = 5_000
MAX_BYTES = 32 * 2**20
MAX_FILES = 2_000
MAX_TEXTS = 2_000
"""Texts whose tokens are counted."""
MAX_LENGTH = 400
MAX_ROWS_FOR_BASELINES = 50_000
"""Above it they take minutes."""
IMBALANCE = 3.0
"""The most frequent label's count by the rarest's, above which labels are weighted."""
FEW_TEXTS = 10
"""With fewer texts, a label is hardly learned."""

_TABLES = ("csv", "tsv", "jsonl", "parquet", "arrow")
_SURE_LABELS = LABEL_NAMES[:6]
_PAIRS = (("sentence1", "sentence2"), ("question1", "question2"), ("premise", "hypothesis"), ("text_a", "text_b"))
_MAX_LABEL = 60
"""Characters; what is longer is a text."""
_MAX_LABELS = 500
_COMPRESSION = 3
"""Bytes of text in a byte of a compressed file, roughly."""

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
_NO_SPACES = "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\ua9e0-\ua9ff\uaa60-\uaadf"
"""Thai, Lao, Tibetan, Burmese, Khmer, Tai Le, New Tai Lue and Tai Tham, which put no spaces between words."""
_TOKENS = {
    "cjk": re.compile(rf"[{_CJK}]|[^\W{_CJK}]+|[^\w\s]"),
    "characters": re.compile(r"\S"),
    "words": re.compile(r"\w+(?:['’]\w+)*|[^\w\s]"),
}


@dataclass(frozen=True)
class DataProfile:
    """What a look at data shows.

    Attributes:
        splits: the files or folders of train, and of valid and test where a folder holds them.
        format: a key of `READERS`.
        encoding: the codec.
        dialect: of csv and tsv files, else None.
        text_columns: given or guessed; empty for formats without columns.
        label_column: given or guessed; None for formats without columns.
        labels: how often each label came up, the most frequent first.
        num_seen: rows looked at that can be read.
        num_rows: rows in all files of train; estimated unless `is_whole`.
        is_whole: whether all rows were looked at.
        remarks: what else the reader found, such as blank lines.
        bad_rows: rows looked at that cannot be read.
        median_characters: the length of the middle text.
        longest_characters: the length of the longest text.
        tokenizer: one under which few tokens of new texts are unknown.
        num_tokens: of some texts, roughly, in ascending order.
    """

    splits: dict[str, list[str]]
    format: str
    encoding: str
    dialect: Dialect | None
    text_columns: tuple[str, ...]
    label_column: str | None
    labels: dict[str, int]
    num_seen: int
    num_rows: int
    is_whole: bool
    remarks: list[str]
    bad_rows: list[BadRow]
    median_characters: int
    longest_characters: int
    tokenizer: str
    num_tokens: tuple[int, ...]


def profile_data(path: Path, overrides: Sequence[str] = ()) -> DataProfile:
    """Looks at the first 20,000 rows or 32 MiB of data, or at files from all over a folder.

    Args:
        path: a file, a folder, or a pattern of file names.
        overrides: `key.path=value` as for `load_config`. What they say of format, encoding, dialect and columns is not
            guessed.

    Raises:
        DataError: nothing can be read, or it does not show which column holds the label or the text.
        ConfigError: an override is wrong.
    """
    given = load_config(None, ["data.source=files", f"data.train={json.dumps(str(path))}", *overrides]).data
    splits = find_splits(Path(path)) or {"train": [str(path)]}
    files = data_files(splits["train"])
    format = detect_format(files[0]) if given.format == "auto" else given.format
    is_encoding_given = "encoding" in given.model_fields_set and given.encoding != "auto"
    encoding = given.encoding if is_encoding_given else _encoding_of(files[0], format)
    options = ReadOptions(encoding=encoding, csv=Dialect(**dict(given.csv)))
    dialect = None
    if format in ("csv", "tsv"):
        dialect = TableRows(files[0], encoding, options.csv, (), is_tsv=format == "tsv").dialect
        options = replace(options, csv=dialect)
    if format in _TABLES:
        texts, label = _choose_columns(files[0], format, options, given)
        options = replace(options, text_columns=texts, label_column=label)
    seen = _look(files, format, options)
    if not seen.texts:
        raise DataError(f"{seen.bad_rows[0] if seen.bad_rows else files[0]}; no row can be read as {format}")
    lengths = sorted(map(len, seen.texts))
    some = seen.texts[:: 1 + len(seen.texts) // MAX_TEXTS]
    tokenizer = _tokenizer_for(some)
    return DataProfile(
        splits=splits,
        format=format,
        encoding=encoding,
        dialect=dialect,
        text_columns=options.text_columns if format in _TABLES else (),
        label_column=options.label_column if format in _TABLES else None,
        labels=dict(seen.labels.most_common()),
        num_seen=len(seen.texts),
        num_rows=seen.num_rows,
        is_whole=seen.is_whole,
        remarks=seen.remarks,
        bad_rows=seen.bad_rows,
        median_characters=lengths[len(lengths) // 2],
        longest_characters=lengths[-1],
        tokenizer=tokenizer,
        num_tokens=tuple(sorted(len(_TOKENS[tokenizer].findall(text)) for text in some)),
    )


def _encoding_of(path: Path, format: str) -> str:
    if format in ("parquet", "arrow"):
        return "utf-8"
    if format != "folder":
        return find_encoding(path, max_bytes=MAX_BYTES)
    return "utf-8" if {find_encoding(file) for _, file in _some_files(path)} <= {"utf-8"} else "auto"


def _tokenizer_for(texts: Sequence[str]) -> str:
    num_letters = sum(sum(map(str.isalpha, text)) for text in texts)
    for tokenizer, script in (("cjk", _CJK), ("characters", _NO_SPACES)):
        if 2 * sum(len(re.findall(f"[{script}]", text)) for text in texts) > num_letters:
            return tokenizer
    return "words"


@dataclass
class _Seen:
    """What a look at some rows shows, read as training will read them."""

    texts: list[str] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    bad_rows: list[BadRow] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    num_rows: int = 0
    is_whole: bool = True


def _look(files: Sequence[Path], format: str, options: ReadOptions) -> _Seen:
    seen = _Seen()
    if format == "folder":
        rows = read_labelled_files(_some_files(files[0]), options)
    else:
        rows = itertools.chain.from_iterable(READERS[format](file, options) for file in files)
    num_bytes = 0
    for row in rows:
        if isinstance(row, BadRow):
            (seen.remarks.append(str(row)) if row.is_read else seen.bad_rows.append(row))
            continue
        seen.texts.append(row.text)
        seen.labels[row.label or ""] += 1
        num_bytes += len(row.text.encode(errors="replace")) + len(row.label or "") + 2
        if len(seen.texts) + len(seen.bad_rows) >= MAX_ROWS or num_bytes > MAX_BYTES:
            seen.is_whole = False
            break
    seen.num_rows = len(seen.texts)
    if format == "folder":
        seen.labels = Counter(label for label, _ in folder_files(files[0]))
        seen.num_rows = seen.labels.total()
        seen.is_whole = seen.num_rows == len(seen.texts) + len(seen.bad_rows)
    elif not seen.is_whole:
        seen.num_rows = max(seen.num_rows, _estimated_rows(files, format, num_bytes / seen.num_rows))
    return seen


def _some_files(folder: Path) -> list[tuple[str, Path]]:
    """Returns label and path of files from all over a folder of folders."""
    files = list(folder_files(folder))
    return files[:: 1 + len(files) // MAX_FILES]


def _estimated_rows(files: Sequence[Path], format: str, bytes_per_row: float) -> int:
    if format == "parquet":
        import pyarrow.parquet as pq

        return sum(int(pq.read_metadata(file).num_rows) for file in files)
    inner = [file for path in files for file in (path.glob("*.arrow") if path.is_dir() else [path])]
    sizes = (file.stat().st_size * (_COMPRESSION if file.suffix in COMPRESSIONS else 1) for file in inner)
    return int(sum(sizes) / max(1, bytes_per_row))


# Which columns hold the text and the label

_Table = dict[str, list[Any]]
"""The values of each column, all equally many."""


def _choose_columns(path: Path, format: str, options: ReadOptions, given: DataConfig) -> tuple[tuple[str, ...], str]:
    """Returns the columns of the text and of the label, as far as they are not given by what they are called and hold.

    Raises:
        DataError: no row can be read, or nothing shows one of the columns.
    """
    is_csv = format in ("csv", "tsv")
    # A header is read as a row at first, since there may be none.
    options = replace(options, text_columns=("#1",) if is_csv else (), label_column=None, keep_record=True)
    rows = list(itertools.islice(READERS[format](path, options), MAX_ROWS_FOR_COLUMNS))
    records = [row.record or {} for row in rows if isinstance(row, Example)]
    bad_rows = [row for row in rows if isinstance(row, BadRow) and not row.is_read]
    if bad_rows and len(records) <= is_csv:
        raise DataError(f"{bad_rows[0]}; none of {len(bad_rows):,} rows can be read as {format}")
    names = list(dict.fromkeys(name for record in records for name in record))
    table = {name: [record.get(name) for record in records] for name in names}
    if is_csv:
        table = _without_header(table)
    known = tuple(given.text_columns) if "text_columns" in given.model_fields_set else ()
    label = given.label_column if "label_column" in given.model_fields_set else _guess_label(table, known)
    if label is None or label not in table:
        raise DataError(f"{path}: {_unknown(table, 'label', label)}; name it: --set data.label_column=NAME")
    texts = known or _guess_texts(table, label)
    wrong = next((name for name in texts if name not in table), None)
    if not texts or wrong is not None:
        raise DataError(f"{path}: {_unknown(table, 'text', wrong)}; name it: --set data.text_columns=NAME")
    return texts, label


def _unknown(table: _Table, kind: str, name: str | None) -> str:
    start = f"cannot tell which column holds the {kind}" if name is None else f"there is no column {shown(name)}"
    columns = [f"{shown(n)} ({f'such as {shown(v[0])}' if v else 'without values'})" for n, v in table.items()]
    return f"{start}; there are {', '.join(columns[:20])}"


def _without_header(table: _Table) -> _Table:
    """Takes the names of the columns from the first row if it is a header."""
    rows = list(zip(*table.values(), strict=True))
    below = [row for row in rows[1:] if row != rows[0]]
    if not rows or not _is_header(rows[0], list(zip(*below, strict=True))):
        return table
    first = [cell.strip() for cell in rows[0]]
    names = [
        position if not name or name in first[:at] else name
        for at, (name, position) in enumerate(zip(first, table, strict=True))
    ]
    return {name: [row[at] for row in below] for at, name in enumerate(names)}


def _is_header(first: Sequence[str], columns: Sequence[Sequence[str]]) -> bool:
    """Whether a table's first row names its columns, rather than being like the others."""
    if list(first) == [str(position) for position in range(len(first))] and len(first) > 1:
        return True  # what pandas writes for columns without names
    for cell, values in zip(first, columns, strict=False):
        different = set(values)
        is_one_of_few = len(different) <= max(2, 0.2 * len(values)) and cell in different
        if cell.strip() and (is_one_of_few or len(cell) > _MAX_LABEL or _is_number(cell)):
            return False
    return True


def _guess_label(table: _Table, texts: Sequence[str]) -> str | None:
    """Returns the label's column: one of a usual name, else the one with the fewest different short values."""
    candidates = [name for name in table if name not in texts]
    by_name = sorted(
        (LABEL_NAMES.index(name.casefold()), name) for name in candidates if name.casefold() in LABEL_NAMES
    )
    by_part = [(0, name) for word in _SURE_LABELS for name in candidates if word in name.casefold()]
    for _, name in [*by_name, *by_part]:
        is_sure = name.casefold() in _SURE_LABELS
        if 0 < _num_labels(table[name]) <= (MAX_ROWS if is_sure else max(20, 0.5 * len(table[name]))):
            return name
    # What is called a text is one, however few there are.
    others = [name for name in candidates if name.casefold() not in BODY_NAMES]
    few = [(_num_labels(table[name]), position, name) for position, name in enumerate(others)]
    few = [found for found in few if 2 <= found[0] < len(table[found[2]]) * (0.2 if found[0] > 2 else 1)]
    return min(few)[2] if few else None


def _guess_texts(table: _Table, label: str) -> tuple[str, ...]:
    """Returns the text's columns: those of usual names, else the longest and others that read like prose."""
    found = {name.casefold(): name for name in table if name != label and _is_text(table[name])}
    for pair in _PAIRS:
        if all(name in found for name in pair):
            return tuple(found[name] for name in pair)
    bodies = [found[name] for name in BODY_NAMES if name in found][:1]
    titles = [found[name] for name in TITLE_NAMES if name in found and found[name] not in bodies][:1]
    if bodies or titles:
        return (*titles, *bodies)
    lengths = {name: sum(len(v) for v in table[name] if isinstance(v, str)) for name in found.values()}
    longest = max(lengths, key=lambda name: lengths[name], default=None)
    return tuple(name for name in table if name == longest or (name in lengths and _is_prose(table[name])))


def _num_labels(values: Sequence[Any]) -> int:
    """Returns how many labels a column holds; 0 if its values cannot be labels."""
    there = [value for value in values if value not in (None, "")]
    is_fitting = all(
        0 < len(v.strip()) <= _MAX_LABEL if isinstance(v, str) else isinstance(v, int) or _is_whole(v) for v in there
    )
    number = len({clean_label(value) if isinstance(value, str) else value for value in there}) if is_fitting else 0
    return number if number <= _MAX_LABELS else 0


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()


def _is_text(values: Sequence[Any]) -> bool:
    """Whether a column holds text in more than a few rows that overflow into it."""
    return sum(isinstance(value, str) and bool(value.strip()) for value in values) > 0.2 * len(values)


def _is_prose(values: Sequence[Any]) -> bool:
    """Whether most values differ and have several words."""
    num_words = [len(value.split()) for value in values if isinstance(value, str)]
    return sum(num_words) >= 4 * len(values) and len(set(map(str, values))) > 0.5 * len(values)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


# The config


@dataclass(frozen=True)
class _Size:
    """Settings for data of up to so many rows."""

    max_rows: float
    held_out: float
    min_freq: int
    batch_size: int
    epochs: int
    patience: int


_SIZES = (
    _Size(200, 0.2, 1, 8, 30, 5),
    _Size(1_000, 0.1, 1, 16, 30, 5),
    _Size(5_000, 0.1, 1, 32, 15, 3),
    _Size(50_000, 0.1, 2, 64, 8, 2),
    _Size(200_000, 0.1, 2, 64, 5, 2),
    _Size(1_000_000, 0.05, 2, 128, 3, 2),
    _Size(float("inf"), 0.01, 3, 256, 2, 2),
)


def starter_config(profile: DataProfile, path: Path) -> str:
    """Returns a commented config that trains on data as they are, with settings that suit their size and texts.

    Raises:
        DataError: the path cannot be written in a config.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError(f"{str(path)!r}: cannot be written in a config; rename it in UTF-8") from None
    size = next(size for size in _SIZES if profile.num_rows <= size.max_rows)
    sections = (_heading(profile, path), _data(profile, size), _text(profile, size), _train(profile, size))
    return "\n".join(line for section in sections for line in section) + "\n"


def _heading(profile: DataProfile, path: Path) -> Iterator[str]:
    yield f"# A classifier for the texts of {cut(str(path))}."
    yield "# Train it: bilstm-cls train -c THIS_FILE    All keys: bilstm-cls config show -c THIS_FILE"
    rows = f"{profile.num_seen:,} rows"
    rows += "" if profile.is_whole else f" of about {profile.num_rows:,}"
    yield f"# Seen in {rows}: {len(profile.labels)} labels; half of the texts are longer than"
    yield f"# {profile.median_characters:,} characters, the longest has {profile.longest_characters:,}."
    name = re.sub(r"[^\w.-]+", "-", path.stem).strip(".-")[:80]
    yield f"name: {_yaml(name or 'run')}"
    yield "seed: 1"


def _data(profile: DataProfile, size: _Size) -> Iterator[str]:
    splits = {name: files[0] if len(files) == 1 else files for name, files in profile.splits.items()}
    yield ""
    yield "data:"
    yield f"  train: {_yaml(splits['train'])}"
    yield f"  format: {profile.format}"
    if dialect := _unusual(profile):
        yield f"  csv: {{{', '.join(f'{key}: {_yaml(value)}' for key, value in dialect.items())}}}  # as found"
    if profile.label_column is not None:
        joined = "  # joined" * (len(profile.text_columns) > 1)
        yield f"  text_columns: {_yaml(list(profile.text_columns))}{joined}"
        yield f"  label_column: {_yaml(profile.label_column)}"
    yield from (f"  # {_in_comment(remark)}" for remark in _remarks(profile))
    yield f"  encoding: {_yaml(profile.encoding)}"
    if profile.bad_rows:
        yield f"  # {len(profile.bad_rows):,} of the rows seen cannot be read: fix them, or skip them. The first is"
        yield f"  # {_in_comment(str(profile.bad_rows[0]))}"
    yield "  bad_rows: error  # or skip, which counts them"
    for name, use in (("valid", "to choose the best epoch by"), ("test", "evaluated once at the end")):
        if name in splits:
            yield f"  {name}: {_yaml(splits[name])}"
        else:
            yield f"  {name}: {size.held_out:g}  # of train, {use}; or a file{', or null' * (name == 'test')}"


def _unusual(profile: DataProfile) -> dict[str, Any]:
    """Returns what a csv file has that others have not, to read all of the file as its beginning was read."""
    if profile.dialect is None:
        return {}
    usual = Dialect("\t" if profile.format == "tsv" else ",", "" if profile.format == "tsv" else '"', "", 0, "")
    keys = ("delimiter", "quotechar", "escapechar", "skip_lines", "comment")
    found = {key: getattr(profile.dialect, key) for key in keys}
    return {key: NONE if value == "" else value for key, value in found.items() if value != getattr(usual, key)}


def _remarks(profile: DataProfile) -> Iterator[str]:
    total = sum(profile.labels.values())
    shown_labels = [f"{label} {count / total:.1%}" for label, count in list(profile.labels.items())[:8]]
    more = f" and {len(profile.labels) - 8} more" if len(profile.labels) > 8 else ""
    one = "; one label alone cannot be learned" if len(profile.labels) == 1 else ""
    yield f"Labels: {', '.join(shown_labels)}{more}{one}."
    if num_rare := sum(count < FEW_TEXTS for count in profile.labels.values()) if len(profile.labels) > 10 else 0:
        yield f"{num_rare} labels have fewer than {FEW_TEXTS} texts; they are hardly learned, and some not tested."
    for group in alike_labels(list(profile.labels)):
        yield f"The labels {', '.join(map(ascii, group))} look alike and count as {len(group)}."
    yield from profile.remarks


def _text(profile: DataProfile, size: _Size) -> Iterator[str]:
    length = _max_length(profile.num_tokens)
    fraction = sum(tokens > length for tokens in profile.num_tokens) / len(profile.num_tokens)
    yield ""
    yield "text:"
    yield f"  tokenizer: {profile.tokenizer}"
    yield "  lowercase: true"
    yield f"  min_freq: {size.min_freq}"
    yield "  max_vocab_size: 30000"
    cut_texts = f"about {fraction:.1%} of the texts are cut" if fraction else "all texts fit"
    yield f"  max_length: {length}  # tokens; {cut_texts}"


def _train(profile: DataProfile, size: _Size) -> Iterator[str]:
    yield ""
    yield "embedding: {init: ppmi, dim: 100}  # or random, glove-6b-50d (English, dim 50), or a vectors file"
    yield "model: {hidden_size: 128, pooling: mean, dropout: 0.5}"
    yield ""
    yield "train:"
    yield f"  epochs: {size.epochs}"
    yield f"  batch_size: {size.batch_size}"
    yield "  learning_rate: 1e-3"
    yield f"  patience: {size.patience}  # epochs without a better score before stopping"
    if profile.num_rows <= MAX_ROWS_FOR_BASELINES:
        yield "  baselines: true  # also evaluate two linear models, which this one has to beat"
    imbalance = max(profile.labels.values()) / min(profile.labels.values())
    if imbalance > IMBALANCE:
        yield f"  class_weights: balanced  # the most frequent label is {imbalance:.1f} times as frequent as the rarest"
        yield "  select_by: valid/macro_f1"


def _max_length(num_tokens: tuple[int, ...]) -> int:
    """Returns a round number of tokens that few texts exceed; all fit where the longest is not much longer."""
    most, longest = num_tokens[int(0.98 * (len(num_tokens) - 1))], num_tokens[-1]
    length = longest if longest <= 1.5 * most else most
    step = 10 if length <= 100 else 50
    return min(MAX_LENGTH, max(20, -(-length // step) * step))


def _yaml(value: Any) -> str:
    """Returns a value as YAML on one line."""
    return dump_yaml([value]).strip()[1:-1]


def _in_comment(text: str) -> str:
    """Returns a text without line breaks and whatever else YAML does not take in a comment."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
