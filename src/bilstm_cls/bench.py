"""How fast this machine trains: the product's own step beside the ways it replaces, in one process, interleaved.

The rivals get the same texts, vocabulary and sizes:

- `tutorial`: `nn.LSTM` over `pack_padded_sequence`, batches in random order, dense Adam; what most tutorials do;
- `tutorial, sorted`: the same with batches of similar length;
- `padded nn.LSTM`: the fused bidirectional kernel straight over the padding, with our optimizer. Its results are wrong
  wherever there is padding; it is here as the kernel's own pace.

Rates count real tokens only. The share of the machine's peak is the LSTM's useful arithmetic, three times its forward
pass of `8 H (E + H)` multiply-adds' flops a token and direction, against a plain 1024 x 1024 fp32 matrix product.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from bilstm_cls.config import Config
from bilstm_cls.data.batches import Indices, collate, padding_share
from bilstm_cls.data.corpus import Corpus
from bilstm_cls.data.preparation import prepare
from bilstm_cls.device import choose_device
from bilstm_cls.run_directory import build_model
from bilstm_cls.training.loop import Trainer
from bilstm_cls.training.optimizer import build_optimizers, clip_gradients


@dataclass(frozen=True)
class Timing:
    """Thousands of real tokens per second over all repeats: median, slowest, fastest."""

    name: str
    median: float
    slowest: float
    fastest: float


class TutorialModel(nn.Module):
    """The model most tutorials train: embedding, packed or padded bidirectional LSTM, mean, linear."""

    def __init__(self, vocab_size: int, config: Config, num_labels: int, *, packed: bool) -> None:
        super().__init__()
        self.packed = packed
        self.embedding = nn.Embedding(vocab_size, config.embedding.dim, padding_idx=0, sparse=not packed)
        self.lstm = nn.LSTM(
            config.embedding.dim,
            config.model.hidden_size,
            config.model.num_layers,
            bidirectional=True,
            batch_first=True,
        )
        self.project = nn.Linear(2 * config.model.hidden_size, num_labels)

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        embedded = F.dropout(self.embedding(token_ids), 0.2)
        if self.packed:
            packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
            outputs, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        else:
            outputs, _ = self.lstm(embedded)
        pooled = outputs.sum(1) / lengths.to(outputs.device).unsqueeze(1)
        logits: Tensor = self.project(F.dropout(pooled, 0.5))
        return logits


def synthetic_corpus(config: Config, *, num_texts: int = 6400, vocab_size: int = 30000) -> Corpus:
    """Returns random texts as long as film reviews: log-normal lengths (median 175), Zipf-like words."""
    generator = np.random.Generator(np.random.PCG64(0))
    lengths = np.exp(generator.normal(np.log(175), 0.66, num_texts)).astype(np.int64)
    lengths = lengths.clip(10, config.text.max_length)
    ranks = generator.random(int(lengths.sum())) * np.log(vocab_size - 2)
    token_ids = (2 + np.exp(ranks)).astype(np.int32).clip(2, vocab_size - 1)
    return Corpus(
        token_ids=token_ids,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        label_ids=generator.integers(0, 2, num_texts),
        num_tokens=lengths,
    )


def benchmark_config(config: Config, *, use_texts: bool, num_batches: int, repeats: int) -> dict[str, Any]:
    """Runs `benchmark` on the config's own train split, or on random texts."""
    if use_texts:
        data = prepare(config)
        sizes = len(data.tokenizer), len(data.dataset.labels)
        corpus = data.corpora["train"]
    else:
        corpus, sizes = synthetic_corpus(config), (30000, 2)
    return benchmark(config, corpus, sizes[0], num_labels=sizes[1], num_batches=num_batches, repeats=repeats)


def bench_table(result: dict[str, Any]) -> str:
    """Returns the figures as lines for a terminal."""
    lines = [
        f"torch {result['torch']} on {result['device']}, {result['threads']} threads, batch {result['batch_size']}; "
        f"thousands of real tokens a second in training, median (slowest to fastest)"
    ]
    for row in result["rows"]:
        lines.append(
            f"  {row['way']:<24} {row['ktokens_per_second']:8.2f}  ({row['slowest']:.2f} to {row['fastest']:.2f})"
            f"  ours is {row['times_slower_than_ours']:.2f} times as fast"
        )
    lines.append(
        f"  padding {result['padding']:.1%}; {result['share_of_peak']:.0%} of this machine's matrix-product rate "
        f"({result['matrix_product_gflops']:.0f} Gflop/s) is useful LSTM arithmetic"
    )
    return "\n".join(lines)


def benchmark(
    config: Config, corpus: Corpus, vocab_size: int, *, num_labels: int = 2, num_batches: int = 8, repeats: int = 3
) -> dict[str, Any]:
    """Times training steps and returns rates, ratios, the padding and the share of the machine's peak.

    Args:
        config: sizes and batch size; the rivals take the same.
        corpus: encoded texts with label ids.
        vocab_size: V.
        num_labels: C.
        num_batches: different batches timed in each repeat.
        repeats: interleaved rounds; medians are over these.
    """
    device = choose_device(config.train.device)
    torch.manual_seed(config.seed)
    trainer = Trainer(build_model(config, vocab_size, num_labels).to(device), corpus, config.train, seed=config.seed)
    ours = trainer._batches[: num_batches + 1]
    order = np.random.Generator(np.random.PCG64(config.seed)).permutation(len(corpus))
    size = config.train.batch_size
    random = [order[i * size : (i + 1) * size] for i in range(num_batches + 1)]
    packed = _step_of(TutorialModel(vocab_size, config, num_labels, packed=True).to(device), corpus, dense=True)
    padded = _step_of(TutorialModel(vocab_size, config, num_labels, packed=False).to(device), corpus, dense=False)
    ways: dict[str, tuple[Callable[[Indices], None], list[Indices]]] = {
        "bilstm-cls": (lambda _: _step(trainer), ours),
        "tutorial": (packed, random),
        "tutorial, sorted": (packed, ours),
        "padded nn.LSTM (wrong)": (padded, ours),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    products = []
    for run, batches in ways.values():
        run(batches[-1])  # the first call of each kernel prepares it
    for _ in range(repeats):
        products.append(_matrix_rate(device))
        for name, (run, batches) in ways.items():
            trainer.progress.batch = 0
            _synchronize(device)
            started = time.perf_counter()
            for batch in batches[:-1]:
                run(batch)
            _synchronize(device)
            tokens = sum(int(corpus.lengths[batch].sum()) for batch in batches[:-1])
            rates[name].append(tokens / (time.perf_counter() - started) / 1000)
    timings = [Timing(name, statistics.median(r), min(r), max(r)) for name, r in rates.items()]
    return _summary(config, timings, statistics.median(products), padding_share(ours[:-1], corpus.lengths), device)


def _summary(
    config: Config, timings: list[Timing], peak: float, padding: float, device: torch.device
) -> dict[str, Any]:
    own = timings[0].median
    units, width = config.model.hidden_size, config.embedding.dim
    flops = 3 * 2 * 8 * units * (width + units)  # a token, both directions, forward and backward
    return {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "batch_size": config.train.batch_size,
        "padding": padding,
        "matrix_product_gflops": peak,
        "share_of_peak": own * 1000 * flops / 1e9 / peak,
        "rows": [
            {
                "way": timing.name,
                "ktokens_per_second": timing.median,
                "slowest": timing.slowest,
                "fastest": timing.fastest,
                "times_slower_than_ours": own / timing.median,
            }
            for timing in timings
        ],
    }


def _step(trainer: Trainer) -> None:
    trainer.step()


def _step_of(model: TutorialModel, corpus: Corpus, *, dense: bool) -> Callable[[Indices], None]:
    device = model.project.weight.device
    optimizers: list[torch.optim.Optimizer]
    if dense:
        optimizers = [torch.optim.Adam(model.parameters())]
    else:
        optimizers = build_optimizers(model, name="adamw", weight_decay=0.0, momentum=0.0)

    def step(indices: Indices) -> None:
        batch = collate(corpus, indices)
        assert batch.label_ids is not None
        loss = F.cross_entropy(model(batch.token_ids.to(device), batch.lengths), batch.label_ids.to(device))
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        clip_gradients(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        loss.item()

    return step


def _matrix_rate(device: torch.device, size: int = 1024, repeats: int = 20) -> float:
    """Returns the fp32 matrix-product rate in Gflop/s."""
    left, right = torch.randn(2, size, size, device=device)
    left @ right
    _synchronize(device)
    started = time.perf_counter()
    for _ in range(repeats):
        left @ right
    _synchronize(device)
    return repeats * 2 * size**3 / (time.perf_counter() - started) / 1e9


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
