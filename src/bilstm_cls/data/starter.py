"""What `init` does: finds how data are written and where texts and labels are, and writes a config that suits them."""

import itertools
import json
import re
from collections import Counter, namedtuple
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bilstm_cls.config import DataConfig
from bilstm_cls.config_file import flow_yaml, load_config
from bilstm_cls.data import readers
from bilstm_cls.data.encoding import TextLines, find_encoding
from bilstm_cls.data.records import folder_files
from bilstm_cls.data.tables import MAX_SHOWN, Dialect, ReadOptions, column_names, is_prose, require_columns, sniffed
from bilstm_cls.data.tokenizer import Tokenizer
from bilstm_cls.data.types import MAX_LINEAR_LABELS, BadRow, Example, clean_label, joined_labels, names_in
from bilstm_cls.data.vectors import ENGLISH, GLOVE, has_vectors
from bilstm_cls.errors import DataError, printable, shown

MAX_ROWS = 20_000
MAX_BYTES = 32 * 2**20
MAX_TEXTS = 2_000  # whose tokens are counted
MAX_LENGTH = 400
MIN_NGRAM_TEXTS = 50  # with fewer, too few are in valid to weight an n-gram model on
TEMPLATE = Path(__file__).with_name("starter.yaml.jinja")

_Table = dict[str, list[Any]]  # values by column
_TABLES = ("csv", "tsv", "jsonl", "parquet", "arrow")
MAX_ROWS_FOR_COLUMNS = 5_000
_SURE_LABELS = readers.LABEL_NAMES[:7]
# Columns that have few values, and are labels only where nothing else can be:
_DETAILS = ("lang", "language", "country", "state", "city", "gender", "source", "platform", "author", "annotator")
_MAX_LABEL = 60  # characters; what is longer is a text
_MAX_LABELS = 500
_NUMBER = re.compile(r"[-+]?[0-9]+([-.,:/ ]+[0-9]*)*([eE][-+]?[0-9]+)?|nan")  # or several, a date, a time
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
        dialect, _ = sniffed(TextLines(files[0], options.encoding), options.csv, (), is_tsv=format == "tsv")
        options = replace(options, csv=dialect)
    remarks: list[str] = []
    if format in _TABLES:
        options = _fit_columns(files[0], _read_table(files[0], format, options), options, given, remarks)
        _leave_out(splits, format, options, remarks)
    found = _look(DataProfile(splits, format, options, remarks=[*remarks]), files)
    if not {"labels", "label_column"} & given.model_fields_set:
        if not found.is_multi and format in _TABLES and (mark := _mark_between(found.labels)):
            found = _look(DataProfile(splits, format, replace(options, separator=mark), remarks=remarks), files)
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


def _leave_out(splits: dict[str, list[str]], format: str, options: ReadOptions, remarks: list[str]) -> None:
    """Takes away valid and test where they lack a column, as those of competitions lack the labels."""
    for split in [split for split in splits if split != "train"]:
        try:
            for file in readers.data_files(splits[split]):
                next(readers.READERS[format](file, options))
        except DataError as error:
            remarks.append(f"{split} is cut from train: {error}.")
            del splits[split]


def _read_table(path: Path, format: str, options: ReadOptions) -> _Table:
    """Returns the values of the first rows by column; a header is read as a row at first, since there may be none."""
    is_csv = format in ("csv", "tsv")
    whole = replace(options, text_columns=("#1",) if is_csv else (), label_column=None, keep_record=True)
    rows = list(itertools.islice(readers.READERS[format](path, whole), MAX_ROWS_FOR_COLUMNS))
    records = [row.record or {} for row in rows if isinstance(row, Example)]
    bad_rows = [row for row in rows if isinstance(row, BadRow) and not row.is_read]
    if bad_rows and len(records) <= is_csv:
        raise DataError(f"{bad_rows[0]}; none of {len(bad_rows):,} rows can be read as {format}")
    names = list(dict.fromkeys(name for record in records for name in record))
    table = {name: [record.get(name) for record in records] for name in names}
    table = _without_header(table) if is_csv else table
    if any("\0" in name for name in table):
        raise DataError(f"{path}:1: the header holds NUL; if it is UTF-16, set data.encoding to utf-16-le")
    if not any(table.values()):
        raise DataError(f"{path}: {'has a header, but no row below it' if names else 'its rows have no columns'}")
    return table


def _fit_columns(path: Path, table: _Table, options: ReadOptions, given: DataConfig, remarks: list[str]) -> ReadOptions:
    """Finds the columns of text and label, as far as they are not given, by their names and what they hold.

    Columns of 1 and 0 are one label each; with these, and where the label's column holds lists, labels are several.
    """
    known = tuple(given.text_columns) if "text_columns" in given.model_fields_set else ()
    found = [given.label_column] if "label_column" in given.model_fields_set else _guess_labels(table, known)
    if not found:
        raise _unknown_column(path, table, "label")
    labels = [found[0]] if isinstance(found[0], str) else found[0]
    require_columns(list(table), replace(options, text_columns=known, label_column=labels), str(path))
    is_guess = not ({"label_column", "labels"} & given.model_fields_set or readers.columns_called(labels, _SURE_LABELS))
    # A few wrong values are bad rows rather than a column that is no label.
    are_switches = {name: [str(value).strip().casefold() in _SWITCHES for value in table[name]] for name in table}
    switches = [name for name, are in are_switches.items() if sum(are) > readers.MOST * len(are)]
    if is_guess and labels[0] in switches and len(switches) >= MIN_SWITCHES:
        labels, found = switches, []
    texts = known or _guess_texts(table, labels)
    if not texts:
        raise _unknown_column(path, table, "text")
    prose = [name for name in table if name not in (*texts, *labels) and is_prose(table[name]) and not known]
    about = {
        "The label may also be in": [str(name) for name in found[1:] if name not in texts],
        "Not read, but like a text:": prose,
        "Not read, but each split could be a file of its own:": [name for name in table if _is_split(table[name])],
    }
    remarks += [f"{what} {', '.join(map(shown, names[:MAX_SHOWN]))}." for what, names in about.items() if names]
    is_multi = len(labels) > 1 or any(isinstance(value, list) for value in table[labels[0]])
    separator = given.label_separator if is_multi else options.separator
    label = labels if len(labels) > 1 else labels[0]
    return replace(options, text_columns=texts, label_column=label, separator=separator)


def _unknown_column(path: Path, table: _Table, kind: str) -> DataError:
    columns = [f"{shown(name)} (such as {shown(values[0])})" for name, values in table.items()]
    fault = f"cannot tell which column holds the {kind}; there are {', '.join(columns[:20])}"
    return DataError(f"{path}: {fault}; name it: --set data.{kind}_column{'s' * (kind == 'text')}=NAME")


def _without_header(table: _Table) -> _Table:
    rows = list(zip(*table.values(), strict=True))
    below = [row for row in rows[1:] if row != rows[0]]
    for cell, values in zip(rows[0] if rows else (), zip(*below, strict=True), strict=False):
        is_one_of_few = cell in values and len({*values}) <= max(2, 0.2 * len(values))
        if cell.strip() and (is_one_of_few or len(cell) > _MAX_LABEL or _NUMBER.fullmatch(cell.strip())):
            return table  # its first row is like the others
    names = column_names([cell.strip() for cell in rows[0]]) if rows else ()
    return {name: [row[at] for row in below] for at, name in enumerate(names)}


def _is_split(values: Sequence[Any]) -> bool:
    """Whether a column says of each row which split it is in."""
    splits = {readers.SPLITS.get(str(value).strip().casefold()) for value in values}
    return len(splits) > 1 and "train" in splits and None not in splits


def _guess_labels(table: _Table, texts: Sequence[str]) -> list[str]:
    """Returns what may be the label's column, the likeliest first.

    That is one of a usual name, else those whose last word is one, else those with few different short values.
    """
    candidates = [name for name in table if name not in texts and not _is_split(table[name])]
    numbers = {name: _num_labels(table[name]) for name in candidates}
    for name in readers.columns_called(candidates, readers.LABEL_NAMES):
        is_sure = bool(readers.columns_called([name], _SURE_LABELS)) and _num_filled(table[name]) > 0
        if is_sure or 0 < numbers[name] <= max(20, 0.5 * len(table[name])):
            return [name]
    # What is called a text is one, however few there are.
    others = [name for name in candidates if name not in readers.columns_called(candidates, readers.BODY_NAMES)]
    few = [name for name in others if 2 <= numbers[name] < len(table[name]) * (0.2 if numbers[name] > 2 else 1)]
    few = [name for name in few if 2 * _num_filled(table[name]) > len(table[name])]
    by_end, details = (readers.columns_called(few, names, by_end=True) for names in (readers.LABEL_NAMES, _DETAILS))
    lists = [name for name in others if any(isinstance(value, list) for value in table[name])]
    few = few or [name for name in lists if len(lists) == 1 and numbers[name]]
    return sorted(few, key=lambda name: (name not in by_end, name in details, numbers[name]))


def _guess_texts(table: _Table, labels: Sequence[str]) -> tuple[str, ...]:
    """Returns the text's columns: those of usual names, else the longest and others that read like prose."""
    texts = {name: [value for value in table[name] if isinstance(value, str)] for name in table if name not in labels}
    # A column has text in more than a few rows that overflow into it.
    found = [name for name in texts if _num_filled(texts[name]) > 0.2 * len(table[name])]
    bodies, titles = (readers.columns_called(found, names)[:1] for names in (readers.BODY_NAMES, readers.TITLE_NAMES))
    if bodies:
        return (*titles, *bodies)
    longest = [] if titles else sorted(found, key=lambda name: -sum(map(len, texts[name])))[:1]
    return tuple(name for name in found if name in (*titles, *longest) or is_prose(table[name]))


def _num_filled(values: Sequence[Any]) -> int:
    return sum(value is not None and bool(str(value).strip()) for value in values)


def _num_labels(values: Sequence[Any]) -> int:
    """Returns how many labels a column holds; 0 if its values cannot be labels."""
    parts = (part for value in values for part in (value if isinstance(value, list) else [value]))
    values = [part for part in parts if part not in (None, "")]
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
    cases = Counter(map(str.casefold, profile.labels))
    num_english = sum(word in _ENGLISH for text in some for word in text.lower().split())
    return environment.from_string(TEMPLATE.read_text("utf-8")).render(
        profile=profile,
        has_columns=profile.format in _TABLES,
        path=str(path),
        name=re.sub(r"[^\w.-]+", "-", path.stem).strip(".-")[:80] or "run",
        splits={name: files[0] if len(files) == 1 else files for name, files in profile.splits.items()},
        alike=[label for label in profile.labels if cases[label.casefold()] > 1],
        is_measured=any("." in label for label in profile.labels) and all(map(_NUMBER.fullmatch, profile.labels)),
        size=next(size for size in _SIZES if profile.num_rows <= size.max_rows),
        tokenizer=tokenizer,
        max_length=max_length,
        cut=sum(tokens > max_length for tokens in num_tokens) / len(num_tokens),
        has_ngrams=profile.num_rows >= MIN_NGRAM_TEXTS and len(profile.labels) <= MAX_LINEAR_LABELS,
        is_short=median <= 50,
        is_english=is_few and num_english >= MIN_ENGLISH * sum(num_tokens),
        has_english=has_vectors(ENGLISH, GLOVE),
    )


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
