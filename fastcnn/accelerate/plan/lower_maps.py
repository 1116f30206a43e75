# SPDX-License-Identifier: Apache-2.0
"""What stands between convolutions as steps of a plan, or as views of what other steps write."""

from __future__ import annotations

from typing import Any

from torch import fx

from ..program import arguments, aten, is_op
from .builder import View
from .state import Lowering, channel_range
from .words import ACTIVATIONS, NONE, Binary, Elementwise, GlobalPool, Pool, PoolWindow, Shuffle


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


def _pool(low: Lowering, node: fx.Node, x: fx.Node, kind: Pool, kernel: Any, stride: Any, padding: Any) -> None:
    kernel, stride, padding = (tuple(each) * 2 if len(each) == 1 else tuple(each) for each in (kernel, stride, padding))
    step = PoolWindow(low.number(x), low.builder.number(low.result(node)), kind, *kernel, *stride, *padding)
    low.add(node, step, 0, (low.view(x),))


def activation(low: Lowering, node: fx.Node) -> None:
    x, kind = node.args
    step = Elementwise(low.number(x), NONE, low.builder.number(low.result(node)), Binary.NONE, NONE, NONE,
                       ACTIVATIONS.index(kind))  # fmt: skip
    low.add(node, step, 0, (low.view(x),))


def binary(low: Lowering, node: fx.Node) -> None:
    x, other = node.args
    if low.shapes[x] != low.shapes[node]:
        x, other = other, x
    kind = Binary.ADD if is_op(node, aten.add.Tensor) else Binary.MULTIPLY
    step = Elementwise(low.number(x), low.number(other), low.builder.number(low.result(node)), kind, NONE, NONE, 0)
    low.add(node, step, 0, (low.view(x), low.view(other)))


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
    step = Elementwise(low.number(a["x"]), low.number(a["residual"]), low.builder.number(low.result(node)), kind,
                       low.vector(scale), low.vector(shift), ACTIVATIONS.index(a["activation"]))  # fmt: skip
    low.add(node, step, 0, (low.view(a["x"]), low.view(a["residual"])))


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
