"""What `init` does: finds how data are written and where texts and labels are, and writes a config that suits them."""

import itertools
import json
import re
from collections import Counter, namedtuple
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bilstm_cls.config import DataConfig
from bilstm_cls.config_file import flow_yaml, load_config
from bilstm_cls.data import readers
from bilstm_cls.data.encoding import find_encoding
from bilstm_cls.data.records import folder_files
from bilstm_cls.data.tables import Dialect, ReadOptions, TableRows, column_names, is_prose, require_columns
from bilstm_cls.data.tokenizer import Tokenizer
from bilstm_cls.data.types import MAX_LINEAR_LABELS, BadRow, Example, clean_label, joined_labels, names_in
from bilstm_cls.data.vectors import has_english
from bilstm_cls.errors import DataError, printable, shown

MAX_ROWS = 20_000
MAX_BYTES = 32 * 2**20
MAX_TEXTS = 2_000  # whose tokens are counted
MAX_LENGTH = 400
FEW_TEXTS = 10  # with fewer, a label is hardly learned
MIN_NGRAM_TEXTS = 50  # with fewer, too few are in valid to weight an n-gram model on
TEMPLATE = Path(__file__).with_name("starter.yaml.jinja")

_TABLES = ("csv", "tsv", "jsonl", "parquet", "arrow")
MAX_ROWS_FOR_COLUMNS = 5_000
_SURE_LABELS = readers.LABEL_NAMES[:6]
_MAX_LABEL = 60  # characters; what is longer is a text
_MAX_LABELS = 500
_NUMBER = re.compile(r"[-+]?[0-9]+([.][0-9]*)?([eE][-+]?[0-9]+)?|nan")
_SWITCHES = {"0", "1", "0.0", "1.0", "true", "false"}
MIN_SWITCHES = 3  # so many columns of 1 and 0 are one label each
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
# Thai, Lao, Tibetan, Burmese, Khmer, Tai Le, New Tai Lue and Tai Tham, which put no spaces between words:
_NO_SPACES = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\ua9e0-\ua9ff\uaa60-\uaadf"


@dataclass
class DataProfile:
    """What a look at data shows: `texts`, `labels`, `num_labels` (of a text) and `bad_rows` are of the rows looked at.

    `num_rows` counts the rows of all files of train, and is estimated unless `is_whole`.
    """

    splits: dict[str, list[str]]  # the files or folders of train, and of valid and test where a folder has them
    format: str
    options: ReadOptions
    texts: list[str] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    num_labels: set[int] = field(default_factory=set)
    bad_rows: list[BadRow] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    num_rows: int = 0
    is_whole: bool = True

    @property
    def is_multi(self) -> bool:
        return self.options.separator is not None


def profile_data(path: Path, overrides: Sequence[str] = ()) -> DataProfile:
    """Looks at the first 20,000 rows or 32 MiB of a file, a folder, or the files that a pattern names.

    What overrides (`key.path=value`) say of format, encoding, dialect and columns is not guessed. Raises DataError
    where nothing can be read, or it does not show which column holds the label or the text.
    """
    given = load_config(None, ["data.source=files", f"data.train={json.dumps(str(path))}", *overrides]).data
    splits = readers.find_splits(Path(path)) or {"train": [str(path)]}
    files = readers.data_files(splits["train"])
    format = readers.detect_format(files[0]) if given.format == "auto" else given.format
    is_multi = given.labels == "multi" or (format == "fasttext" and "labels" not in given.model_fields_set)
    encoding = "utf-8" if format in ("parquet", "arrow") else "auto" if format == "folder" else None
    options = ReadOptions(
        encoding=given.encoding if "encoding" in given.model_fields_set else encoding or find_encoding(files[0]),
        csv=Dialect(**dict(given.csv)),
        separator=given.label_separator if is_multi else None,
    )
    if format in ("csv", "tsv"):
        rows = TableRows(files[0], options.encoding, options.csv, (), is_tsv=format == "tsv")
        options = replace(options, csv=rows.dialect)
    if format in _TABLES:
        options = _with_columns(files[0], format, options, given)
    found = _look(DataProfile(splits, format, options), files)
    if not {"labels", "label_column"} & given.model_fields_set:
        if not found.is_multi and format in _TABLES and (mark := _mark_between(found.labels)):
            found = _look(DataProfile(splits, format, replace(options, separator=mark)), files)
        if format == "fasttext" and found.num_labels == {1}:
            found.options = replace(options, separator=None)
    if not found.texts:
        raise DataError(f"{found.bad_rows[0] if found.bad_rows else path}; no row can be read as {format}")
    if not found.labels:
        raise DataError(f"{path}: no row has a label")
    return found


def _mark_between(labels: Counter[str]) -> str | None:
    """Returns what is between labels if many are others with a mark between them, as in `good|extra`, or lists."""
    for mark in "[|;,":
        joined = joined_labels(labels, mark).items()
        if 10 * sum(labels[label] for label, parts in joined if mark == "[" or parts & labels.keys()) > labels.total():
            return mark
    return None


def _look(profile: DataProfile, files: Sequence[Path]) -> DataProfile:
    num_bytes = 0
    for row in (row for file in files for row in readers.READERS[profile.format](file, profile.options)):
        if isinstance(row, BadRow):
            (profile.remarks.append(str(row)) if row.is_read else profile.bad_rows.append(row))
            continue
        names = names_in(row.label)
        profile.texts.append(row.text)
        profile.labels.update(names)
        profile.num_labels.add(len(names))
        num_bytes += len(row.text.encode(errors="replace")) + sum(map(len, names)) + 2
        if len(profile.texts) + len(profile.bad_rows) >= MAX_ROWS or num_bytes > MAX_BYTES:
            profile.is_whole = False
            break
    profile.num_rows = len(profile.texts)
    if profile.format == "folder":
        profile.labels = Counter(label for label, _ in folder_files(files[0]))
        profile.num_rows = profile.labels.total()
    elif not profile.is_whole:
        size = sum(file.stat().st_size for file in files)
        profile.num_rows = max(profile.num_rows, int(size * profile.num_rows / max(1, num_bytes)))
    return profile


_Table = dict[str, list[Any]]


def _with_columns(path: Path, format: str, options: ReadOptions, given: DataConfig) -> ReadOptions:
    """Finds the columns of text and label, as far as they are not given, by their names and what they hold.

    Columns of 1 and 0 are one label each; with these, and where the label's column holds lists, labels are several.
    """
    is_csv = format in ("csv", "tsv")
    # A header is read as a row at first, since there may be none.
    whole = replace(options, text_columns=("#1",) if is_csv else (), label_column=None, keep_record=True)
    rows = list(itertools.islice(readers.READERS[format](path, whole), MAX_ROWS_FOR_COLUMNS))
    records = [row.record or {} for row in rows if isinstance(row, Example)]
    bad_rows = [row for row in rows if isinstance(row, BadRow) and not row.is_read]
    if bad_rows and len(records) <= is_csv:
        raise DataError(f"{bad_rows[0]}; none of {len(bad_rows):,} rows can be read as {format}")
    names = list(dict.fromkeys(name for record in records for name in record))
    table = {name: [record.get(name) for record in records] for name in names}
    if is_csv:
        table = _without_header(table)
        if not any(table.values()):
            raise DataError(f"{path}: has a header, but no row below it")
    known = tuple(given.text_columns) if "text_columns" in given.model_fields_set else ()
    label = given.label_column if "label_column" in given.model_fields_set else _guess_label(table, known)
    if label is None:
        raise _unknown_column(path, table, "label")
    labels = [label] if isinstance(label, str) else label
    require_columns(list(table), replace(options, text_columns=known, label_column=label), str(path))
    # A few wrong values are bad rows rather than a column that is no label.
    are_switches = {name: [str(value).strip().casefold() in _SWITCHES for value in table[name]] for name in table}
    switches = [name for name, found in are_switches.items() if sum(found) > readers.MOST * len(found)]
    is_guess = not {"label_column", "labels"} & given.model_fields_set and labels[0].lower() not in _SURE_LABELS
    if is_guess and labels[0] in switches and len(switches) >= MIN_SWITCHES:
        labels = switches
    texts = known or _guess_texts(table, labels)
    if any("\0" in name for name in table):
        raise DataError(f"{path}:1: the header holds NUL; if it is UTF-16, set data.encoding to utf-16-le")
    if not texts:
        raise _unknown_column(path, table, "text")
    is_multi = len(labels) > 1 or any(isinstance(value, list) for value in table[labels[0]])
    separator = given.label_separator if is_multi else options.separator
    label = labels if len(labels) > 1 else labels[0]
    return replace(options, text_columns=texts, label_column=label, separator=separator)


def _unknown_column(path: Path, table: _Table, kind: str) -> DataError:
    columns = [f"{shown(name)} ({f'such as {shown(v[0])}' if v else 'without values'})" for name, v in table.items()]
    fault = f"cannot tell which column holds the {kind}; there are {', '.join(columns[:20])}"
    return DataError(f"{path}: {fault}; name it: --set data.{kind}_column{'s' * (kind == 'text')}=NAME")


def _without_header(table: _Table) -> _Table:
    rows = list(zip(*table.values(), strict=True))
    below = [row for row in rows[1:] if row != rows[0]]
    if not rows or not _is_header(rows[0], list(zip(*below, strict=True))):
        return table
    return {name: [row[at] for row in below] for at, name in enumerate(column_names([c.strip() for c in rows[0]]))}


def _is_header(first: Sequence[str], columns: Sequence[Sequence[str]]) -> bool:
    """Whether a table's first row names its columns, rather than being like the others."""
    for cell, values in zip(first, columns, strict=False):
        different = {*map(str, values)}
        is_one_of_few = len(different) <= max(2, 0.2 * len(values)) and cell in different
        if cell.strip() and (is_one_of_few or len(cell) > _MAX_LABEL or _NUMBER.fullmatch(cell.strip())):
            return False
    return True


def _guess_label(table: _Table, texts: Sequence[str]) -> str | None:
    """Returns the label's column: one of a usual name, else the one with the fewest different short values."""
    candidates = [name for name in table if name not in texts]
    by_name = [name for known in readers.LABEL_NAMES for name in candidates if name.casefold() == known]
    for name in by_name:
        is_sure = name.casefold() in _SURE_LABELS and any(value not in (None, "") for value in table[name])
        if is_sure or 0 < _num_labels(table[name]) <= max(20, 0.5 * len(table[name])):
            return name
    # What is called a text is one, however few there are.
    others = [name for name in candidates if name.casefold() not in readers.BODY_NAMES]
    few = [(_num_labels(table[name]), position, name) for position, name in enumerate(others)]
    few = [found for found in few if 2 <= found[0] < len(table[found[2]]) * (0.2 if found[0] > 2 else 1)]
    lists = [name for name in others if any(isinstance(value, list) for value in table[name])]
    return min(few)[2] if few else lists[0] if len(lists) == 1 and _num_labels(table[lists[0]]) else None


def _guess_texts(table: _Table, labels: Sequence[str]) -> tuple[str, ...]:
    """Returns the text's columns: those of usual names, else the longest and others that read like prose."""
    # A column has text in more than a few rows that overflow into it.
    filled = {name: sum(isinstance(v, str) and bool(v.strip()) for v in table[name]) for name in table}
    found = {name.casefold(): name for name in table if name not in labels and filled[name] > 0.2 * len(table[name])}
    bodies = [found[name] for name in readers.BODY_NAMES if name in found][:1]
    titles = [found[name] for name in readers.TITLE_NAMES if name in found and found[name] not in bodies][:1]
    if bodies or titles:
        return (*titles, *bodies)
    lengths = {name: sum(len(v) for v in table[name] if isinstance(v, str)) for name in found.values()}
    longest = max(lengths, key=lambda name: lengths[name], default=None)
    return tuple(name for name in table if name == longest or (name in lengths and is_prose(table[name])))


def _num_labels(values: Sequence[Any]) -> int:
    """Returns how many labels a column holds; 0 if its values cannot be labels."""
    values = [part for value in values for part in (value if isinstance(value, list) else [value])]
    values = [value for value in values if value not in (None, "")]
    labels = {clean_label(str(value)) for value in values}
    is_fitting = all(isinstance(v, str | int) or (isinstance(v, float) and v.is_integer()) for v in values)
    is_fitting = is_fitting and all(0 < len(label) <= _MAX_LABEL for label in labels)
    return len(labels) if is_fitting and len(labels) <= max(_MAX_LABELS, len(values) // 2) else 0


_Size = namedtuple("_Size", "max_rows held_out min_freq batch_size epochs")
_SIZES = (
    _Size(200, 0.2, 1, 8, 20),
    _Size(1_000, 0.1, 1, 16, 12),
    _Size(5_000, 0.1, 1, 32, 10),
    _Size(20_000, 0.1, 1, 32, 6),
    _Size(50_000, 0.1, 2, 64, 5),
    _Size(200_000, 0.1, 2, 64, 4),
    _Size(1_000_000, 0.05, 2, 128, 3),
    _Size(float("inf"), 0.01, 3, 256, 2),
)

_ENGLISH = frozenset(("the", "and", "to", "of", "for", "with", "that", "you", "this", "are"))
"""Words of nearly every English sentence; together they are rare in other languages."""
MIN_ENGLISH = 0.04
MAX_TOKENS = 3_000_000  # with more, vectors made from the texts are as good as others, and sooner trained


def starter_config(profile: DataProfile, path: Path) -> str:
    """Returns a commented config that trains on data as they are, with settings that suit their size and texts."""
    import jinja2

    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise DataError(f"{str(path)!r}: cannot be written in a config; rename it in UTF-8") from None
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)  # noqa: S701 - YAML
    environment.filters |= {"yaml": flow_yaml, "comment": printable}
    some = profile.texts[:: 1 + len(profile.texts) // MAX_TEXTS]
    tokenizer = _tokenizer_for(some)
    num_tokens = sorted(map(len, Tokenizer.train(some, kind=tokenizer, normalize="nfc").encode_batch(some)))
    max_length, median = _max_length(num_tokens), num_tokens[len(num_tokens) // 2]
    is_few = profile.num_rows * min(median, max_length) <= MAX_TOKENS
    num_english = sum(word in _ENGLISH for text in some for word in text.lower().split())
    return environment.from_string(TEMPLATE.read_text("utf-8")).render(
        profile=profile,
        has_columns=profile.format in _TABLES,
        path=str(path),
        name=re.sub(r"[^\w.-]+", "-", path.stem).strip(".-")[:80] or "run",
        splits={name: files[0] if len(files) == 1 else files for name, files in profile.splits.items()},
        lengths=sorted(map(len, profile.texts)),
        remarks=list(_remarks(profile)),
        size=next(size for size in _SIZES if profile.num_rows <= size.max_rows),
        tokenizer=tokenizer,
        max_length=max_length,
        cut=sum(tokens > max_length for tokens in num_tokens) / len(num_tokens),
        has_ngrams=profile.num_rows >= MIN_NGRAM_TEXTS and len(profile.labels) <= MAX_LINEAR_LABELS,
        is_short=median <= 50,
        is_english=is_few and num_english >= MIN_ENGLISH * sum(num_tokens),
        has_english=has_english(),
        imbalance=max(profile.labels.values()) / min(profile.labels.values()),
    )


def _remarks(profile: DataProfile) -> Iterator[str]:
    total, number = len(profile.texts) if profile.is_multi else profile.labels.total(), len(profile.labels)
    listed = ", ".join(f"{label} {count / total:.1%}" for label, count in profile.labels.most_common(8))
    more = f" and {number - 8} more" if number > 8 else "; one label alone cannot be learned" * (number == 1)
    yield f"Labels: {listed}{more}."
    num_rare = sum(count < FEW_TEXTS for count in profile.labels.values())
    if number > FEW_TEXTS and num_rare:
        yield f"{num_rare} labels have fewer than {FEW_TEXTS} texts; they are hardly learned, and some not tested."
    yield from profile.remarks


def _tokenizer_for(texts: Sequence[str]) -> str:
    num_letters = sum(sum(map(str.isalpha, text)) for text in texts)
    for tokenizer, script in (("cjk", _CJK), ("characters", _NO_SPACES)):
        if 2 * sum(len(re.findall(f"[{script}]", text)) for text in texts) > num_letters:
            return tokenizer
    return "words"


def _max_length(num_tokens: Sequence[int]) -> int:
    """Returns a round number of tokens that few texts exceed; all fit where the longest is not much longer."""
    most, longest = num_tokens[int(0.98 * (len(num_tokens) - 1))], num_tokens[-1]
    length = longest if longest <= 1.5 * most else most
    step = 10 if length <= 100 else 50
    return min(MAX_LENGTH, max(20, -(-length // step) * step))
