"""Bidirectional LSTMs on CPUs for several sequences at once, each with the same result as if it were the only one.

PyTorch uses oneDNN, which reads all weights at every step of a single sequence, and rounds differently for several.
Here the products with the input are computed before the steps, and all sequences share the products with the state.
Both are chains of `ordered_gemm`, so in any batch the results have the bits of oneDNN for a single sequence.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import types
from numba.extending import intrinsic
from torch import Tensor, nn

from sctok.runtime.jit import compiled

from .ordered_gemm import LANES, Floats, chain_product, pack_panels

GATES = 4  # input, forget, cell, output: the order of PyTorch
INPUT, FORGET, CELL, OUTPUT = range(GATES)


class _Direction(NamedTuple):
    """Weights of one direction of a layer: (4 H, K), (4 H, H), (4 H,)."""

    inputs: Floats
    states: Floats
    bias: Floats
    backward: bool


class _Work(NamedTuple):
    """The work of one thread: some units of one direction.

    x: (T, B, K), the input.
    out: (T, B, H), the outputs of the direction.
    state: (2, B, H), current and next state, shared by the threads of the direction.
    units: panels of the thread.
    barrier: where the threads of the direction wait for each other.
    """

    x: Floats
    direction: _Direction
    out: Floats
    state: Floats
    units: range
    barrier: Barrier


@torch.inference_mode()
def bidirectional_lstm(lstm: nn.LSTM, x: Tensor) -> Tensor:
    """Run a bidirectional LSTM with bias.

    Args:
        lstm: float32 module on the CPU.
        x: (B, T, K) float32 on the CPU.

    Returns:
        (B, T, 2 H). Row b depends only on row b of `x`, to the last bit, for any batch and number of threads.
    """
    assert lstm.bidirectional
    assert lstm.bias
    assert not lstm.proj_size
    threads = torch.get_num_threads()
    sequence = np.ascontiguousarray(x.transpose(0, 1).numpy())
    try:
        with ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1)) as pool:
            for layer in range(lstm.num_layers):
                sequence = _run_layer(sequence, _directions(lstm, layer), lstm.hidden_size, threads, pool)
    finally:
        torch.set_num_threads(threads)  # threads that others start inherit this setting
    return torch.from_numpy(sequence).transpose(0, 1).contiguous()


def _directions(lstm: nn.LSTM, layer: int) -> list[_Direction]:
    found = []
    for suffix in ("", "_reverse"):
        inputs, states, first, second = (
            getattr(lstm, f"{name}_l{layer}{suffix}").detach()
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        found.append(_Direction(inputs.numpy(), states.numpy(), (first + second).numpy(), bool(suffix)))
    return found


def _run_layer(
    x: Floats, directions: Sequence[_Direction], hidden: int, threads: int, pool: ThreadPoolExecutor
) -> Floats:
    """Run one layer on x (T, B, K); return (T, B, 2 H)."""
    steps, batch, _ = x.shape
    out = np.empty((steps, batch, 2 * hidden), np.float32)
    panels = -(-hidden // LANES)
    parts = min(panels, max(1, threads // 2))
    work = []
    for number, direction in enumerate(directions):
        state, barrier = np.zeros((2, batch, hidden), np.float32), Barrier(parts)
        target = out[:, :, number * hidden : (number + 1) * hidden]
        work += [
            _Work(x, direction, target, state, range(panels * part // parts, panels * (part + 1) // parts), barrier)
            for part in range(parts)
        ]
    if threads == 1:
        for each in work:
            _run(each)
    else:
        for running in [pool.submit(_run, each) for each in work]:
            running.result()
    return out


def _run(work: _Work) -> None:
    try:
        _steps(work)
    except BaseException:
        work.barrier.abort()
        raise


def _steps(work: _Work) -> None:
    steps, batch, width = work.x.shape
    inputs = np.empty((GATES, len(work.units), steps * batch, LANES), np.float32)
    panels = _packed(work.direction.inputs, work.units)
    chain_product(work.x.reshape(-1, width), panels, inputs.reshape(-1, steps * batch, LANES))
    panels = _packed(work.direction.states, work.units)
    bias = _packed(work.direction.bias[:, None], work.units).reshape(GATES, -1, LANES)
    gates = np.empty((GATES, len(work.units), batch, LANES), np.float32)
    cell = np.zeros_like(gates[0])
    for count in range(steps):
        step = steps - 1 - count if work.direction.backward else count
        now, following = work.state[count % 2], work.state[1 - count % 2]
        chain_product(now, panels, gates.reshape(-1, batch, LANES))
        _add(inputs, step * batch, bias, gates)
        opened = _activate(torch.sigmoid, gates[:CELL]), _activate(torch.sigmoid, gates[OUTPUT])
        _update(opened[0][INPUT], opened[0][FORGET], _activate(torch.tanh, gates[CELL]), cell)
        _emit(opened[1], _activate(torch.tanh, cell), work.units.start * LANES, following, work.out[step])
        work.barrier.wait()


def _packed(weights: Floats, units: range) -> Floats:
    """Return the panels (4 · units, K, LANES) of weights (4 H, K), gate by gate."""
    hidden = len(weights) // GATES
    panels = np.empty((GATES, len(units), weights.shape[1], LANES), np.float32)
    for gate in range(GATES):
        rows = weights[gate * hidden : (gate + 1) * hidden]
        pack_panels(rows[units.start * LANES : units.stop * LANES], panels[gate])
    return panels.reshape(-1, *panels.shape[2:])


def _activate(function: Callable[[Tensor], Tensor], values: Floats) -> Floats:
    tensor = torch.from_numpy(values)
    if not torch.backends.mkldnn.is_available():
        return function(tensor).numpy()
    return function(tensor.to_mkldnn()).to_dense().numpy()


def _fused(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a · b + c, rounded once."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), codegen


_multiply_add: Any = intrinsic(_fused)


@compiled()
def _add(inputs: Floats, first: int, bias: Floats, gates: Floats) -> None:
    """Add to gates (4, u, B, LANES) the inputs (4, u, T · B, LANES) of rows from `first`, then the bias."""
    for gate in range(gates.shape[0]):
        for unit in range(gates.shape[1]):
            for row in range(gates.shape[2]):
                for lane in range(gates.shape[3]):
                    summed = inputs[gate, unit, first + row, lane] + gates[gate, unit, row, lane]
                    gates[gate, unit, row, lane] = summed + bias[gate, unit, lane]


@compiled()
def _update(entering: Floats, kept: Floats, new: Floats, cell: Floats) -> None:
    """Replace cell by kept · cell + entering · new, all (u, B, LANES)."""
    for unit in range(cell.shape[0]):
        for row in range(cell.shape[1]):
            for lane in range(cell.shape[2]):
                old = kept[unit, row, lane] * cell[unit, row, lane]
                cell[unit, row, lane] = _multiply_add(entering[unit, row, lane], new[unit, row, lane], old)


@compiled()
def _emit(shown: Floats, cell: Floats, first: int, state: Floats, out: Floats) -> None:
    """Write shown · cell (u, B, LANES) to columns from `first` of state and out (B, H)."""
    for unit in range(cell.shape[0]):
        start = first + unit * cell.shape[2]
        count = min(cell.shape[2], state.shape[1] - start)
        for row in range(cell.shape[1]):
            for lane in range(count):
                value = shown[unit, row, lane] * cell[unit, row, lane]
                state[row, start + lane] = value
                out[row, start + lane] = value
