"""From a run directory to a bundle that needs no PyTorch: built, compared with PyTorch, then put in its place.

Networks become one ONNX graph, built node by node from their weights: no tracing, so every length stays free. Shapes: B
texts, T tokens (padded), E embedding_dim, N directions, H hidden_size, D units of all directions, C labels.
"""

import contextlib
import io
import json
import logging
import shlex
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from bilstm_cls.classifier import Classifier
from bilstm_cls.data.torchtext import PREFIX
from bilstm_cls.errors import CheckpointError, ConfigError
from bilstm_cls.files import make_folder, naming_disk_faults, sha256_of, sync_folder, write_atomic
from bilstm_cls.model.classifier import FIRST, PADDING_ID, PRIME, SECOND, BiLSTMClassifier
from bilstm_cls.model.pooling import Pooling
from bilstm_cls.run_directory import LoadedModel, RunDirectory
from bilstm_cls.runtime import FILES, FORMAT_VERSION, NGRAMS, Runtime, sealed

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4  # the largest difference of a logit or probability that is accepted; a few times 1e-7 is usual
NUM_TEXTS = 500  # random ones, of which the first is empty and the second the longest
MAX_CHECKED_LENGTH = 2000  # tokens of the longest random text: those of a million would take hours

OPSET = 17
IR_VERSION = 8  # the file format that came with this opset, which every runtime that knows the opset can read
GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}
"""Places of ONNX's gates among PyTorch's: i, o, f, c among i, f, g, o; z, r, h among r, z, n."""

Array = npt.NDArray[Any]


def export(path: str | Path, output: str | Path | None = None, *, overwrite: bool = False) -> dict[str, Any]:
    """Writes the model of a run, ensembles and n-gram models included, as a bundle.

    Before it is put in its place it has given PyTorch's logits and probabilities for texts of random tokens. Returns
    what `export --json` prints.

    Raises:
        CheckpointError: the run is damaged, or onnxruntime does not agree with PyTorch within `TOLERANCE`.
        ConfigError: the folder is taken or cannot be written, or its texts are split by torchtext.
        ResourceError: the disk is full.
    """
    run = RunDirectory(Path(path))
    place = run.path.resolve()
    target = place.with_name(f"{place.name}-onnx") if output is None else Path(output)
    _check_free(target, overwrite=overwrite)
    loaded = run.load_model()
    if (kind := loaded.config.text.tokenizer).startswith(PREFIX):
        advice = "train it with text.tokenizer basic_english or words"
        raise ConfigError(f"{path}: its texts are split by {kind}, which a bundle does not have; {advice}")
    with _replacing_folder(target) as folder:
        write_atomic(folder / "model.onnx", build_graph(loaded.members).SerializeToString(deterministic=True))
        _write_rest(folder, loaded)
        difference, longest = _compare(Runtime.load(folder), loaded)
        if not difference <= TOLERANCE:
            raise CheckpointError(
                f"{path}: onnxruntime differs from PyTorch by {difference:.2g}, more than the accepted {TOLERANCE:g}, "
                f"so no bundle was written; this is a bug in bilstm-cls, please report it"
            )
        size = sum(file.stat().st_size for file in folder.iterdir())
    facts = {"checked_texts": NUM_TEXTS, "checked_longest": longest, "largest_logit_difference": difference}
    return {"path": str(target), "bytes": size, **facts}


def export_table(facts: Mapping[str, Any]) -> str:
    return (
        f"largest difference from PyTorch: {facts['largest_logit_difference']:.2g} in a logit, over {NUM_TEXTS} random "
        f"texts of up to {facts['checked_longest']:,} tokens (allowed: {TOLERANCE:g})\n"
        f"wrote {facts['path']}, {facts['bytes'] / 1000:,.0f} kB; try it: "
        f"python -m bilstm_cls.runtime {shlex.quote(facts['path'])} TEXT"
    )


def _check_free(target: Path, *, overwrite: bool) -> None:
    if not target.exists() and not target.is_symlink():
        return
    names = {entry.name for entry in target.iterdir()} if target.is_dir() and not target.is_symlink() else None
    if names is None or names - {*FILES, NGRAMS, "config.json"}:
        raise ConfigError(f"{target}: is not a bundle, so it is not replaced; choose another place with -o")
    if names and not overwrite:
        raise ConfigError(f"{target}: exists; add --overwrite to replace it, or choose another place with -o")


@contextlib.contextmanager
def _replacing_folder(target: Path) -> Iterator[Path]:
    """Yields a new folder that takes the place of `target` when the block succeeds, and is removed when it fails."""
    with naming_disk_faults(target):
        make_folder(target.parent)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as place:
            fresh, retired = Path(place) / "new", Path(place) / "old"
            fresh.mkdir()
            yield fresh
            if target.exists():
                target.rename(retired)
            fresh.rename(target)
            sync_folder(target.parent)


def _write_rest(folder: Path, loaded: LoadedModel) -> None:
    write_atomic(folder / "tokenizer.json", loaded.tokenizer.to_json())
    write_atomic(folder / "labels.json", json.dumps(loaded.labels, ensure_ascii=False, indent=2) + "\n")
    if loaded.ngrams is not None:
        content = io.BytesIO()
        np.savez(content, **loaded.ngrams.arrays())  # type: ignore[arg-type]
        write_atomic(folder / NGRAMS, content.getvalue())
    text, task = loaded.config.text, loaded.task
    config = {
        "format_version": FORMAT_VERSION,
        "name": loaded.config.name,
        "max_length": text.max_length,
        "truncate": text.truncate,
        "thresholds": None if task.thresholds is None else task.thresholds.tolist(),
        "min_probability": task.min_probability,
        "sha256": {name: sha256_of(folder / name) for name in (*FILES, NGRAMS) if (folder / name).exists()},
    }
    write_atomic(folder / "config.json", json.dumps(sealed(config), ensure_ascii=False, indent=2) + "\n")


def _compare(runtime: Runtime, loaded: LoadedModel) -> tuple[float, int]:
    """Returns the largest difference of a logit or probability of random texts, and the tokens of the longest."""
    classifier, texts = Classifier(loaded, "cpu"), _random_texts(loaded)
    corpus = classifier.encode(texts)
    logits = np.abs(runtime.logits(runtime.encode(texts)) - classifier.logits(corpus)).max()
    probabilities = np.abs(runtime.predict_proba(texts) - classifier.predict_proba(texts)).max()
    return float(np.maximum(logits, probabilities)), int(corpus.lengths.max())  # unlike max it lets no nan hide


def _random_texts(loaded: LoadedModel) -> list[str]:
    generator = np.random.Generator(np.random.PCG64(1))
    tokens, longest = loaded.tokenizer.tokens, min(loaded.config.text.max_length, MAX_CHECKED_LENGTH)
    lengths = [0, longest, *generator.integers(1, longest, size=NUM_TEXTS - 2, endpoint=True)]
    joint = "" if loaded.ngrams is not None and not loaded.ngrams.is_spaced else " "
    return [joint.join(tokens[i] for i in generator.integers(1, len(tokens), size=length)) for length in lengths]


def build_graph(models: Sequence[BiLSTMClassifier]) -> onnx.ModelProto:
    """Returns a graph with the inputs `token_ids` `[B, T]` and `lengths` `[B]`, both int64, and the output `logits`.

    A length lies between 1 and T, and what stands past it is never read: the recurrent nodes get `sequence_lens`, every
    pooling a mask. Weights are inside, in 32 bits. The logits of several networks, an ensemble, are summed.
    """
    graph = _Graph()
    tokens = graph.node("Transpose", "token_ids", perm=[1, 0])  # [T, B]
    is_token = _is_token(graph)
    logits = []
    for number, model in enumerate(models):
        graph.prefix = f"member_{number}." if number else ""
        logits.append(_network(graph, model, tokens, is_token))
    graph.node("Sum", *logits, outputs=["logits"])
    inputs = [
        helper.make_tensor_value_info("token_ids", TensorProto.INT64, ["texts", "tokens"]),
        helper.make_tensor_value_info("lengths", TensorProto.INT64, ["texts"]),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["texts", models[0].project.out_features])]
    content = helper.make_graph(graph.nodes, "bilstm_cls", inputs, outputs, list(graph.weights.values()))
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(content, opset_imports=opsets, ir_version=IR_VERSION, producer_name="bilstm-cls")


class _Graph:
    """Nodes and weights in the order in which they are added; each method returns the name of what it added.

    Weights have 32 bits, and the `prefix` of an ensemble's member.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}
        self.prefix = ""

    def node(self, kind: str, *inputs: str, outputs: Sequence[str] = (), **attributes: Any) -> str:
        outputs = outputs or [f"{kind.lower()}_{len(self.nodes)}"]
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=outputs[0], **attributes))
        return outputs[0]

    def weight(self, name: str, value: Tensor | Array) -> str:
        array = value.detach().float().cpu().numpy() if isinstance(value, Tensor) else value
        self.weights[self.prefix + name] = numpy_helper.from_array(np.ascontiguousarray(array), self.prefix + name)
        return self.prefix + name

    def constant(self, value: float | Sequence[int]) -> str:
        array = np.array(value, np.float32 if isinstance(value, float) else np.int64)
        self.weights[f"constant_{value}"] = numpy_helper.from_array(array, f"constant_{value}")
        return f"constant_{value}"

    def swapped(self, values: str, order: Sequence[int], shape: Sequence[int]) -> str:
        """Adds a transposition and a new shape, as of `[T, N, B, H]` to `[T, B, D]`."""
        return self.node("Reshape", self.node("Transpose", values, perm=order), self.constant(shape))


def _network(graph: _Graph, model: BiLSTMClassifier, tokens: str, is_token: str) -> str:
    """Adds one network and returns the name of its logits `[B, C]`."""
    lengths = graph.node("Cast", "lengths", to=TensorProto.INT32)
    steps = graph.node("Gather", graph.weight("embedding", model.embedding.weight), tokens, axis=0)  # [T, B, E]
    if model.bigrams is not None:
        steps = graph.node("Add", steps, _bigrams(graph, model.bigrams, tokens, is_token))
    outputs = final = ""
    for depth in range(len(model.encoder.layers)):
        if depth:
            steps = graph.swapped(outputs, [0, 2, 1, 3], [0, 0, -1])
        outputs, final = _recurrent_layer(graph, model, depth, steps, lengths)
    read = _Read(graph.node("Where", is_token, outputs, graph.constant(0.0)), final, is_token)
    pooled = [_POOLINGS[name](graph, model.pooling, read) for name in model.pooling.names]
    joined = graph.node("Concat", *pooled, axis=1)
    weights = [graph.weight(f"project.{name}", value) for name, value in model.project.named_parameters()]
    return graph.node("Gemm", joined, *weights, transB=1)


def _is_token(graph: _Graph) -> str:
    """`[T, 1, B, 1]` bool, true where a text has a token."""
    num_steps = graph.node("Gather", graph.node("Shape", "token_ids"), graph.constant(1), axis=0)
    steps = graph.node("Range", graph.constant(0), num_steps, graph.constant(1))
    steps = graph.node("Unsqueeze", steps, graph.constant([1, 2, 3]))  # [T, 1, 1, 1]
    return graph.node("Less", steps, graph.node("Unsqueeze", "lengths", graph.constant([1])))  # with [B, 1]


def _bigrams(graph: _Graph, table: nn.Embedding, tokens: str, is_token: str) -> str:
    """`[T, B, E]` vectors of pairs of neighbouring tokens, found as in `bilstm_cls.model.classifier.bigram_ids`."""
    is_read = graph.node("Squeeze", is_token, graph.constant([1, 3]))  # [T, B]
    tokens = graph.node("Where", is_read, tokens, graph.constant(PADDING_ID))
    following = graph.node("Slice", tokens, graph.constant([1]), graph.constant([2**62]), graph.constant([0]))
    following = graph.node("Pad", following, graph.constant([0, 0, 1, 0]))  # one more step of zeros at the end
    products = [graph.node("Mul", ids, graph.constant(n)) for ids, n in ((tokens, FIRST), (following, SECOND))]
    rows = graph.node("Mod", graph.node("Add", *products), graph.constant(PRIME))
    rows = graph.node("Mod", rows, graph.constant(table.num_embeddings))
    return graph.node("Gather", graph.weight("bigrams", table.weight), rows, axis=0)


def _recurrent_layer(graph: _Graph, model: BiLSTMClassifier, depth: int, steps: str, lengths: str) -> tuple[str, str]:
    """Adds one layer and returns the names of its outputs `[T, N, B, H]` and final states `[N, B, H]`."""
    encoder = model.encoder
    directions = cast("Iterable[nn.RNNBase]", encoder.layers[depth])
    weights = [_recurrent_weights(rnn, GATES[encoder.cell]) for rnn in directions]
    names = [graph.weight(f"{name}_{depth}", np.stack(parts)) for name, *parts in zip("WRB", *weights, strict=True)]
    outputs = [f"{graph.prefix}outputs_{depth}", f"{graph.prefix}state_{depth}"]
    options: dict[str, Any] = {"hidden_size": encoder.hidden_size}
    options["direction"] = "bidirectional" if encoder.num_directions == 2 else "forward"
    if encoder.cell == "gru":  # its reset gate works on the product with the recurrent weights, as in PyTorch and cuDNN
        options["linear_before_reset"] = 1
    graph.node(encoder.cell.upper(), steps, *names, lengths, outputs=outputs, **options)
    return outputs[0], outputs[1]


def _recurrent_weights(rnn: nn.RNNBase, gates: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """Returns W `[G * H, E]`, R `[G * H, H]` and B `[2 * G * H]` with the gates in ONNX's order."""
    reordered = []
    for parameter in rnn.all_weights[0]:
        parts = parameter.detach().float().cpu().numpy().reshape(len(gates), rnn.hidden_size, -1)[list(gates)]
        reordered.append(parts.reshape(parameter.shape))
    weight_ih, weight_hh, bias_ih, bias_hh = reordered
    return weight_ih, weight_hh, np.concatenate([bias_ih, bias_hh])


class _Read(NamedTuple):
    """Names of what the last layer leaves: `[T, N, B, H]`, zero past each length, `[N, B, H]`, and `[T, 1, B, 1]`."""

    outputs: str
    final: str
    is_token: str


def _mean(graph: _Graph, read: _Read, divisor: str) -> str:
    total = graph.node("ReduceSum", read.outputs, graph.constant([0]), keepdims=0)
    return graph.node("Div", graph.swapped(total, [1, 0, 2], [0, -1]), divisor)


def _max(graph: _Graph, pooling: Pooling, read: _Read) -> str:
    masked = graph.node("Where", read.is_token, read.outputs, graph.constant(-np.inf))
    return graph.swapped(graph.node("ReduceMax", masked, axes=[0], keepdims=0), [1, 0, 2], [0, -1])


def _attention(graph: _Graph, pooling: Pooling, read: _Read) -> str:
    """Softmax over a text's tokens of `v . tanh(W x + b)`, as the weights of a sum over both directions together."""
    outputs = graph.swapped(read.outputs, [0, 2, 1, 3], [0, 0, -1])
    product = graph.node("MatMul", outputs, graph.weight("attention.weight", pooling.project.weight.t()))
    hidden = graph.node("Tanh", graph.node("Add", product, graph.weight("attention.bias", pooling.project.bias)))
    scores = graph.node("MatMul", hidden, graph.weight("attention.score", pooling.score.weight.t()))  # [T, B, 1]
    is_token = graph.node("Squeeze", read.is_token, graph.constant([1]))
    weights = graph.node("Softmax", graph.node("Where", is_token, scores, graph.constant(-np.inf)), axis=0)
    return graph.node("ReduceSum", graph.node("Mul", outputs, weights), graph.constant([0]), keepdims=0)


def _length(graph: _Graph) -> str:
    return graph.node("Unsqueeze", graph.node("Cast", "lengths", to=TensorProto.FLOAT), graph.constant([1]))


_POOLINGS: dict[str, Callable[[_Graph, Pooling, _Read], str]] = {
    "mean": lambda graph, _, read: _mean(graph, read, _length(graph)),
    "reduce_mean": lambda graph, pooling, read: _mean(graph, read, graph.constant(float(pooling.max_length))),
    "max": _max,
    "last": lambda graph, _, read: graph.swapped(read.final, [1, 0, 2], [0, -1]),
    "attention": _attention,
}
"""How each pooling makes `[B, D]` of what was read; it returns the name of its result."""
