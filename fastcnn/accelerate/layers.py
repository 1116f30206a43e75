# SPDX-License-Identifier: Apache-2.0
"""Time per layer before and after, for orientation: operators are run one by one.

A round runs every operator of a program in its order with the clock read around each, on CUDA with a synchronisation,
so what overlaps in a real run does not here, and the sums are larger than a forward. Medians of a few rounds.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from .capture import capture, flat_example
from .module import Accelerated

ROUNDS = 5
MOST = 40  # layers, so many bars as can be read
ROOT, REST = "(model)", "(others)"


class LayerTime(NamedTuple):
    """Milliseconds of one layer's operators; ``operators`` names those that run after, with their number."""

    layer: str
    before: float
    after: float
    operators: dict[str, int]


def layer_times(
    model: nn.Module, fast: Accelerated, example: Tensor | tuple[Tensor, ...], rounds: int = ROUNDS, most: int = MOST
) -> list[LayerTime]:
    """Where the time goes in ``model`` and in ``fast``, which :func:`fastcnn.accelerate` made of it.

    A layer is a module of ``model``, cut to the depth at which at most ``most`` remain ("features.3" holds all of its
    own). An operator that a rewrite made of several counts for one of their layers.

    Args:
        model: the original, in eval mode.
        fast: its accelerated form, which knows the layers: not one that was read from a file or pickled.
        example: as accelerate() took it.
        rounds: runs of either, after a first one that is not counted.
        most: at least 2. Where even the outermost modules are more, the cheapest are one row.
    Returns: a row a layer in the order of the original.
    Raises: TypeError or ValueError naming the argument; CaptureError where ``model`` cannot be captured.
    """
    if not isinstance(fast, Accelerated):
        raise TypeError(f"layer_times: fast must be an accelerated model, got {type(fast).__name__}")
    for name, number, least in (("rounds", rounds, 1), ("most", most, 2)):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f"layer_times: {name} must be a whole number from {least} up, got {number!r}")
    inputs = flat_example(example)
    if not any("layer" in node.meta for node in fast.program.graph.nodes):
        raise ValueError("layer_times: fast must know its layers, got one from a file: accelerate the model itself")
    dtype = fast.dtype()
    inside = tuple(x.to(dtype) if x.is_floating_point() and dtype is not None else x for x in inputs)
    before = _measure(capture(model, inputs).program, inputs, rounds)
    after = _measure(fast.runs(inputs[0].device), inside, rounds)
    return _rows(before, after, most)


def _measure(program: fx.GraphModule, inputs: tuple[Tensor, ...], rounds: int) -> list[tuple[fx.Node, float]]:
    """The calls of a program with the median of their milliseconds."""
    runs = []
    with torch.inference_mode():
        for _ in range(rounds + 1):
            clock = _Clock(program)
            clock.run(*inputs)
            runs.append(clock.milliseconds)
    return [(node, statistics.median(run[node] for run in runs[1:])) for node in runs[0]]


class _Clock(fx.Interpreter):
    def __init__(self, program: fx.GraphModule) -> None:
        super().__init__(program)
        self.milliseconds: dict[fx.Node, float] = {}
        self._devices = {p.device for p in program.parameters() if p.is_cuda}

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_function":
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        start = time.perf_counter()
        result = n.target(*args, **kwargs)
        for device in self._devices:
            torch.cuda.synchronize(device)
        self.milliseconds[n] = 1e3 * (time.perf_counter() - start)
        return result


def _rows(before: list[tuple[fx.Node, float]], after: list[tuple[fx.Node, float]], most: int) -> list[LayerTime]:
    depth = _depth((_layer(node) for node, _ in (*before, *after)), most)
    sums: dict[str, list[float]] = {}
    operators: dict[str, Counter[str]] = {}
    for place, measured in enumerate((before, after)):
        for node, milliseconds in measured:
            layer = _cut(_layer(node), depth)
            sums.setdefault(layer, [0.0, 0.0])[place] += milliseconds
            if place:
                operators.setdefault(layer, Counter())[str(node.target).removesuffix(".default")] += 1
    rows = [LayerTime(layer, *times, dict(operators.get(layer, {}))) for layer, times in sums.items()]
    return _merged(rows, most)


def _layer(node: fx.Node) -> str:
    return node.meta.get("layer") or ROOT


def _cut(layer: str, depth: int) -> str:
    return ".".join(layer.split(".")[:depth])


def _depth(layers: Iterable[str], most: int) -> int:
    """The largest at which at most ``most`` names remain, 1 where none is small enough."""
    names = set(layers)
    deepest = max((name.count(".") + 1 for name in names), default=1)
    return next((d for d in range(deepest, 1, -1) if len({_cut(name, d) for name in names}) <= most), 1)


def _merged(rows: list[LayerTime], most: int) -> list[LayerTime]:
    if len(rows) <= most:
        return rows
    dear = sorted(rows, key=lambda row: -max(row.before, row.after))[: most - 1]
    cheap = [row for row in rows if row not in dear]
    together: Counter[str] = Counter()
    for row in cheap:
        together.update(row.operators)
    rest = LayerTime(REST, sum(r.before for r in cheap), sum(r.after for r in cheap), dict(together))
    return [*(row for row in rows if row in dear), rest]
