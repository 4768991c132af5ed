"""An exact bidirectional LSTM, GRU or RNN over padded batches, at the speed of the fused kernel.

A recurrent layer that reads a text from the right must start at the text's own last token, not at the padding after
it. Packed sequences do that, but on a CPU they leave PyTorch's fused kernel and run an order of magnitude slower. Here
the backward direction is a forward layer over every text reversed within its own length. Padding stays at the end for
both directions, and a step never sees what comes after it, so nothing that is read depends on the padding.

Shapes: B texts, T tokens (padded), E input size, H hidden size, L layers.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = tuple[Tensor, ...]
"""`(h, c)` of an LSTM, `(h,)` of a GRU or RNN: each `[B, H]`, or `[L, B, H]` of several layers."""

CELLS: dict[str, Callable[[int, int], nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class BidirectionalLSTM(nn.Module):
    """Reads padded texts from both ends and returns both directions' outputs and final states.

    It keeps the meaning of TensorFlow's `bidirectional_dynamic_rnn`. Layer `n + 1` reads both directions of layer `n`
    joined. Recurrent weights start orthogonal (Saxe et al. 2014), the others by Glorot's rule, and the bias of the
    LSTM's forget gate at 1 (Jozefowicz et al. 2015).

    Args:
        input_size: E, the width of one token's vector.
        hidden_size: H, units per direction.
        num_layers: L, layers on top of each other.
        cell: `lstm`, `gru` or `rnn` (tanh).
        bidirectional: whether to read from the right as well.
        layer_dropout: share of the values between two layers that is dropped while training.
        recurrent_dropout: share of the recurrent weights that is dropped while training, one draw a call
            (DropConnect on hidden-to-hidden weights, Merity et al. 2018).
    """

    def __init__(
        self, input_size: int, hidden_size: int, *, num_layers: int = 1, cell: str = "lstm",
        bidirectional: bool = True, layer_dropout: float = 0.0, recurrent_dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.cell, self.hidden_size = cell, hidden_size
        self.num_directions = 2 if bidirectional else 1
        self.layer_dropout, self.recurrent_dropout = layer_dropout, recurrent_dropout
        sizes = [input_size] + [hidden_size * self.num_directions] * (num_layers - 1)
        self.layers = nn.ModuleList(
            nn.ModuleList(CELLS[cell](size, hidden_size) for _ in range(self.num_directions)) for size in sizes
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws new weights from torch's global generator."""
        for name, parameter in self.named_parameters():
            if "bias" in name:
                nn.init.zeros_(parameter)
                continue
            initialize = nn.init.orthogonal_ if "weight_hh" in name else nn.init.xavier_uniform_
            for gate in torch.split(parameter.data, self.hidden_size):
                initialize(gate)
        if self.cell == "lstm":
            for rnn in itertools.chain(*self._by_layer()):
                bias_ih = rnn.all_weights[0][2]
                nn.init.ones_(bias_ih.data[self.hidden_size : 2 * self.hidden_size])  # gates i, f, g, o

    def forward(
        self, inputs: Tensor, lengths: Tensor, initial_state: Sequence[State] | None = None, time_major: bool = False
    ) -> tuple[tuple[Tensor, ...], tuple[State, ...]]:
        """Runs all layers and returns the last layer's outputs and every layer's final states.

        Args:
            inputs: `[B, T, E]`, or `[T, B, E]` when `time_major`, which outputs then are too.
            lengths: `[B]` int64 on the CPU, tokens of each text, 1 to T.
            initial_state: one state per direction, forward first, of the form that is returned; zeros when None.

        Returns:
            `outputs`, one tensor per direction (forward, backward), each `[B, T, H]` in the order of the text and zero
            past each length; `state`, per direction `(h, c)` after the text's own last step in the order of reading,
            each `[B, H]` for one layer and `[L, B, H]` for several.

        Raises:
            ValueError: `lengths` do not fit `inputs`.
        """
        steps = inputs if time_major else inputs.transpose(0, 1)  # [T, B, E]
        check_lengths(lengths, steps)
        states: list[list[State]] = [[] for _ in range(self.num_directions)]
        reversal = _reversal(lengths, steps.shape[0], steps.device)
        outputs: list[Tensor] = []
        for depth, directions in enumerate(self._by_layer()):
            if depth:
                steps = F.dropout(torch.cat(outputs, 2), self.layer_dropout, self.training)
            outputs = []
            for direction, rnn in enumerate(directions):
                given = None if initial_state is None else initial_state[direction]
                start = given and [part if part.dim() == 2 else part[depth] for part in given]
                own_order = steps if direction == 0 else _permute(steps, reversal)
                read, final = self._read_segments(rnn, own_order, lengths, start)
                outputs.append(read if direction == 0 else _permute(read, reversal))
                states[direction].append(final)
        if not time_major:
            outputs = [output.transpose(0, 1) for output in outputs]
        return tuple(outputs), tuple(_stack(layers) for layers in states)

    def encode(self, steps: Tensor, lengths: Tensor, *, aligned: bool) -> list[Tensor]:
        """Runs all layers at full speed, without final states and without clearing what lies past each length.

        Args:
            steps: `[T, B, E]`, time-major, T not above the longest length.
            lengths: `[B]` int64 on the CPU.
            aligned: whether the backward direction is turned back into the order of the text, which costs a copy.

        Returns:
            One `[T, B, H]` per direction. With `aligned=False` each is in its own order of reading, so that the last
            token read stands at `length - 1` in both. Values past each length mean nothing.
        """
        check_lengths(lengths, steps)
        reversal = None
        if self.num_directions == 2:
            reversal = _reversal(lengths, steps.shape[0], steps.device)
        outputs: list[Tensor] = []
        for depth, directions in enumerate(self._by_layer()):
            if depth:
                steps = F.dropout(torch.cat(outputs, 2), self.layer_dropout, self.training)
            outputs = [self._read(directions[0], steps, None, self._weights(directions[0]))[0]]
            if reversal is not None:
                read = self._read(directions[1], _permute(steps, reversal), None, self._weights(directions[1]))[0]
                is_last = depth == len(self.layers) - 1
                outputs.append(read if is_last and not aligned else _permute(read, reversal))
        return outputs

    def read(self, direction: int, steps: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Runs one direction of the first layer alone, over steps `[T, B, E]` that stand in its own order of reading.

        `state` is that after the steps before these, of the form that is returned; zeros when None.

        Returns:
            Outputs `[T, B, H]`, and the state after the last step, each part `[B, H]`.
        """
        rnn = self._by_layer()[0][direction]
        return self._read(rnn, steps, state, self._weights(rnn))

    def _by_layer(self) -> list[list[nn.RNNBase]]:
        return [list(cast("nn.ModuleList", directions)) for directions in self.layers]  # type: ignore[arg-type]

    def _weights(self, rnn: nn.RNNBase) -> list[Tensor]:
        weight_ih, weight_hh, bias_ih, bias_hh = rnn.all_weights[0]
        return [weight_ih, F.dropout(weight_hh, self.recurrent_dropout, self.training), bias_ih, bias_hh]

    def _read(
        self, rnn: nn.RNNBase, steps: Tensor, state: Sequence[Tensor] | None, weights: list[Tensor]
    ) -> tuple[Tensor, State]:
        """One direction of one layer over `[T, B, E]`; states are `[B, H]`."""
        if steps.is_cuda and torch.is_autocast_enabled():
            # PyTorch's own autocast takes float16 here whatever it is set to.
            is_new = hasattr(torch, "get_autocast_dtype")  # not in torch 2.3
            dtype = torch.get_autocast_dtype("cuda") if is_new else torch.get_autocast_gpu_dtype()
            with torch.autocast("cuda", enabled=False):
                return self._read(rnn, steps.to(dtype), state and [part.to(dtype) for part in state], weights)
        if steps.is_cuda:
            weights = _one_block(weights, steps.dtype)
        zeros = steps.new_zeros(1, steps.shape[1], self.hidden_size)
        start = [zeros, zeros] if state is None else [part.unsqueeze(0) for part in state]
        options = (True, 1, 0.0, self.training, False, False)  # biases, layers, dropout, training, directions, order
        if self.cell == "lstm":
            outputs, h, c = torch.lstm(steps, start, weights, *options)
            return outputs, (h[0], c[0])
        run = torch.gru if self.cell == "gru" else torch.rnn_tanh
        outputs, h = run(steps, start[0], weights, *options)
        return outputs, (h[0],)

    def _read_segments(
        self, rnn: nn.RNNBase, steps: Tensor, lengths: Tensor, state: Sequence[Tensor] | None
    ) -> tuple[Tensor, State]:
        """Like `_read`, with each text's state after its own last step and zeros past it.

        Between two neighbouring lengths the batch holds the same texts, so the kernel runs once for each such
        segment on the texts that are still going, and a text that ends hands its state over.
        """
        weights = self._weights(rnn)
        order = torch.argsort(lengths, descending=True, stable=True)
        index = order.to(steps.device)
        steps = steps.index_select(1, index)
        if state is not None:
            state = [part.index_select(0, index) for part in state]
        finals: list[State] = []
        segments: list[Tensor] = []
        start = 0
        for stop in torch.unique(lengths).tolist():
            num_active = int((lengths >= stop).sum())
            num_going = int((lengths > stop).sum())
            if state is not None:
                state = [part[:num_active] for part in state]
            outputs, state = self._read(rnn, steps[start:stop, :num_active], state, weights)
            segments.append(F.pad(outputs, (0, 0, 0, steps.shape[1] - num_active)))
            finals.append(tuple(part[num_going:] for part in state))
            start = stop
        if start < steps.shape[0]:
            segments.append(segments[0].new_zeros(steps.shape[0] - start, steps.shape[1], self.hidden_size))
        back = torch.argsort(order).to(steps.device)
        outputs = torch.cat(segments).index_select(1, back)
        return outputs, tuple(torch.cat(parts[::-1]).index_select(0, back) for parts in zip(*finals, strict=True))


def check_lengths(lengths: Tensor, steps: Tensor) -> None:
    """Raises ValueError where lengths do not fit `[T, B, E]`: PyTorch would read past a text's end without a word."""
    num_steps, num_texts = steps.shape[:2]
    if lengths.device.type != "cpu" or lengths.dtype != torch.int64 or lengths.shape != (num_texts,):
        raise ValueError(f"lengths must be int64 on the CPU with shape [{num_texts}], not {lengths!r}")
    if num_texts == 0 or int(lengths.min()) < 1 or int(lengths.max()) > num_steps:
        raise ValueError(f"lengths must lie between 1 and {num_steps} and there must be a text: {lengths.tolist()}")


def _one_block(weights: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Copies weights into one block of memory, as cuDNN wants to have them; it warns of others at every call."""
    block = torch.cat([weight.flatten() for weight in weights]).to(dtype)
    parts = torch.split(block, [weight.numel() for weight in weights])
    return [part.view_as(weight) for part, weight in zip(parts, weights, strict=True)]


class _Permutation(torch.autograd.Function):
    """Rows of `[N, E]` in another order that undoes itself, so that the gradient is the same copy."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        return _Permutation.apply(gradient, order), None  # type: ignore[no-untyped-call]


def _permute(steps: Tensor, reversal: Tensor) -> Tensor:
    rows = steps.reshape(-1, steps.shape[2])
    permuted: Tensor = _Permutation.apply(rows, reversal)  # type: ignore[no-untyped-call]
    return permuted.view_as(steps)


def _reversal(lengths: Tensor, num_steps: int, device: torch.device) -> Tensor:
    """Returns `[T * B]`: for each place of a flat time-major batch, the place it comes from when texts are reversed."""
    lengths = lengths.to(device, non_blocking=True)
    steps = torch.arange(num_steps, device=device).unsqueeze(1)  # [T, 1]
    source = torch.where(steps < lengths, lengths - 1 - steps, steps)  # [T, B]
    return (source * lengths.shape[0] + torch.arange(lengths.shape[0], device=device)).flatten()


def _stack(layers: list[State]) -> State:
    return layers[0] if len(layers) == 1 else tuple(map(torch.stack, zip(*layers, strict=True)))
