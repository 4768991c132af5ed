"""What is in a data set or a run, what training would do, and whether this machine computes as it should."""

import importlib.metadata
import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bilstm_cls.config import Config
from bilstm_cls.config_file import parse_yaml, with_overrides
from bilstm_cls.data.batches import Indices, training_batches
from bilstm_cls.data.corpus import Ints
from bilstm_cls.data.prepare import PreparedData, prepare, with_dim
from bilstm_cls.data.store import cache_folder
from bilstm_cls.data.types import Split, label_counts, named, spoken
from bilstm_cls.device import choose_device
from bilstm_cls.evaluation.metrics import likelihoods
from bilstm_cls.evaluation.quality import Pair, clusters, label_errors, near_duplicates
from bilstm_cls.evaluation.report import shortened
from bilstm_cls.run_directory import RunDirectory, build_model

LABELLED = ("train", "valid", "test")
LIMIT = 20
MAX_SHOWN = 160
"""Characters of a text that a finding shows."""

MAX_CHECKED = 30_000
"""Texts whose labels are checked: the memory of that grows with them."""

TOLERANCE = 1e-6
PACKAGES = ("bilstm-cls", "torch", "tokenizers", "safetensors", "numpy", "scikit-learn", "pydantic", "typer")
_LONG = ("/per_class/", "confusion")
_QUANTILES = (5, 25, 50, 75, 95)


def inspect_data(config: Config, *, deep: bool = False, limit: int = LIMIT) -> dict[str, Any]:
    """Returns sizes, label balance, lengths, truncation, and exact duplicates within and across splits.

    Args:
        config: what to read.
        deep: also look for near duplicates and likely wrong labels, which takes a minute for 25,000 reviews.
        limit: findings of each kind that are listed; all are counted.

    Raises:
        ConfigError: near duplicates need a package that is not installed.
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
    facts, lengths = corpus.statistics, np.percentile(corpus.num_tokens, _QUANTILES).astype(int).tolist()
    found = {
        **facts,
        "known_tokens": round(1 - facts["unknown"] / max(1, facts["tokens"]), 4),
        "lengths": {f"{q}%": length for q, length in zip(_QUANTILES, lengths, strict=True)},
    }
    if split.name != "unlabelled":
        counts = label_counts(split.label_ids, len(data.dataset.labels)).tolist()
        found["labels"] = dict(zip(data.dataset.labels, counts, strict=True))
    return found


def inspect_file(path: Path, overrides: Sequence[str], *, deep: bool = False, limit: int = LIMIT) -> dict[str, Any]:
    """Inspects a file with the config that `init` writes for it."""
    from bilstm_cls.data.starter import profile_data, starter_config

    config = Config.of(parse_yaml(starter_config(profile_data(path, overrides), path)).value)
    return inspect_data(with_overrides(config, overrides), deep=deep, limit=limit)


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
        "metrics": {key: value for key, value in metrics.items() if not any(word in key for word in _LONG)},
    }


def plan(config: Config) -> dict[str, Any]:
    """Returns what training would do: reads and encodes the data, builds the model, writes nothing."""
    config, data = with_dim(config), prepare(config)
    lengths = data.corpora["train"].lengths
    train = config.train
    batches = training_batches(
        lengths, batch_size=train.batch_size, batch_tokens=train.batch_tokens, seed=config.seed, epoch=0
    )
    model = build_model(config, len(data.tokenizer), len(data.dataset.labels))
    return {
        "run_directory": str(Path(config.output_dir) / config.name),
        "origin": data.dataset.origin,
        "labels": data.dataset.labels,
        "texts": {name: len(split) for name, split in data.dataset.splits.items()},
        "vocabulary": len(data.tokenizer),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": train.epochs * len(batches),
        "tokens_per_epoch": int(lengths.sum()),
        "padding": round(padding_share(batches, lengths), 4),
    }


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

    def split(self, index: int) -> str:
        return self._rows[index][0].name

    def place(self, index: int) -> str:
        split, row = self._rows[index]
        return f"{split.paths[row]}:{split.lines[row]}"

    def finding(self, index: int, **facts: Any) -> dict[str, Any]:
        """Returns what is found of a text: file and line, the facts, the text."""
        text = shortened(self[index], MAX_SHOWN)
        return {"place": self.place(index), "split": self.split(index), **facts, "text": text}


def _near_duplicates(texts: _Texts, pairs: Sequence[Pair], labels: Sequence[str], limit: int) -> dict[str, Any]:
    """Lists first the pairs of other labels, then those across splits, then by similarity."""
    kinds = Counter(f"{texts.split(second)} in {texts.split(first)}" for first, second, _ in pairs)
    is_same = [bool(np.all(texts.label_ids[pair.first] == texts.label_ids[pair.second])) for pair in pairs]
    ranked = sorted(zip(is_same, pairs, strict=True), key=lambda row: (
        row[0], texts.split(row[1].first) == texts.split(row[1].second), -row[1].similarity))  # fmt: skip
    listed = [
        texts.finding(second, **{
            "of": texts.place(first), "of split": texts.split(first), "similarity": round(similarity, 4),
            "labels": [spoken(label) for label in named(texts.label_ids[[second, first]], labels)],
        })
        for _, (first, second, similarity) in ranked[:limit]
    ]  # fmt: skip
    return {"texts": len(pairs), "of another label": is_same.count(False), **kinds, "found": listed}


def _label_errors(texts: _Texts, pairs: Sequence[Pair], labels: Sequence[str], limit: int) -> dict[str, Any]:
    number = len(texts)
    rows = np.sort(np.random.default_rng(0).permutation(number)[:MAX_CHECKED])
    label_ids, groups = texts.label_ids[rows], clusters(pairs, number)[rows]
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
        facts = dict(zip(("label", "likelier"), names, strict=True))
        listed.append(texts.finding(int(rows[i]), **facts, probability=round(float(probability), 4)))
    return {"texts": len(found), "of": len(rows), "found": listed}


def examine(device: str = "auto", run: Path | None = None) -> dict[str, Any]:
    """Returns versions, devices, and the outcome of every check on `device`; `ok` where none failed.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        run: a run directory whose files are verified as well.

    Raises:
        CheckpointError: the run is damaged.
        ConfigError: there is no such device.
    """
    import torch

    chosen = choose_device(device)
    differences = differences_by_check(str(chosen))
    if run is not None:
        RunDirectory(run).load_model()
    return {
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": str(chosen),
        "cuda_devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
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
