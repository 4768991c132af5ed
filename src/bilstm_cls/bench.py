"""How fast this machine trains and predicts: our own step beside the ways it replaces, interleaved in one process.

The rivals get the same texts, vocabulary and sizes:

- `tutorial`: `nn.LSTM` over `pack_padded_sequence`, batches in random order, dense Adam; what most tutorials do;
- `tutorial, sorted`: the same with batches of similar length;
- `padded nn.LSTM`: the fused bidirectional kernel straight over the padding, with our optimizer. Its results are wrong
  wherever there is padding; it is here as the kernel's own pace, in our process, which keeps the memory that it frees.

The tutorial runs in a process of its own, waiting while others run, whose memory is left as PyTorch and the C library
have it.

`every core` is our step shared by one process per core. Rates count real tokens only. The share of the machine's peak
is the useful arithmetic of the LSTM, three times its forward pass of `8 H (E + H)` flops a token and direction,
against a plain 1024 x 1024 fp32 matrix product of this process's threads.
"""

import contextlib
import functools
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from bilstm_cls.classifier import MAX_TOKENS
from bilstm_cls.config import Config
from bilstm_cls.data.batches import Indices, collate, evaluation_batches, padding_share
from bilstm_cls.data.corpus import Corpus
from bilstm_cls.data.prepare import prepare
from bilstm_cls.device import choose_device, freed_memory_kept, on_device, usable_cores
from bilstm_cls.run_directory import build_model
from bilstm_cls.training.distributed import Group, joined, loopback
from bilstm_cls.training.loop import Trainer
from bilstm_cls.training.optimizer import build_optimizers, clip_gradients

Way = Callable[[], int]
"""Does a fixed piece of work and returns its number of real tokens."""

OURS, EVERY_CORE = "bilstm-cls", "bilstm-cls, every core"
TUTORIAL, SORTED, PADDED = "tutorial", "tutorial, sorted", "padded nn.LSTM (wrong)"
PREDICTION = "prediction"
NUM_SHOWN = 8


@dataclass(frozen=True)
class Work:
    """What is timed on: encoded texts with label ids, and the sizes of the model."""

    config: Config
    corpus: Corpus
    vocab_size: int
    num_labels: int
    num_batches: int

    def trainer(self, group: Group | None = None) -> Trainer:
        """Returns a new trainer; the same weights in every process of a group."""
        torch.manual_seed(self.config.seed)
        device = choose_device(self.config.train.device)
        model = build_model(self.config, self.vocab_size, self.num_labels).to(device)
        return Trainer(model, self.corpus, self.config.train, seed=self.config.seed, group=group or Group())


class TutorialModel(nn.Module):
    """The model most tutorials train: embedding, packed or padded bidirectional LSTM, mean, linear."""

    def __init__(self, work: Work, *, packed: bool) -> None:
        super().__init__()
        dim, model = work.config.embedding.dim, work.config.model
        self.packed = packed
        self.embedding = nn.Embedding(work.vocab_size, dim, padding_idx=0, sparse=not packed)
        self.lstm = nn.LSTM(dim, model.hidden_size, model.num_layers, bidirectional=True, batch_first=True)
        self.project = nn.Linear(2 * model.hidden_size, work.num_labels)

    def forward(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """Returns logits `[B, C]`."""
        embedded = F.dropout(self.embedding(token_ids), 0.2, self.training)
        if self.packed:
            packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
            outputs, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        else:
            outputs, _ = self.lstm(embedded)
        pooled = outputs.sum(1) / lengths.to(outputs.device).unsqueeze(1)
        logits: Tensor = self.project(F.dropout(pooled, 0.5, self.training))
        return logits


def synthetic_corpus(config: Config, *, num_texts: int = 6400, vocab_size: int = 30000) -> Corpus:
    """Returns random texts as long as film reviews: log-normal lengths (median 175), Zipf-like words."""
    generator = np.random.Generator(np.random.PCG64(0))
    lengths = np.exp(generator.normal(np.log(175), 0.66, num_texts)).astype(np.int64)
    return random_corpus(lengths.clip(10, config.text.max_length), vocab_size, generator)


def random_corpus(lengths: npt.NDArray[np.int64], vocab_size: int, generator: np.random.Generator) -> Corpus:
    """Returns texts of Zipf-like random words with one of two labels, as long as `lengths`, `[N]`."""
    ranks = generator.random(int(lengths.sum())) * np.log(vocab_size - 2)
    token_ids = (2 + np.exp(ranks)).astype(np.int32).clip(2, vocab_size - 1)
    return Corpus(
        token_ids=token_ids,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        label_ids=generator.integers(0, 2, len(lengths)),
        num_tokens=lengths,
    )


def benchmark_config(config: Config, *, use_texts: bool, num_batches: int, repeats: int) -> dict[str, Any]:
    """Runs `benchmark` on the config's own train split, or on random texts."""
    if not use_texts:
        return benchmark(Work(config, synthetic_corpus(config), 30000, 2, num_batches), repeats=repeats)
    data = prepare(config)
    sizes = len(data.tokenizer), len(data.dataset.labels)
    return benchmark(Work(config, data.corpora["train"], *sizes, num_batches), repeats=repeats)


def benchmark(work: Work, *, repeats: int) -> dict[str, Any]:
    """Times training steps and predictions and returns rates, ratios, the padding and the share of the peak."""
    device = choose_device(work.config.train.device)
    threads = torch.get_num_threads()
    trainer = work.trainer()
    own = trainer.batches[: work.num_batches]
    order = np.random.Generator(np.random.PCG64(work.config.seed)).permutation(len(work.corpus))
    random = np.array_split(order[: sum(map(len, own))], len(own))
    products: list[float] = []
    with _untouched_process(work, random, own) as elsewhere, several_processes(work, device, usable_cores()) as shared:
        training = {
            OURS: our_steps(trainer, work.num_batches),
            TUTORIAL: elsewhere(TUTORIAL),
            SORTED: elsewhere(SORTED),
            PADDED: _tutorial_steps(work, own, device, packed=False),
        }
        prediction = {OURS: _our_predictions(trainer, np.concatenate(own)), TUTORIAL: elsewhere(PREDICTION)}
        if shared is not None:
            training[EVERY_CORE] = functools.partial(shared, work.num_batches)
        with freed_memory_kept():
            rates = {"training": interleaved(training, device, repeats, lambda: products.append(_matrix_rate(device)))}
        rates["prediction"] = interleaved(prediction, device, repeats)
    peak = statistics.median(products)
    flops = 48 * work.config.model.hidden_size * (work.config.embedding.dim + work.config.model.hidden_size)
    fastest = max(statistics.median(rates["training"].get(name, [0.0])) for name in (OURS, EVERY_CORE))
    return {
        "device": str(device),
        "torch": torch.__version__,
        "threads": threads,
        "cores": usable_cores(),
        "batch_size": work.config.train.batch_size,
        "padding": padding_share(own, work.corpus.lengths),
        "matrix_product_gflops": peak,
        "share_of_peak": fastest * 1000 * flops / 1e9 / peak,
        "training": [_row(name, values, rates["training"][OURS]) for name, values in rates["training"].items()],
        "prediction": [_row(name, values, rates["prediction"][OURS]) for name, values in rates["prediction"].items()],
        "profile": _profile(trainer) if device.type == "cpu" else {},
    }


def bench_table(result: dict[str, Any]) -> str:
    """Returns the figures as lines for a terminal."""
    lines = [
        f"torch {result['torch']} on {result['device']}, {result['cores']} cores, batch {result['batch_size']}; "
        f"thousands of real tokens a second, median (slowest to fastest) of interleaved rounds"
    ]
    for kind in ("training", "prediction"):
        lines.append(f"{kind}:")
        lines += [
            f"  {row['way']:<24} {row['ktokens_per_second']:8.2f}  ({row['slowest']:.2f} to {row['fastest']:.2f})"
            f"  {row['ratio_to_ours']:.3f} of ours"
            for row in result[kind]
        ]
    lines.append(
        f"padding {result['padding']:.1%}; {result['share_of_peak']:.0%} of this machine's matrix-product rate "
        f"({result['matrix_product_gflops']:.0f} Gflop/s) is useful LSTM arithmetic in training"
    )
    if result["profile"]:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in result["profile"].items())
        lines.append(f"where a training step spends its time: {shares}")
    return "\n".join(lines)


def _row(name: str, rates: list[float], ours: list[float]) -> dict[str, Any]:
    """The ratio is the median of ratios within a round, so that a slow minute of the machine counts on both sides."""
    return {
        "way": name,
        "ktokens_per_second": statistics.median(rates),
        "slowest": min(rates),
        "fastest": max(rates),
        "ratio_to_ours": statistics.median(rate / own for rate, own in zip(rates, ours, strict=True)),
    }


def interleaved(
    ways: Mapping[str, Way], device: torch.device, repeats: int, before: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """Returns each way's rate in every round, in thousands of tokens a second."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(repeats + 1):
        before()
        for name, run in ways.items():
            _synchronize(device)
            started = time.perf_counter()
            num_tokens = run()
            _synchronize(device)
            if round_number:  # the first call of each kernel prepares it
                rates[name].append(num_tokens / (time.perf_counter() - started) / 1000)
    return rates


def our_steps(trainer: Trainer, number: int) -> Way:
    """Returns the way that makes the first so many steps of an epoch."""

    def run() -> int:
        trainer.progress.batch = 0
        return sum(trainer.step().num_tokens for _ in range(number))

    return run


def _our_predictions(trainer: Trainer, texts: Indices) -> Way:
    corpus, model = trainer.corpus, trainer.model

    def run() -> int:
        model.eval()
        with torch.inference_mode():
            for places in evaluation_batches(corpus.lengths[texts], max_tokens=MAX_TOKENS[trainer.device.type]):
                batch = collate(corpus, texts[places])
                model(on_device(batch.token_ids, trainer.device), batch.lengths)
        return int(corpus.lengths[texts].sum())

    return run


def _tutorial_steps(work: Work, batches: list[Indices], device: torch.device, *, packed: bool) -> Way:
    model = TutorialModel(work, packed=packed).to(device)
    optimizers: list[torch.optim.Optimizer] = (
        [torch.optim.Adam(model.parameters())]
        if packed
        else build_optimizers(model, name="adamw", weight_decay=0.0, momentum=0.0)
    )

    def run() -> int:
        for indices in batches:
            batch = collate(work.corpus, indices)
            assert batch.label_ids is not None
            loss = F.cross_entropy(model(batch.token_ids.to(device), batch.lengths), batch.label_ids.to(device))
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            clip_gradients(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            loss.item()
        return sum(int(work.corpus.lengths[batch].sum()) for batch in batches)

    return run


def _tutorial_predictions(work: Work, batches: list[Indices], device: torch.device) -> Way:
    model = TutorialModel(work, packed=True).to(device).eval()

    def run() -> int:
        with torch.no_grad():
            for indices in batches:
                batch = collate(work.corpus, indices)
                model(batch.token_ids.to(device), batch.lengths)
        return sum(int(work.corpus.lengths[batch].sum()) for batch in batches)

    return run


@contextlib.contextmanager
def _untouched_process(work: Work, random: list[Indices], own: list[Indices]) -> Iterator[Callable[[str], Way]]:
    """Starts a process for the tutorial's ways and yields how each of them is run there."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve_tutorial, args=(work, random, own, torch.get_num_threads(), there))
    process.start()
    there.close()  # so that the end of the process is the end of the pipe

    def way(name: str) -> Way:
        def run() -> int:
            here.send(name)
            return int(here.recv())

        return run

    try:
        yield way
    finally:
        process.kill()
        process.join()


def _serve_tutorial(
    work: Work, random: list[Indices], own: list[Indices], threads: int, connection: Connection
) -> None:
    torch.set_num_threads(threads)
    device = choose_device(work.config.train.device)
    ways = {
        TUTORIAL: _tutorial_steps(work, random, device, packed=True),
        SORTED: _tutorial_steps(work, own, device, packed=True),
        PREDICTION: _tutorial_predictions(work, random, device),
    }
    while True:
        num_tokens = ways[connection.recv()]()
        _synchronize(device)
        connection.send(num_tokens)


@contextlib.contextmanager
def several_processes(work: Work, device: torch.device, size: int) -> Iterator[Callable[[int], int] | None]:
    """Starts processes of one thread each, and yields what makes so many of our steps in all of them together.

    Where there is but one, or on CUDA, it is None.
    """
    if size == 1 or device.type != "cpu":
        yield None
        return
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback())
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        context = multiprocessing.get_context("spawn")
        others = [context.Process(target=_serve, args=(work, rank, size, meeting)) for rank in range(1, size)]
        for other in others:
            other.start()
        try:
            with joined(device, rank=0, size=size, meeting=meeting) as group:
                trainer = work.trainer(group)

                def run(number: int) -> int:
                    torch.set_num_threads(1)
                    group.sum(number)
                    num_tokens = our_steps(trainer, number)()
                    torch.set_num_threads(threads)
                    return num_tokens

                yield run
                group.sum(0)
        finally:
            for other in others:
                other.kill()
                other.join()


def _serve(work: Work, rank: int, size: int, meeting: str) -> None:
    """Makes our steps together with process 0 as often as it says."""
    torch.set_num_threads(1)
    with freed_memory_kept(), joined(torch.device("cpu"), rank=rank, size=size, meeting=meeting) as group:
        trainer = work.trainer(group)
        while number := int(group.sum(0)):
            our_steps(trainer, number)()


def _profile(trainer: Trainer) -> dict[str, float]:
    """Returns the share of each of the largest operations in the time of four steps."""
    from torch.profiler import ProfilerActivity, profile

    trainer.progress.batch = 0
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(4):
            trainer.step()
    times = {event.key: float(event.self_cpu_time_total) for event in recorded.key_averages()}
    total = sum(times.values())
    largest = sorted(times, key=times.__getitem__, reverse=True)[:NUM_SHOWN]
    return {name.removeprefix("aten::"): times[name] / total for name in largest}


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
