"""What is in a data set or a run, what training would do, and whether this machine computes as it should."""

import functools
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bilstm_cls.config import Config
from bilstm_cls.config_file import parse_config
from bilstm_cls.data.batches import Indices, training_batches
from bilstm_cls.data.corpus import Ints
from bilstm_cls.data.prepare import PreparedData, prepare, untrained_start, with_dim
from bilstm_cls.data.store import cache_folder
from bilstm_cls.data.types import LabelIds, Split, label_counts, named, spoken
from bilstm_cls.device import choose_device
from bilstm_cls.errors import ConfigError
from bilstm_cls.evaluation.baselines import by_label, tfidf_model
from bilstm_cls.evaluation.metrics import confident_disagreements, likelihoods
from bilstm_cls.evaluation.report import shortened
from bilstm_cls.ngrams import SMALL_TRAIN, Floats, count_pairs, is_spaced, kept
from bilstm_cls.run_directory import RunDirectory, build_model, environment

LABELLED = ("train", "valid", "test")
LIMIT = 20
MAX_SHOWN = 160
"""Characters of a text that a finding shows."""

MAX_CHECKED = 30_000
"""Texts whose labels are checked: the memory of that grows with them."""

NUM_FOLDS = 5
NUM_HASHES, NUM_BANDS, BAND = 64, 16, 4
"""Two texts are compared where four hashes next to each other agree: at a similarity of 0.7 in 99 of 100 cases, at 0.3
in 12."""

NEAR = 0.7
RUN_LENGTH = {True: 3, False: 5}
"""Words of a run, or characters where words are not separated by spaces."""

TOLERANCE = 1e-6


def inspect_data(config: Config, *, deep: bool = False, limit: int = LIMIT) -> dict[str, Any]:
    """Returns sizes, label balance, lengths, truncation, and exact duplicates within and across splits.

    With `deep` also near duplicates and likely wrong labels, which takes a minute for 25,000 reviews. Of each kind
    `limit` findings are listed, and all counted.

    Raises:
        ConfigError: near duplicates need `datasketch`, which is not installed.
        DataError: the data cannot be read.
    """
    data = prepare(config, only=[*LABELLED, "unlabelled"])
    splits, labels = data.dataset.splits, data.dataset.labels
    findings = {
        "origin": data.dataset.origin,
        "notes": list(data.dataset.notes),
        "rows": dict(data.dataset.counts),
        "labels": labels,
        "vocabulary": len(data.tokenizer),
        "splits": {name: _describe(data, split) for name, split in splits.items()},
    }
    if deep:
        texts = _Texts([splits[name] for name in LABELLED if name in splits])
        found = near_duplicates(texts)
        findings["near_duplicates"] = _near_duplicates(texts, found, labels, limit)
        findings["likely_wrong_labels"] = _label_errors(texts, found, labels, limit)
    return findings


def _describe(data: PreparedData, split: Split) -> dict[str, Any]:
    corpus = data.corpora[split.name]
    facts = corpus.statistics
    found = {
        **facts,
        "known_tokens": round(1 - facts["unknown"] / max(1, facts["tokens"]), 4),
        "lengths": {f"{q}%": int(np.percentile(corpus.num_tokens, q)) for q in (5, 25, 50, 75, 95)},
    }
    if split.name != "unlabelled":
        counts = label_counts(split.label_ids, len(data.dataset.labels)).tolist()
        found["labels"] = dict(zip(data.dataset.labels, counts, strict=True))
    return found


def inspect_file(path: Path, overrides: Sequence[str], *, deep: bool = False, limit: int = LIMIT) -> dict[str, Any]:
    """Inspects a file with the config that `init` writes for it."""
    from bilstm_cls.data.starter import profile_data, starter_config

    config = parse_config(starter_config(profile_data(path, overrides), path), overrides)
    return inspect_data(config, deep=deep, limit=limit)


def inspect_run(path: Path) -> dict[str, Any]:
    """Returns how a run stands, what it is, and its scores."""
    run = RunDirectory(path)
    loaded = run.load_model()
    metrics = run.read_object("metrics.json")
    return {
        "run": str(path),
        "status": run.read_status(),
        "labels": loaded.labels,
        "vocabulary": len(loaded.tokenizer),
        "members": len(loaded.members),
        "parameters": sum(p.numel() for member in loaded.members for p in member.parameters()),
        "environment": run.read_object("environment.json"),
        "metrics": {key: value for key, value in metrics.items() if not re.search("/per_class/|confusion", key)},
    }


def plan(config: Config) -> dict[str, Any]:
    """Returns what training would do: reads and encodes the data, builds the model, writes nothing."""
    before = dict[str, Any]()
    if (first := untrained_start(config)) is not None:  # whose vocabulary and width it will have
        before = {"trained_first": {"config": config.model.init_from, **plan(first)}}
        config = config.replace(**{"model.init_from": None, "embedding.dim": with_dim(first).embedding.width})
    config, data = with_dim(config), prepare(config)
    vocabulary = before["trained_first"]["vocabulary"] if before else len(data.tokenizer)
    lengths = data.corpora["train"].lengths
    train = config.train
    batches = training_batches(
        lengths, batch_size=train.batch_size, batch_tokens=train.batch_tokens, seed=config.seed, epoch=0
    )
    model = build_model(config, vocabulary, len(data.dataset.labels))
    return {
        **before,
        "run_directory": str(Path(config.output_dir) / config.name),
        "origin": data.dataset.origin,
        "labels": data.dataset.labels,
        "texts": {name: len(split) for name, split in data.dataset.splits.items()},
        "vocabulary": vocabulary,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": train.epochs * len(batches),
        "tokens_per_epoch": int(lengths.sum()),
        "padding": round(padding_share(batches, lengths), 4),
    }


class Pair(NamedTuple):
    """Two texts by number, the earlier one first, and the fraction of runs that they have in common, up to 1."""

    first: int
    second: int
    similarity: float


def near_duplicates(texts: Sequence[str]) -> list[Pair]:
    """Pairs every text that has a near duplicate before it with the most similar one that was found.

    A text is the set of its runs of three words, or of five characters where words are not separated by spaces. Two
    texts are near duplicates where these sets share at least 70 % of what is in either of them. They are found by
    MinHash (Broder 1997) and locality-sensitive hashing. Texts without a word are left out.
    """
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError as error:
        raise ConfigError("near duplicates need datasketch; run: pip install 'bilstm-cls[quality]'") from error
    runs_of = functools.partial(_runs, spaced=is_spaced(texts))
    index = MinHashLSH(num_perm=NUM_HASHES, params=(NUM_BANDS, BAND))
    firsts: dict[bytes, int] = {}  # by signature: of many copies only the first is looked up
    pairs: list[Pair] = []
    for row, text in enumerate(texts):
        if not (runs := runs_of(text)):
            continue
        signature = MinHash(num_perm=NUM_HASHES, hashfunc=int)
        signature.update_batch(runs)
        key = signature.hashvalues.tobytes()
        candidates = [firsts[key]] if key in firsts else sorted(index.query(signature))
        near = [(len(runs & (them := runs_of(texts[other]))) / len(runs | them), -other) for other in candidates]
        if near and max(near)[0] >= NEAR:
            pairs.append(Pair(-max(near)[1], row, max(near)[0]))
        if key not in firsts:
            firsts[key] = row
            index.insert(row, signature)
    return pairs


def clusters(pairs: Sequence[Pair], number: int) -> Ints:
    """Returns for each of `number` texts the first of those that pairs join it with: itself where there is none."""
    leader = np.arange(number)
    for pair in pairs:  # the first of a pair comes before the second, whose pair is the only one it is second in
        leader[pair.second] = leader[pair.first]
    return leader


def _runs(text: str, *, spaced: bool) -> set[int]:
    words = re.findall(r"\w+" if spaced else r"\S", text.casefold())
    length = RUN_LENGTH[spaced]
    if not any(word[0].isalnum() for word in words):
        return set()
    runs = (" ".join(words[i : i + length]) for i in range(max(1, len(words) - length + 1)))
    return {zlib.crc32(run.encode("utf-8", "surrogatepass")) for run in runs}


def label_errors(texts: Sequence[str], label_ids: LabelIds, groups: Ints, num_labels: int) -> tuple[Ints, Floats]:
    """Checks every label by a logistic regression over TF-IDF of 1-2 grams that was trained on the other folds.

    Texts of one number in `groups`, `[N]`, are kept in one fold, as near duplicates have to be.

    Returns:
        The texts whose label is likely wrong, the likeliest first, and `[N, C]` their probabilities by the other folds.
    """
    from sklearn.model_selection import GroupKFold, cross_val_predict

    counts = count_pairs(texts, spaced=is_spaced(texts))
    counts, _ = kept(counts, min_texts=1 if len(texts) < SMALL_TRAIN else 2)
    several, folds = label_ids.ndim == 2, GroupKFold(min(NUM_FOLDS, len(np.unique(groups))))
    with warnings.catch_warnings():  # about labels that a fold lacks, and the last digits of an optimum
        warnings.simplefilter("ignore")
        predicted = cross_val_predict(
            tfidf_model(tol=1e-2), counts, label_ids, groups=groups, cv=folds, method="predict_proba"
        )
    present = range(num_labels) if several else np.unique(label_ids).tolist()
    probabilities = by_label(predicted, present, num_labels, is_multi=several)
    return confident_disagreements(probabilities, label_ids), probabilities


class _Texts(Sequence[str]):
    """The texts of several splits, one after the other, each read when it is asked for."""

    def __init__(self, splits: Sequence[Split]) -> None:
        self._rows = [(split, row) for split in splits for row in range(len(split))]
        self.label_ids = np.concatenate([split.label_ids for split in splits])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        split, row = self._rows[index]
        return split.texts[row]

    def place(self, index: int) -> tuple[str, str]:
        """Returns the file and line of a text, and its split."""
        split, row = self._rows[index]
        return f"{split.paths[row]}:{split.lines[row]}", split.name

    def finding(self, index: int, **facts: Any) -> dict[str, Any]:
        """Returns what is found of a text: its place, the facts, the text."""
        place, split = self.place(index)
        return {"place": place, "split": split, **facts, "text": shortened(self[index], MAX_SHOWN)}


def _near_duplicates(texts: _Texts, pairs: Sequence[Pair], labels: Sequence[str], limit: int) -> dict[str, Any]:
    """Lists first the pairs of other labels, then those across splits, then by similarity."""
    found, kinds = [], Counter[str]()
    for first, second, similarity in pairs:
        (of, of_split), (_, split) = texts.place(first), texts.place(second)
        kinds[f"{split} in {of_split}"] += 1
        names = [spoken(label) for label in named(texts.label_ids[[second, first]], labels)]
        facts = {"of": of, "of split": of_split, "similarity": round(similarity, 4), "labels": names}
        found.append((names[0] == names[1], split == of_split, -similarity, second, facts))
    listed = [texts.finding(second, **facts) for *_, second, facts in sorted(found, key=lambda row: row[:4])[:limit]]
    return {"texts": len(pairs), "of another label": sum(not row[0] for row in found), **kinds, "found": listed}


def _label_errors(texts: _Texts, pairs: Sequence[Pair], labels: Sequence[str], limit: int) -> dict[str, Any]:
    rows = np.sort(np.random.default_rng(0).permutation(len(texts))[:MAX_CHECKED])
    label_ids, groups = texts.label_ids[rows], clusters(pairs, len(texts))[rows]
    found, probabilities = label_errors([texts[i] for i in rows.tolist()], label_ids, groups, len(labels))
    listed = []
    for i in found[:limit].tolist():
        given, likelier = label_ids[i], int(probabilities[i].argmax())
        if label_ids.ndim == 2:  # the label that is most likely wrong
            label = labels[worst := int(likelihoods(probabilities[[i]], label_ids[[i]]).argmin())]
            names = (label, f"not {label}") if given[worst] else (f"not {label}", label)
            probability = abs(given[worst] - probabilities[i, worst])
        else:
            names, probability = (labels[given], labels[likelier]), probabilities[i, likelier]
        facts = {"label": names[0], "likelier": names[1], "probability": round(float(probability), 4)}
        listed.append(texts.finding(int(rows[i]), **facts))
    return {"texts": len(found), "of": len(rows), "found": listed}


def examine(device: str = "auto", run: Path | None = None) -> dict[str, Any]:
    """Returns versions, devices, and the outcome of every check on `device`; `ok` where none failed.

    Raises:
        CheckpointError: a file of `run` is damaged.
        ConfigError: there is no such device.
    """
    import torch

    chosen = choose_device(device)
    differences = differences_by_check(str(chosen))
    if run is not None:
        RunDirectory(run).load_model()
    return {
        **environment(str(chosen), torch.get_num_threads()),
        "cuda_devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cache": str(cache_folder()),
        **({} if run is None else {"run": f"{run}: every digest is right"}),
        "checks": {
            name: f"{'ok' if found <= TOLERANCE else 'FAILED'}, {found:.1e}, at most {TOLERANCE:.0e}"
            for name, found in differences.items()
        },
        "ok": all(found <= TOLERANCE for found in differences.values()),
    }


def differences_by_check(device: str) -> dict[str, float]:
    """Compares the probabilities of 64 random texts together, alone and with extra padding, for every cell."""
    import torch

    from bilstm_cls.model.classifier import BiLSTMClassifier
    from bilstm_cls.model.pooling import POOLINGS
    from bilstm_cls.model.recurrent import CELLS

    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 60, (64,), generator=generator)
    token_ids = torch.randint(1, 1000, (64, 60), generator=generator) * (torch.arange(60) < lengths.unsqueeze(1))
    found: dict[str, float] = {}
    for cell in CELLS:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = BiLSTMClassifier(1000, 3, cell=cell, num_layers=2, pooling=[*POOLINGS, "attention"], hidden_size=32)
        model = model.to(device).eval()
        with torch.inference_mode():
            together = model(token_ids.to(device), lengths)
            padded = model(torch.nn.functional.pad(token_ids, (0, 40)).to(device), lengths)
            alone = torch.cat([model(t[None].to(device), n[None]) for t, n in zip(token_ids, lengths, strict=True)])
        for kind, other in (("a text alone and in a batch of 64", alone), ("with and without extra padding", padded)):
            difference = (other.double().softmax(1) - together.double().softmax(1)).abs().max()
            found[f"{cell}, {kind}"] = float(difference)
    return found


def padding_share(batches: Sequence[Indices], lengths: Ints) -> float:
    """Returns the fraction of padded places among all places of these batches, 0 to 1."""
    places = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    return 1.0 - int(sum(int(lengths[batch].sum()) for batch in batches)) / max(places, 1)
