# SPDX-License-Identifier: Apache-2.0
"""Time per layer before and after, for orientation: operators are run one by one (clock.py), medians of a few rounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor, nn

from .capture import capture, flat_example
from .clock import Timed, measure
from .module import Accelerated

ROUNDS = 5
MOST = 40  # layers, so many bars as can be read
ROOT, REST = "(model)", "(others)"


class LayerTime(NamedTuple):
    """Milliseconds of one layer's operators; ``operators`` names those, and the steps of plans, that run after, with their number."""

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
    captured = capture(model, inputs).program
    known = {node.meta.get("layer") for program in (captured, fast.program) for node in program.graph.nodes}
    before, after = (
        [each if each.layer in known else each._replace(layer=ROOT) for each in timed]
        for timed in (measure(captured, inputs, rounds), measure(fast.runs(inputs), inside, rounds))
    )
    return _rows(before, after, most)


def _rows(before: list[Timed], after: list[Timed], most: int) -> list[LayerTime]:
    depth = _depth((each.layer for each in (*before, *after)), most)
    sums: dict[str, list[float]] = {}
    operators: dict[str, Counter[str]] = {}
    for place, measured in enumerate((before, after)):
        for each in measured:
            layer = _cut(each.layer, depth)
            sums.setdefault(layer, [0.0, 0.0])[place] += each.milliseconds
            if place:
                operators.setdefault(layer, Counter())[each.kind] += 1
    rows = [LayerTime(layer, *times, dict(operators.get(layer, {}))) for layer, times in sums.items()]
    return _merged(rows, most)


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
