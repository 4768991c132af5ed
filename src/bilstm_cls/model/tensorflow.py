"""What the variables of a TensorFlow 1 classifier are called, how they are laid out, and what they become here.

The model is the usual one of its time: an embedding, `bidirectional_dynamic_rnn` over two `LSTMCell`s, a pooling and
one projection. TensorFlow itself is not needed: the variables arrive as arrays by name.

Shapes: V vocabulary, E embedding_dim, H hidden_size of one direction, C labels.
"""

import itertools
import re
import tokenize
import zipfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]

CELL_ROLES = ("fw_kernel", "fw_bias", "bw_kernel", "bw_bias")
HEAD_ROLES = ("embedding", "project_kernel", "project_bias")

_IN_DIRECTION = re.compile(r"(?P<layer>(?:.*?/)??)(?P<direction>fw|bw)/(?P<rest>.+)")
_MOST_LISTED = 40
_DAMAGE = (ValueError, TypeError, RuntimeError, EOFError, OSError, tokenize.TokenError, zipfile.BadZipFile, zlib.error)
"""What numpy and the modules under it raise for bytes that are no `.npz`."""


class Cells(NamedTuple):
    """The variables of both cells, in the order in which `BidirectionalLSTM.load_tensorflow` takes them.

    Kernels are `[E + H, 4H]` and biases `[4H]`, gates i, j, f, o, without the forget bias.
    """

    fw_kernel: Array
    fw_bias: Array
    bw_kernel: Array
    bw_bias: Array


@dataclass(frozen=True)
class TensorFlowModel:
    """The variables of a whole classifier, as TensorFlow lays them out.

    Attributes:
        embedding: `[V, E]`. Row 0 need not be zero: TensorFlow trains it like any other. Here it is the padding's and
            becomes zero, which changes no logits where no text has a token of its own with id 0.
        cells: both directions.
        project_kernel: `[2H, C]`, the transpose of `torch.nn.Linear.weight`.
        project_bias: `[C]`.
    """

    embedding: Array
    cells: Cells
    project_kernel: Array
    project_bias: Array


def read_variables(path: str | Path) -> dict[str, Array]:
    """Reads all arrays of an `.npz` by name; nothing in the file is executed.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is not an `.npz` of plain arrays, or it is damaged.
    """
    with Path(path).open("rb") as file:
        try:
            with np.load(file, allow_pickle=False) as loaded:
                variables = dict(loaded)
        except _DAMAGE as error:
            raise ValueError(f"{path}: not an .npz of plain arrays, or damaged ({error})") from error
    if strange := [name for name, array in variables.items() if not isinstance(array, np.ndarray)]:
        raise ValueError(f"{path}: {strange[0]!r} in it is not an array")
    return variables


def find_cells(
    variables: Mapping[str, Array], *, scope: str | None = None, names: Mapping[str, str] | None = None
) -> Cells:
    """Finds the variables of one bidirectional LSTM by the names that `bidirectional_dynamic_rnn` gives them.

    They end in `fw/<cell>/kernel`, `fw/<cell>/bias`, `bw/<cell>/kernel` and `bw/<cell>/bias`, whatever stands before
    and however the cells are called. Optimizer slots and averages, which are named after a variable
    (`.../kernel/Adam`), are passed over; a `:0` at the end of a name does not count.

    Args:
        variables: arrays by name.
        scope: look only at variables under this prefix.
        names: the variable of each of `CELL_ROLES`, where they are called otherwise.

    Raises:
        ValueError: no such layer, several, cells of another kind, or arrays that do not fit together.
    """
    variables = _without_output_number(variables)
    return _pick_cells(variables, _find_cell_names(variables, scope, names or {}))


def find_model(
    variables: Mapping[str, Array], *, scope: str | None = None, names: Mapping[str, str] | None = None
) -> TensorFlowModel:
    """Finds a whole classifier: the cells as `find_cells` does, embedding and projection by their shapes.

    Beside the cells there must be an embedding `[V, E]`, a projection `[2H, C]` and its bias `[C]`, and nothing else
    but scalars, slots and averages: one variable more is another architecture, whose logits would differ without a
    word. Where both matrices have the same shape, the one with `emb` in its name is the embedding.

    Args:
        variables: arrays by name.
        scope: look only at variables under this prefix.
        names: the variable of each of `CELL_ROLES`, of each of `HEAD_ROLES`, or of all. Where `HEAD_ROLES` are named,
            further variables are passed over.

    Raises:
        ValueError: something is missing, ambiguous or left over, or arrays do not fit together.
    """
    variables, names = _without_output_number(variables), names or {}
    cell_names = _find_cell_names(variables, scope, names)
    cells = _pick_cells(variables, cell_names)
    head_names = _named(variables, HEAD_ROLES, names)
    rest = head_names or [name for name in _model_variables(variables, scope) if name not in cell_names]
    orders = [rest]
    if not head_names:
        orders = [list(order) for order in itertools.permutations(rest)] if len(rest) == 3 else []
    joined_size = cells.fw_bias.size // 2  # 2H of 4H
    input_size = len(cells.fw_kernel) - joined_size // 2
    fitting = [order for order in orders if _is_head([variables[name] for name in order], input_size, joined_size)]
    if len(fitting) > 1:
        fitting = [order for order in fitting if "emb" in order[0].lower()]
    if len(fitting) != 1:
        raise ValueError(
            f"beside its cells the model must have an embedding [V, {input_size}], a projection [{joined_size}, C] and "
            f"its bias [C], and nothing else; leave out what is not part of it, or name {', '.join(HEAD_ROLES)}: "
            f"{_listing(variables, rest)}"
        )
    embedding, project_kernel, project_bias = (_check_floats(name, variables[name]) for name in fitting[0])
    return TensorFlowModel(embedding, cells, project_kernel, project_bias)


def lstm_weights(
    prefix: str, kernel: Array | Tensor, bias: Array | Tensor, *, input_size: int, hidden_size: int, forget_bias: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Turns the variables of one `LSTMCell` into PyTorch's, in 64 bits on the CPU.

    TensorFlow multiplies x and h, joined, by one matrix with columns for i, j, f, o and adds the forget bias to f at
    each step. PyTorch has one matrix for x and one for h, with rows for i, f, g (TensorFlow's j), o, and two biases.

    Args:
        prefix: names the cell in messages: `fw` or `bw`.
        kernel: `[E + H, 4H]`.
        bias: `[4H]`.
        input_size: E.
        hidden_size: H.
        forget_bias: what TensorFlow's cell adds: 1 unless it was built with another.

    Returns:
        `weight_ih [4H, E]`, `weight_hh [4H, H]`, `bias_ih [4H]` and `bias_hh [4H]`, which is zero.

    Raises:
        ValueError: a wrong shape, or a value that is not a finite floating-point number.
    """
    reordered = []
    for name, value, shape in (
        (f"{prefix}_kernel", kernel, (input_size + hidden_size, 4 * hidden_size)),
        (f"{prefix}_bias", bias, (4 * hidden_size,)),
    ):
        array = value.detach().cpu().double().numpy() if isinstance(value, Tensor) else np.asarray(value)
        if array.shape != shape:
            raise ValueError(
                f"{name} has shape {list(array.shape)}, but a layer with input_size {input_size} and hidden_size "
                f"{hidden_size} takes {list(shape)}"
            )
        columns = torch.from_numpy(_check_floats(name, array).astype(np.float64))
        i, j, f, o = columns.chunk(4, -1)
        reordered.append(torch.cat([i, f, j, o], -1))
    matrix, bias_ih = reordered
    bias_ih[hidden_size : 2 * hidden_size] += forget_bias
    return matrix[:input_size].t(), matrix[input_size:].t(), bias_ih, torch.zeros_like(bias_ih)


def _check_floats(name: str, array: Array) -> Array:
    if array.dtype.kind != "f":
        raise ValueError(f"{name} must hold floating-point numbers, not {array.dtype}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds a number that is not finite")
    return array


def _without_output_number(variables: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removesuffix(":0"): array for name, array in variables.items()}


def _model_variables(variables: Mapping[str, Array], scope: str | None) -> list[str]:
    """Names under the scope without scalars and without what an optimizer or an average keeps for a variable."""
    prefix = f"{scope.rstrip('/')}/" if scope else ""
    names = [name for name, array in variables.items() if array.ndim and not _belongs_to_another(name, variables)]
    return [name for name in names if name.startswith(prefix)]


def _belongs_to_another(name: str, variables: Mapping[str, Array]) -> bool:
    """Whether the name holds another's, of the same shape, before its end: `embedding/Adam`, `train/embedding/Adam`."""
    parts = name.split("/")
    others = ("/".join(parts[start:stop]) for stop in range(1, len(parts)) for start in range(stop))
    return any(other in variables and variables[other].shape == variables[name].shape for other in others)


def _named(variables: Mapping[str, Array], roles: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """The caller's own names for these roles, or none."""
    if unknown := sorted(names.keys() - {*CELL_ROLES, *HEAD_ROLES}):
        raise ValueError(f"unknown roles {unknown}: they are {', '.join(CELL_ROLES + HEAD_ROLES)}")
    named = [names[role].removesuffix(":0") for role in roles if role in names]
    if named and len(named) < len(roles):
        raise ValueError(f"name all of {', '.join(roles)} or none of them")
    if missing := [name for name in named if name not in variables]:
        raise ValueError(f"no variable {missing[0]!r}: {_listing(variables, variables)}")
    return named


def _find_cell_names(variables: Mapping[str, Array], scope: str | None, names: Mapping[str, str]) -> list[str]:
    """Names of the variables of `CELL_ROLES`, in that order."""
    if named := _named(variables, CELL_ROLES, names):
        return named
    pool = _model_variables(variables, scope)
    layers: dict[str, list[tuple[str, re.Match[str]]]] = {}
    for name in pool:
        if match := _IN_DIRECTION.fullmatch(name):
            layers.setdefault(match["layer"], []).append((name, match))
    layers = {layer: parts for layer, parts in layers.items() if any(name.endswith("kernel") for name, _ in parts)}
    if not layers:
        raise ValueError(
            "no variables like bidirectional_rnn/fw/lstm_cell/kernel; if they are called otherwise, name "
            f"{', '.join(CELL_ROLES)}: {_listing(variables, pool)}"
        )
    if len(layers) > 1:
        raise ValueError(f"several bidirectional layers, choose one by its scope: {', '.join(layers)}")
    (parts,) = layers.values()
    found = {f"{match['direction']}_{match['rest'].partition('/')[2]}": name for name, match in parts}
    if len(parts) != 4 or found.keys() != set(CELL_ROLES):
        raise ValueError(
            "each direction must be one LSTM cell with kernel and bias (not GRU cells, peepholes, projections, layer "
            f"norms or several layers): {_listing(variables, [name for name, _ in parts])}"
        )
    return [found[role] for role in CELL_ROLES]


def _pick_cells(variables: Mapping[str, Array], names: Sequence[str]) -> Cells:
    cells = Cells(*(_check_floats(name, variables[name]) for name in names))
    rows, columns = cells.fw_kernel.shape if cells.fw_kernel.ndim == 2 else (0, 0)
    expected = [(rows, columns), (columns,)] * 2
    if columns % 4 or not 0 < columns // 4 < rows or [array.shape for array in cells] != expected:
        raise ValueError(f"two kernels [E + H, 4H] and two biases [4H] are needed: {_listing(variables, names)}")
    return cells


def _is_head(arrays: Sequence[Array], input_size: int, joined_size: int) -> bool:
    embedding, kernel, bias = (array.shape for array in arrays)
    return embedding[1:] == (input_size,) and kernel == (joined_size, *bias) and len(bias) == 1


def _listing(variables: Mapping[str, Array], names: Collection[str]) -> str:
    """Names with shapes, for the end of a message."""
    listed = [f"{name} {list(variables[name].shape)}" for name in itertools.islice(names, _MOST_LISTED)]
    more = len(names) - len(listed)
    return ", ".join(listed + [f"and {more} more"] * bool(more)) or "there are no variables"
