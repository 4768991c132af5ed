"""Networks as one ONNX graph, built node by node from their weights: no tracing, so every length stays free.

Shapes: B texts, T tokens (padded), E embedding_dim, N directions, H hidden_size, D units of all directions, C labels.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from bilstm_cls.model.classifier import FIRST, PADDING_ID, PRIME, SECOND, BiLSTMClassifier
from bilstm_cls.model.pooling import Pooling

OPSET = 17
IR_VERSION = 8
"""The file format that came with this opset, so that every runtime which knows the opset can read the file."""

GATES = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}
"""Places of ONNX's gates among PyTorch's: i, o, f, c among i, f, g, o; z, r, h among r, z, n."""

Array = npt.NDArray[Any]


def build_graph(models: Sequence[BiLSTMClassifier]) -> onnx.ModelProto:
    """Returns a graph with the inputs `token_ids` `[B, T]` and `lengths` `[B]`, both int64, and the output `logits`.

    A length lies between 1 and T, and what stands past it is never read: the recurrent nodes get `sequence_lens`, every
    pooling a mask. Weights are inside, in 32 bits.

    Args:
        models: one network, or those of an ensemble, whose logits are summed.
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
    """Nodes and weights in the order in which they are added; `prefix` is of the weights of an ensemble's member."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}
        self.prefix = ""

    def node(self, kind: str, *inputs: str, outputs: Sequence[str] = (), **attributes: Any) -> str:
        """Adds a node and returns the name of its output, or of the first of several."""
        outputs = outputs or [f"{kind.lower()}_{len(self.nodes)}"]
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=outputs[0], **attributes))
        return outputs[0]

    def weight(self, name: str, value: Tensor | Array) -> str:
        """Keeps an array in the file and returns its name."""
        array = value.detach().float().cpu().numpy() if isinstance(value, Tensor) else value
        self.weights[self.prefix + name] = numpy_helper.from_array(np.ascontiguousarray(array), self.prefix + name)
        return self.prefix + name

    def constant(self, value: float | Sequence[int]) -> str:
        """Keeps one number in 32 bits, or one or several whole ones in 64."""
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
