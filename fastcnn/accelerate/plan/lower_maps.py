# SPDX-License-Identifier: Apache-2.0
"""What stands between convolutions as steps of a plan, or as views of what other steps write."""

from __future__ import annotations

from typing import Any

from torch import fx

from ..program import arguments, is_op, only_user
from .builder import View
from .formulas import DIFFERENCES, PRODUCTS, SUMS, Formula, affine, alpha_of, put, vector
from .state import Lowering, channel_range
from .words import NONE, Binary, GlobalPool, Pool, PoolWindow, Shuffle


def global_pool(low: Lowering, node: fx.Node) -> None:
    x, y = low.view(node.args[0]), low.result(node)
    low.add(node, GlobalPool(low.builder.number(x), low.builder.number(y)), 0, (x,))


def max_pool(low: Lowering, node: fx.Node) -> None:
    a = arguments(node)
    _pool(low, node, a["x"], Pool.MAX, a["kernel_size"], a["stride"], a["padding"])


def mean_pool(low: Lowering, node: fx.Node) -> None:
    a = arguments(node)
    kind = Pool.MEAN if a["count_include_pad"] else Pool.MEAN_OF_VALID
    _pool(low, node, a["self"], kind, a["kernel_size"], a["stride"] or a["kernel_size"], a["padding"])


def adaptive_pool(low: Lowering, node: fx.Node) -> None:
    _pool(low, node, node.args[0], Pool.ADAPTIVE_MEAN, (1, 1), (1, 1), (0, 0))  # its windows follow from the sizes


def _pool(low: Lowering, node: fx.Node, x: fx.Node, kind: Pool, kernel: Any, stride: Any, padding: Any) -> None:
    kernel, stride, padding = (tuple(each) * 2 if len(each) == 1 else tuple(each) for each in (kernel, stride, padding))
    step = PoolWindow(low.number(x), low.builder.number(low.result(node)), kind, *kernel, *stride, *padding)
    low.add(node, step, 0, (low.view(x),))


def activation(low: Lowering, node: fx.Node) -> None:
    x, kind = node.args
    formula = low.waiting[x].activated(kind) if x in low.waiting else None
    if formula is not None:
        del low.waiting[x]
    put(low, node, formula or Formula(low.view(x), activation=kind))


def arithmetic(low: Lowering, node: fx.Node) -> None:
    """A sum, difference, product or quotient."""
    channels = low.shapes[node][0]
    constants = affine(low.program, node, channels)
    if constants is not None:
        x, *both = constants
        scale, shift = (vector(each, channels, neutral) for each, neutral in zip(both, (1.0, 0.0), strict=True))
        formula = low.waiting[x].then(scale, shift) if x in low.waiting else None
        if formula is not None:
            del low.waiting[x]
        put(low, node, formula or Formula(low.view(x), scale=scale, shift=shift))
        return
    x, other = node.args[:2]
    alpha = alpha_of(node)
    if is_op(node, *SUMS) and alpha == 1:
        put(low, node, _sum(low, x, other))
    elif is_op(node, *PRODUCTS):
        x, other = (x, other) if low.shapes[x] == low.shapes[node] else (other, x)
        put(low, node, Formula(low.view(x), Binary.MULTIPLY, low.view(other)))
    elif is_op(node, *DIFFERENCES) and alpha == 1 and low.shapes[x] == low.shapes[node]:
        put(low, node, Formula(low.view(x), Binary.SUBTRACT, low.view(other)))
    else:
        sign = 1.0 if is_op(node, *SUMS) else -1.0
        put(low, node, Formula(low.view(other), Binary.ADD, low.view(x), vector(sign * alpha, channels, 1.0)))


def _sum(low: Lowering, x: fx.Node, other: fx.Node) -> Formula:
    """A waiting operand takes the other one in; a vector of one pixel is the second operand."""
    for first, second in ((x, other), (other, x)):
        if first in low.waiting and first is not second:
            formula = low.waiting[first].plus(low.view(second))
            if formula is not None:
                del low.waiting[first]
                return formula
    if low.shapes[x][1:] == (1, 1):
        x, other = other, x
    return Formula(low.view(x), Binary.ADD, low.view(other))


def batch_norm(low: Lowering, node: fx.Node) -> None:
    a = arguments(node)
    mean, var = (low.tensor(a[name]).double() for name in ("running_mean", "running_var"))
    scale = (var + a["eps"]).rsqrt()
    if a["weight"] is not None:
        scale = scale * low.tensor(a["weight"]).double()
    shift = -mean * scale
    if a["bias"] is not None:
        shift = shift + low.tensor(a["bias"]).double()
    kind = Binary.NONE if a["residual"] is None else Binary.ADD
    other = low.view(a["residual"])
    put(low, node, Formula(low.view(a["x"]), kind, other, scale, shift, activation=a["activation"]))


def shuffle(low: Lowering, node: fx.Node) -> None:
    x, groups = node.args
    step = Shuffle(low.number(x), NONE, low.builder.number(low.result(node)), groups)
    low.add(node, step, 0, (low.view(x),))


def shuffle_concat(low: Lowering, node: fx.Node) -> None:
    first, second = node.args
    step = Shuffle(low.number(first), low.number(second), low.builder.number(low.result(node)), 2)
    low.add(node, step, 0, (low.view(first), low.view(second)))


def slice(low: Lowering, node: fx.Node) -> None:
    if node not in low.views:  # else a piece of its own
        low.views[node] = low.view(node.args[0]).slice(*channel_range(node, low.shapes))


def alias(low: Lowering, node: fx.Node) -> None:
    low.views[node] = low.view(node.args[0])


def first_of_pair(low: Lowering, node: fx.Node) -> None:
    """The map that squeeze-and-excitation gives, where it has not been written yet: it goes on waiting."""
    pair = node.args[0]
    if pair in low.waiting and only_user(node) is not None:
        low.waiting[node] = low.waiting.pop(pair)
        if pair in low.places:
            low.places[node] = low.places[pair]
    else:
        alias(low, node)


def reshape(low: Lowering, node: fx.Node) -> None:
    x = node.args[0]
    view, shape = low.view(x), low.shapes[x]
    if len(shape) == 3 and shape[1] * shape[2] > 1:  # to be read by linear layers alone
        low.flattened[node] = shape
        if not view.whole:
            dense = low.builder.map(view.C, view.H, view.W)
            low.builder.copy(view, dense, node.name)
            view = dense
        size = view.C * view.H * view.W
        view = View(view.buffer, 0, size, 1, 1, size)
    low.views[node] = view


def concat(low: Lowering, node: fx.Node) -> None:
    y = low.views.get(node) or low.result(node)
    low.views[node] = y
    start = 0
    for part in node.args[0]:
        end = start + low.shapes[part][0]
        wanted = y.slice(start, end)
        if low.view(part) != wanted:
            low.builder.copy(low.view(part), wanted, node.name)
        start = end
