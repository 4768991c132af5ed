"""The weights of TensorFlow 1's `LSTMCell` in a `BidirectionalLSTM`.

Shapes: E input_size, H hidden_size of one direction.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from bilstm_cls.model.recurrent import BidirectionalLSTM


def load_cells(
    layer: BidirectionalLSTM, fw_kernel: Any, fw_bias: Any, bw_kernel: Any, bw_bias: Any, *, forget_bias: float = 1.0
) -> None:
    """Copies the variables of the two `LSTMCell`s of `bidirectional_dynamic_rnn` into a layer.

    TensorFlow multiplies x and h, joined, by one matrix with columns for i, j, f, o and adds the forget bias to f at
    each step. PyTorch has one matrix for x and one for h, with rows for i, f, g (TensorFlow's j), o, and two biases, of
    which the second becomes zero. Either all weights are replaced or, on an error, none.

    Kernels are arrays or tensors `[E + H, 4H]`, such as `bidirectional_rnn/fw/lstm_cell/kernel`, biases `[4H]`;
    `forget_bias` is what TensorFlow's cell adds to f at each step, which is not in its bias variable.

    Raises:
        ValueError: the layer is of another kind, or an array has a wrong shape or a number that is not finite.
    """
    if layer.cell != "lstm" or layer.num_directions != 2 or len(layer.layers) != 1:
        raise ValueError(
            f"TensorFlow's variables fit one bidirectional lstm layer, not cell {layer.cell!r} with "
            f"{layer.num_directions} direction(s) and {len(layer.layers)} layer(s)"
        )
    directions = cast(list[nn.LSTM], list(layer.layers[0].children()))
    input_size, hidden_size = directions[0].input_size, layer.hidden_size
    weights: list[Tensor] = []
    for name, kernel, bias in (("fw", fw_kernel, fw_bias), ("bw", bw_kernel, bw_bias)):
        matrix = _reordered(f"{name}_kernel", kernel, (input_size + hidden_size, 4 * hidden_size))
        bias_ih = _reordered(f"{name}_bias", bias, (4 * hidden_size,))
        bias_ih[hidden_size : 2 * hidden_size] += forget_bias
        weights += [matrix[:input_size].t(), matrix[input_size:].t(), bias_ih, torch.zeros_like(bias_ih)]
    parameters = [parameter for rnn in directions for parameter in rnn.all_weights[0]]
    with torch.no_grad():
        for parameter, weight in zip(parameters, weights, strict=True):
            parameter.copy_(weight)


def _reordered(name: str, array: Any, shape: tuple[int, ...]) -> Tensor:
    """Checks an array and returns a copy whose last dimension has the gates in PyTorch's order."""
    values = array.detach().cpu() if isinstance(array, Tensor) else torch.tensor(array)
    if values.shape != shape:
        raise ValueError(f"{name} has shape {list(values.shape)}, but this layer takes {list(shape)}")
    if not values.isfinite().all():
        raise ValueError(f"{name} holds a number that is not finite")
    i, j, f, o = values.double().chunk(4, -1)
    return torch.cat([i, f, j, o], -1)
