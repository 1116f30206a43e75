# SPDX-License-Identifier: Apache-2.0
"""Operators of a rewritten graph as steps of a plan: one function each, and what each can serve."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

from ..program import (
    ACTIVATION,
    BATCH_NORM,
    CHANNEL_SHUFFLE,
    CONV,
    DEPTHWISE,
    GLOBAL_AVG_POOL,
    MAX_POOL,
    POINTWISE,
    SE_GATE,  # fmt: skip
    SE_SCALE,
    SHUFFLE_CONCAT,
    Conv,
    arguments,
    aten,
    is_op,
    tensor_of,
)
from .builder import Builder, StepNote, View
from .words import (
    ACTIVATIONS,
    NONE,
    Binary,
    Depthwise,
    Elementwise,
    GlobalPool,
    Pointwise,
    Pool,
    PoolWindow,
    Shuffle,  # fmt: skip
)
from .words import Conv as ConvStep

PICTURE_CHANNELS = 4  # up to as many, the first convolution reads an input as it lies


class Lowering:
    """The state of one lowering: where the result of every node is."""

    def __init__(self, program: fx.GraphModule, shapes: dict[fx.Node, tuple[int, ...]], builder: Builder) -> None:
        self.program = program
        self.shapes = shapes  # of one image
        self.builder = builder
        self.views: dict[fx.Node, View] = {}
        self.places: dict[fx.Node, View] = {}  # slices of concatenations that nodes are to write into
        self.sums: dict[fx.Node, int | None] = {}  # the values that hold the sums of maps over their pixels
        self.flattened: dict[fx.Node, tuple[int, ...]] = {}  # the map's shape behind a flattened one

    def view(self, node: fx.Node | None) -> View | None:
        return None if node is None else self.views[node]

    def number(self, node: fx.Node | None) -> int:
        return self.builder.number(self.view(node))

    def result(self, node: fx.Node) -> View:
        """Where ``node`` writes its map."""
        shape = self.shapes[node]
        channels, height, width = (*shape, 1, 1)[:3]
        if node not in self.views:
            self.views[node] = self.places.get(node) or self.builder.map(channels, height, width)
        return self.views[node]

    def tensor(self, node: fx.Node | None) -> Tensor | None:
        return tensor_of(self.program, node)

    def vector(self, tensor: Tensor | None, groups: int = 1) -> int:
        return NONE if tensor is None else self.builder.blob.vector(tensor, groups)

    def add(self, node: fx.Node, step: object, macs: int = 0, reads: tuple[View | None, ...] = (), weights: int = 0,
            name: str = "") -> None:  # fmt: skip
        views = [each for each in (*reads, self.views.get(node)) if each is not None]
        floats = weights + sum(each.C * each.H * each.W for each in views)
        layer = node.meta.get("layer", "") or node.name
        self.builder.add(step, StepNote(name or type(step).__name__.lower(), layer, macs, 4 * floats))


def padding_of(padding: tuple[int, ...], size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int],
               dilation: tuple[int, int]) -> tuple[int, int, int, int]:  # fmt: skip
    """(left, right, top, bottom), TensorFlow's SAME resolved for this size."""
    if padding[0] >= 0 or padding[0] != -1:
        return tuple(padding)
    ends = []
    for i in (1, 0):
        wanted = (math.ceil(size[i] / stride[i]) - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 - size[i]
        ends += [max(wanted, 0) // 2, max(wanted, 0) - max(wanted, 0) // 2]
    return tuple(ends)


def _conv(low: Lowering, node: fx.Node) -> None:
    conv = Conv.of(node)
    weight, bias = low.tensor(conv.weight), low.tensor(conv.bias)
    x = low.view(conv.x)
    y = low.result(node)
    _, _, kernel_h, kernel_w = weight.shape
    left, _, top, _ = padding_of(conv.padding, (x.H, x.W), (kernel_h, kernel_w), conv.stride, conv.dilation)
    macs = weight.numel() * y.H * y.W
    reads = (x, low.view(conv.residual))
    if (kernel_h, kernel_w, *conv.stride, conv.groups) == (1, 1, 1, 1, 1) and (x.H, x.W) == (y.H, y.W):
        step = Pointwise(low.builder.number(x), low.builder.number(y), low.number(conv.residual), NONE,
                         low.builder.blob.matrix(weight.flatten(1)), low.vector(bias), NONE, NONE, 0,
                         ACTIVATIONS.index(conv.activation))  # fmt: skip
    else:
        # [O, C / G, kH, kW] -> [G][O / G][kH kW C / G]: channels innermost, as the map has them
        packed = weight.permute(0, 2, 3, 1).reshape(conv.groups, weight.shape[0] // conv.groups, -1)
        step = ConvStep(low.builder.number(x), low.builder.number(y), low.number(conv.residual),
                        low.builder.blob.groups(packed), low.vector(bias, conv.groups), kernel_h, kernel_w,
                        *conv.stride, top, left, *conv.dilation, conv.groups, ACTIVATIONS.index(conv.activation))  # fmt: skip
    low.add(node, step, macs, reads, weight.numel())


def _depthwise(low: Lowering, node: fx.Node) -> None:
    a = arguments(node)
    weight, bias = low.tensor(a["weight"]), low.tensor(a["bias"])
    x, y = low.view(a["x"]), low.result(node)
    kernel = tuple(weight.shape[2:])
    left, _, top, _ = padding_of(a["padding"], (x.H, x.W), kernel, a["stride"], a["dilation"])
    sums = NONE
    if any(_squeezes(user, node) for user in node.users):
        sums = low.builder.number(low.builder.map(y.C))
    step = Depthwise(low.builder.number(x), low.builder.number(y), low.number(a["residual"]), sums,
                     low.builder.blob.matrix(weight.flatten(1)), low.vector(bias), *kernel, *a["stride"], top, left,
                     *a["dilation"], ACTIVATIONS.index(a["activation"]))  # fmt: skip
    low.add(node, step, weight.numel() * y.H * y.W, (x, low.view(a["residual"])), weight.numel())
    low.sums[node] = sums if sums != NONE else None


def _squeezes(user: fx.Node, node: fx.Node) -> bool:
    return is_op(user, SE_GATE, SE_SCALE) and user.args[0] is node


def _gate(low: Lowering, node: fx.Node) -> View:
    """The scales of squeeze-and-excitation: two linear layers on the means."""
    a = arguments(node)
    x = low.view(a["x"])
    w1, w2 = low.tensor(a["w1"]).flatten(1), low.tensor(a["w2"]).flatten(1)
    sums = low.sums.get(a["x"])
    if sums is None:
        pooled = low.builder.map(x.C)
        sums = low.builder.number(pooled)
        low.add(node, GlobalPool(low.builder.number(x), sums), 0, (x,), name="squeeze")
    else:
        w1 = w1 / (x.H * x.W)
    hidden, gate = low.builder.map(w1.shape[0]), low.builder.map(w2.shape[0])
    for source, to, weight, bias, kind in ((sums, hidden, w1, a["b1"], a["activation"]),
                                           (low.builder.number(hidden), gate, w2, a["b2"], a["gate"])):  # fmt: skip
        step = Pointwise(source, low.builder.number(to), NONE, NONE, low.builder.blob.matrix(weight),
                         low.vector(low.tensor(bias)), NONE, NONE, 0, ACTIVATIONS.index(kind))  # fmt: skip
        low.add(node, step, weight.numel(), (), weight.numel(), "excite")
    return gate


def _se_gate(low: Lowering, node: fx.Node) -> None:
    low.views[node] = _gate(low, node)


def _se_scale(low: Lowering, node: fx.Node) -> None:
    gate = _gate(low, node)
    x, y = low.view(node.args[0]), low.result(node)
    step = Elementwise(low.builder.number(x), low.builder.number(gate), low.builder.number(y), Binary.MULTIPLY, NONE,
                       NONE, 0)  # fmt: skip
    low.add(node, step, 0, (x,))


def _pointwise(low: Lowering, node: fx.Node) -> None:
    a = arguments(node)
    weight = low.tensor(a["weight"])
    y = low.result(node)
    step = Pointwise(low.number(a["x"]), low.builder.number(y), low.number(a["residual"]), low.number(a["gate"]),
                     low.builder.blob.matrix(weight.flatten(1)), low.vector(low.tensor(a["bias"])),
                     low.vector(low.tensor(a["scale"])), low.vector(low.tensor(a["shift"])),
                     ACTIVATIONS.index(a["prologue"]), ACTIVATIONS.index(a["activation"]))  # fmt: skip
    low.add(node, step, weight.numel() * y.H * y.W, (low.view(a["x"]), low.view(a["residual"])), weight.numel())


def _linear(low: Lowering, node: fx.Node) -> None:
    x, weight, bias = (*node.args, None)[:3]
    matrix = low.tensor(weight)
    map_shape = low.flattened.get(x)
    if map_shape is not None:  # the columns follow the channels-last order of the map
        matrix = matrix.reshape(-1, *map_shape).permute(0, 2, 3, 1).flatten(1)
    y = low.result(node)
    step = Pointwise(low.number(x), low.builder.number(y), NONE, NONE, low.builder.blob.matrix(matrix),
                     low.vector(low.tensor(bias)), NONE, NONE, 0, 0)  # fmt: skip
    low.add(node, step, matrix.numel(), (low.view(x),), matrix.numel(), "linear")


def _global_pool(low: Lowering, node: fx.Node) -> None:
    x, y = low.view(node.args[0]), low.result(node)
    low.add(node, GlobalPool(low.builder.number(x), low.builder.number(y)), 0, (x,))


def _max_pool(low: Lowering, node: fx.Node) -> None:
    a = arguments(node)
    _pool(low, node, a["x"], Pool.MAX, a["kernel_size"], a["stride"], a["padding"])


def _mean_pool(low: Lowering, node: fx.Node) -> None:
    a = arguments(node)
    kind = Pool.MEAN if a["count_include_pad"] else Pool.MEAN_OF_VALID
    _pool(low, node, a["self"], kind, a["kernel_size"], a["stride"] or a["kernel_size"], a["padding"])


def _pool(low: Lowering, node: fx.Node, x: fx.Node, kind: Pool, kernel: Any, stride: Any, padding: Any) -> None:
    kernel, stride, padding = (tuple(each) * 2 if len(each) == 1 else tuple(each) for each in (kernel, stride, padding))
    step = PoolWindow(low.number(x), low.builder.number(low.result(node)), kind, *kernel, *stride, *padding)
    low.add(node, step, 0, (low.view(x),))


def _activation(low: Lowering, node: fx.Node) -> None:
    x, kind = node.args
    step = Elementwise(low.number(x), NONE, low.builder.number(low.result(node)), Binary.NONE, NONE, NONE,
                       ACTIVATIONS.index(kind))  # fmt: skip
    low.add(node, step, 0, (low.view(x),))


def _binary(low: Lowering, node: fx.Node) -> None:
    x, other = node.args
    if low.shapes[x] != low.shapes[node]:
        x, other = other, x
    kind = Binary.ADD if is_op(node, aten.add.Tensor) else Binary.MULTIPLY
    step = Elementwise(low.number(x), low.number(other), low.builder.number(low.result(node)), kind, NONE, NONE, 0)
    low.add(node, step, 0, (low.view(x), low.view(other)))


def _batch_norm(low: Lowering, node: fx.Node) -> None:
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


def _shuffle(low: Lowering, node: fx.Node) -> None:
    x, groups = node.args
    step = Shuffle(low.number(x), NONE, low.builder.number(low.result(node)), groups)
    low.add(node, step, 0, (low.view(x),))


def _shuffle_concat(low: Lowering, node: fx.Node) -> None:
    first, second = node.args
    step = Shuffle(low.number(first), low.number(second), low.builder.number(low.result(node)), 2)
    low.add(node, step, 0, (low.view(first), low.view(second)))


def _slice(low: Lowering, node: fx.Node) -> None:
    x, start = low.view(node.args[0]), node.args[2] or 0
    start += x.C if start < 0 else 0
    low.views[node] = x.slice(start, start + low.shapes[node][0])


def _alias(low: Lowering, node: fx.Node) -> None:
    low.views[node] = low.view(node.args[0])


def _reshape(low: Lowering, node: fx.Node) -> None:
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


def _concat(low: Lowering, node: fx.Node) -> None:
    y = low.views.get(node) or low.result(node)
    low.views[node] = y
    start = 0
    for part in node.args[0]:
        end = start + low.shapes[part][0]
        wanted = y.slice(start, end)
        if low.view(part) != wanted:
            low.builder.copy(low.view(part), wanted, node.name)
        start = end


TABLE: dict[Any, Callable[[Lowering, fx.Node], None]] = {
    CONV: _conv,
    DEPTHWISE: _depthwise,
    POINTWISE: _pointwise,
    SE_GATE: _se_gate,
    SE_SCALE: _se_scale,
    GLOBAL_AVG_POOL: _global_pool,
    MAX_POOL: _max_pool,
    ACTIVATION: _activation,
    BATCH_NORM: _batch_norm,
    CHANNEL_SHUFFLE: _shuffle,
    SHUFFLE_CONCAT: _shuffle_concat,
    aten.avg_pool2d.default: _mean_pool,
    aten.linear.default: _linear,
    aten.add.Tensor: _binary,
    aten.mul.Tensor: _binary,
    aten.cat.default: _concat,
    aten.slice.Tensor: _slice,
    aten.reshape.default: _reshape,
    aten.contiguous.default: _alias,
}
FREE = (aten.slice.Tensor, aten.reshape.default, aten.contiguous.default)  # lower to no step


def lower(node: fx.Node, low: Lowering) -> None:
    """Adds the steps of ``node``."""
    if node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem":
        _alias(low, node)
    else:
        TABLE[node.target](low, node)
