# SPDX-License-Identifier: Apache-2.0
"""Convolutions, linear layers and the gates between them as steps of a plan."""

from __future__ import annotations

import math

from torch import Tensor, fx

from ..program import SE_GATE, SE_SCALE, Conv, arguments, is_op
from .builder import View
from .formulas import Formula, put
from .state import PICTURE_CHANNELS, Lowering
from .words import ACTIVATIONS, NONE, Binary, ConvBf16, Depthwise, GlobalPool, Grouped, Pointwise, PointwiseBf16
from .words import Conv as ConvStep

LEAST_BF16 = 16  # channels: with fewer most of a tile's depth is padding
GROUPS = (2, 4, 8)  # channels of a group that the step for several groups in a vector takes


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


def conv(low: Lowering, node: fx.Node) -> None:
    conv = Conv.of(node)
    weight, bias = low.tensor(conv.weight), low.tensor(conv.bias)
    x = low.view(conv.x)
    _, _, kernel_h, kernel_w = weight.shape
    _, height, width = low.shapes[node]
    left, _, top, _ = padding_of(conv.padding, (x.H, x.W), (kernel_h, kernel_w), conv.stride, conv.dilation)
    plain = (kernel_h, kernel_w, *conv.stride, conv.groups) == (1, 1, 1, 1, 1) and (x.H, x.W) == (height, width)
    residual, kind = low.number(conv.residual), ACTIVATIONS.index(conv.activation)
    for start, end, y in low.pieces(node):
        w, b = weight[start:end], bias if bias is None else bias[start:end]
        if low.bf16 and conv.groups == 1 and x.C >= LEAST_BF16:
            packed = low.builder.blob.bf16(w.permute(0, 2, 3, 1).flatten(1, 2))
            ends = low.builder.number(x), low.builder.number(y), residual
            if plain:
                step = PointwiseBf16(*ends, NONE, packed, low.vector(b), NONE, NONE, 0, kind)
            else:
                step = ConvBf16(*ends, packed, low.vector(b), kernel_h, kernel_w, *conv.stride, top, left,
                                *conv.dilation, 1, kind)  # fmt: skip
        elif plain:
            step = Pointwise(low.builder.number(x), low.builder.number(y), residual, NONE,
                             low.builder.blob.matrix(w.flatten(1)), low.vector(b), NONE, NONE, 0, kind)  # fmt: skip
        elif _few_channels(w.shape, conv.groups, low):
            packed = w.permute(0, 2, 3, 1).flatten(1)
            step = Grouped(low.builder.number(x), low.builder.number(y), residual, low.builder.blob.matrix(packed),
                           low.vector(b), kernel_h, kernel_w, *conv.stride, top, left, *conv.dilation, w.shape[1], kind)  # fmt: skip
        else:
            # [O, C / G, kH, kW] -> [G][O / G][kH kW C / G]: channels innermost, as the map has them
            packed = w.permute(0, 2, 3, 1).unflatten(0, (conv.groups, -1))
            step = ConvStep(low.builder.number(x), low.builder.number(y), residual, low.builder.blob.groups(packed),
                            low.vector(b, conv.groups), kernel_h, kernel_w, *conv.stride, top, left, *conv.dilation,
                            conv.groups, kind)  # fmt: skip
        low.add(node, step, w.numel() * height * width, (x, y, low.view(conv.residual)), w.numel())


def _few_channels(shape: tuple[int, ...], groups: int, low: Lowering) -> bool:
    """Whether groups of a weight ``[O, C / G, kH, kW]`` are so small that a vector holds several."""
    outputs, group = shape[:2]
    square = outputs == group * groups > PICTURE_CHANNELS
    return groups > 1 and square and group in GROUPS and group < low.builder.blob.lanes


def depthwise(low: Lowering, node: fx.Node) -> None:
    a = arguments(node)
    weight, bias = low.tensor(a["weight"]), low.tensor(a["bias"])
    x, y = low.view(a["x"]), low.result(node)
    kernel = tuple(weight.shape[2:])
    left, _, top, _ = padding_of(a["padding"], (x.H, x.W), kernel, a["stride"], a["dilation"])
    sums = sums_for(low, node)
    step = Depthwise(low.builder.number(x), low.builder.number(y), low.number(a["residual"]), sums,
                     low.builder.blob.matrix(weight.flatten(1)), low.vector(bias), *kernel, *a["stride"], top, left,
                     *a["dilation"], ACTIVATIONS.index(a["activation"]))  # fmt: skip
    low.add(node, step, weight.numel() * y.H * y.W, (x, low.view(a["residual"])), weight.numel())


def sums_for(low: Lowering, node: fx.Node) -> int:
    """The value for the sums of a depthwise map over its pixels, where squeeze-and-excitation wants them."""
    if not any(is_op(user, SE_GATE, SE_SCALE) and user.args[0] is node for user in node.users):
        return NONE
    low.sums[node] = low.builder.number(low.builder.map(low.shapes[node][0]))
    return low.sums[node]


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


def se_gate(low: Lowering, node: fx.Node) -> None:
    low.views[node] = _gate(low, node)


def se_scale(low: Lowering, node: fx.Node) -> None:
    gate = _gate(low, node)
    put(low, node, Formula(low.view(node.args[0]), Binary.MULTIPLY, gate))


def product(low: Lowering, matrix: Tensor) -> tuple[type, int]:
    """The step that multiplies by ``[O, K...]``, and where that is packed."""
    if low.bf16 and matrix[0].numel() >= LEAST_BF16:
        return PointwiseBf16, low.builder.blob.bf16(matrix.flatten(1).unsqueeze(1))
    return Pointwise, low.builder.blob.matrix(matrix)


def pointwise(low: Lowering, node: fx.Node) -> None:
    a = arguments(node)
    weight = low.tensor(a["weight"])
    y = low.result(node)
    kind, packed = product(low, weight.flatten(1))
    step = kind(low.number(a["x"]), low.builder.number(y), low.number(a["residual"]), low.number(a["gate"]), packed,
                low.vector(low.tensor(a["bias"])), low.vector(low.tensor(a["scale"])),
                low.vector(low.tensor(a["shift"])), ACTIVATIONS.index(a["prologue"]),
                ACTIVATIONS.index(a["activation"]))  # fmt: skip
    low.add(node, step, weight.numel() * y.H * y.W, (low.view(a["x"]), low.view(a["residual"])), weight.numel())


def linear(low: Lowering, node: fx.Node) -> None:
    x, weight, bias = (*node.args, None)[:3]
    matrix = low.tensor(weight)
    map_shape = low.flattened.get(x)
    if map_shape is not None:  # the columns follow the channels-last order of the map
        matrix = matrix.reshape(-1, *map_shape).permute(0, 2, 3, 1)
    y = low.result(node)
    kind, packed = product(low, matrix)
    step = kind(
        low.number(x), low.builder.number(y), NONE, NONE, packed, low.vector(low.tensor(bias)), NONE, NONE, 0, 0
    )
    low.add(node, step, matrix.numel(), (low.view(x),), matrix.numel(), "linear")
