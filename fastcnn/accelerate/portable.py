# SPDX-License-Identifier: Apache-2.0
"""The rewritten program on ATen's operators alone: batch norm folded, nothing of ours in it. For TensorRT, ONNX, mobile."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx

from fastcnn.ops._checks import SAME, resolve_padding

from .program import add_tensor, aten, emit, is_op, replace, shape, tensor_of, value

_ACTIVATIONS: dict[str, tuple] = {
    "relu": (aten.relu.default,),
    "relu6": (aten.hardtanh.default, 0.0, 6.0),
    "hardswish": (aten.hardswish.default,),
    "hardsigmoid": (aten.hardsigmoid.default,),
    "silu": (aten.silu.default,),
    "sigmoid": (aten.sigmoid.default,),
}
Call = Callable[..., fx.Node]


def to_aten(program: fx.GraphModule) -> int:
    """Returns: the number of our operators that were replaced; none is left."""
    count = 0
    for node in list(program.graph.nodes):
        if node._erased or getattr(node.target, "namespace", None) != "fastcnn":
            continue

        def call(target: Any, *args: Any, node: fx.Node = node) -> fx.Node:
            return emit(program, node, target, args, like=node)

        name = node.target._opname
        new = LOWER[name](program, call, node, *node.args)
        if is_op(next(iter(node.users), None), operator.getitem):
            for user in list(node.users):
                replace(program, user, new[user.args[1]] if isinstance(new, tuple) else new)
        else:
            replace(program, node, new)
        count += 1
    program.graph.eliminate_dead_code()
    return count


def _activate(call: Call, x: fx.Node, kind: str) -> fx.Node:
    if kind == "identity":
        return x
    target, *rest = _ACTIVATIONS[kind]
    return call(target, x, *rest)


def _finish(call: Call, y: fx.Node, residual: fx.Node | None, kind: str) -> fx.Node:
    return _activate(call, y if residual is None else call(aten.add.Tensor, y, residual), kind)


def _convolution(call: Call, x: fx.Node, weight: fx.Node, bias: fx.Node | None, stride: Any, padding: Any, dilation: Any,
                 groups: int) -> fx.Node:  # fmt: skip
    if tuple(padding) == SAME:
        if not all(isinstance(extent, int) for extent in shape(x)[2:]):
            raise ValueError(
                "accelerate: portable needs a fixed size for a convolution with SAME padding: leave dynamic_size"
            )
        padding = resolve_padding(padding, shape(x)[2:], shape(weight)[2:], stride, dilation)
    left, right, top, bottom = padding
    if left != right or top != bottom:
        x, left, top = call(aten.constant_pad_nd.default, x, [left, right, top, bottom], 0.0), 0, 0
    return call(aten.conv2d.default, x, weight, bias, list(stride), [top, left], list(dilation), groups)


def _conv(
    program: fx.GraphModule, call: Call, node: fx.Node, x: fx.Node, weight: fx.Node, bias: fx.Node | None, *rest: Any
) -> fx.Node:
    residual, stride, padding, dilation, groups, _, kind = rest[4:]
    return _finish(call, _convolution(call, x, weight, bias, stride, padding, dilation, groups), residual, kind)


def _depthwise(program: fx.GraphModule, call: Call, node: fx.Node, x: fx.Node, weight: fx.Node, bias: fx.Node | None,
               residual: fx.Node | None, stride: Any, padding: Any, dilation: Any, kind: str) -> fx.Node:  # fmt: skip
    return _finish(call, _convolution(call, x, weight, bias, stride, padding, dilation, shape(x)[1]), residual, kind)


def _batch_norm(program: fx.GraphModule, call: Call, node: fx.Node, x: fx.Node, mean: fx.Node, var: fx.Node, weight: fx.Node | None,
                bias: fx.Node | None, residual: fx.Node | None, eps: float, kind: str) -> fx.Node:  # fmt: skip
    y = call(aten.batch_norm.default, x, weight, bias, mean, var, False, 0.1, eps, False)
    return _finish(call, y, residual, kind)


def _matrix(program: fx.GraphModule, call: Call, weight: fx.Node) -> fx.Node:
    """As the weight of a 1x1 convolution."""
    found = tensor_of(program, weight)
    if value(weight).dim() == 4:
        return weight
    if found is None:
        return call(aten.reshape.default, weight, [*shape(weight), 1, 1])
    return add_tensor(program, weight.target, found[:, :, None, None])


def _gate(program: fx.GraphModule, call: Call, x: fx.Node, w1: fx.Node, b1: fx.Node, w2: fx.Node, b2: fx.Node, kind: str,
          gate: str) -> fx.Node:  # fmt: skip
    y = call(aten.mean.dim, x, [2, 3], True)
    for weight, bias, each in ((w1, b1, kind), (w2, b2, gate)):
        y = _activate(call, call(aten.conv2d.default, y, _matrix(program, call, weight), bias), each)
    return y


def _se_scale(program: fx.GraphModule, call: Call, node: fx.Node, x: fx.Node, *rest: Any) -> fx.Node:
    return call(aten.mul.Tensor, x, _gate(program, call, x, *rest))


def _se_gate(program: fx.GraphModule, call: Call, node: fx.Node, x: fx.Node, *rest: Any) -> fx.Node:
    return call(aten.reshape.default, _gate(program, call, x, *rest), [-1, shape(x)[1]])


def _depthwise_se_gate(program: fx.GraphModule, call: Call, node: fx.Node, x: fx.Node, weight: fx.Node, bias: fx.Node | None,
                       *rest: Any) -> tuple[fx.Node, fx.Node]:  # fmt: skip
    (w1, b1, w2, b2), (stride, padding, dilation, kind, squeeze, gate) = rest[:4], rest[4:]
    y = _depthwise(program, call, node, x, weight, bias, None, stride, padding, dilation, kind)
    return y, _se_gate(program, call, node, y, w1, b1, w2, b2, squeeze, gate)


def _pointwise(program: fx.GraphModule, call: Call, node: fx.Node, x: fx.Node, weight: fx.Node, bias: fx.Node | None,
               residual: fx.Node | None, gate: fx.Node | None, scale: fx.Node | None, shift: fx.Node | None, prologue: str,
               kind: str) -> fx.Node:  # fmt: skip
    for vector, target in ((scale, aten.mul.Tensor), (shift, aten.add.Tensor)):
        if vector is not None:
            found = tensor_of(program, vector).view(1, -1, 1, 1).to(value(x).dtype)
            x = call(target, x, add_tensor(program, vector.target, found))
    x = _activate(call, x, prologue)
    if gate is not None:
        x = call(aten.mul.Tensor, x, call(aten.reshape.default, gate, [-1, shape(x)[1], 1, 1]))
    return _finish(call, call(aten.conv2d.default, x, weight, bias), residual, kind)


def _shuffle(program: fx.GraphModule, call: Call, node: fx.Node, x: fx.Node, groups: int) -> fx.Node:
    n, channels, h, w = (extent if isinstance(extent, int) else -1 for extent in shape(x))
    if (h, w).count(-1) and n == -1:
        return call(aten.channel_shuffle.default, x, groups)
    y = call(aten.reshape.default, x, [n, groups, channels // groups, h, w])
    return call(aten.reshape.default, call(aten.permute.default, y, [0, 2, 1, 3, 4]), [n, channels, h, w])


def _shuffle_concat(program: fx.GraphModule, call: Call, node: fx.Node, a: fx.Node, b: fx.Node) -> fx.Node:
    return _shuffle(program, call, node, call(aten.cat.default, [a, b], 1), 2)


def _max_pool(program: fx.GraphModule, call: Call, node: fx.Node, x: fx.Node, kernel: Any, stride: Any, padding: Any,
              ceil_mode: bool) -> fx.Node:  # fmt: skip
    return call(aten.max_pool2d.default, x, list(kernel), list(stride), list(padding), [1, 1], ceil_mode)


LOWER: dict[str, Callable[..., fx.Node | tuple[fx.Node, ...]]] = {
    "activation": lambda program, call, node, x, kind: _activate(call, x, kind),
    "batch_norm_act": _batch_norm,
    "channel_shuffle": _shuffle,
    "channel_shuffle_concat": _shuffle_concat,
    "conv_bn_act": _conv,
    "depthwise_conv2d": _depthwise,
    "depthwise_se_gate": _depthwise_se_gate,
    "global_avg_pool": lambda program, call, node, x: call(aten.mean.dim, x, [2, 3], True),
    "hardswish": lambda program, call, node, x: _activate(call, x, "hardswish"),
    "max_pool2d": _max_pool,
    "pointwise_conv2d": _pointwise,
    "se_gate": _se_gate,
    "se_scale": _se_scale,
}
