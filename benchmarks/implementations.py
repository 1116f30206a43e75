# SPDX-License-Identifier: Apache-2.0
"""For one recorded call: our op through its public page, and what a torch user writes in its place, on the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import fastcnn
from benchmarks.shapes import Call, TensorSpec
from fastcnn.reference import WrongOutput, relative_error

_IN_PLACE = {"identity": lambda y: y, "relu": F.relu_, "relu6": lambda y: F.relu6(y, inplace=True), "hardswish": lambda y: F.hardswish(y, inplace=True),
             "hardsigmoid": lambda y: F.hardsigmoid(y, inplace=True), "silu": lambda y: F.silu(y, inplace=True), "sigmoid": torch.sigmoid_}
_WEIGHTS = {"conv_bn_act": (1,), "depthwise_conv2d": (1,), "pointwise_conv2d": (1,), "se_gate": (1, 3),
            "se_scale": (1, 3), "depthwise_se_gate": (1, 3, 5)}  # positions among the op's arguments
_FRESH = {"relu": F.relu, "relu6": F.relu6, "silu": F.silu, "sigmoid": torch.sigmoid, "hardsigmoid": F.hardsigmoid}


class Pair(NamedTuple):
    """The two callables, the bytes that must move (each tensor once) and the multiply-adds."""

    fastcnn: Callable[[], Tensor]
    torch: Callable[[], Tensor]
    bytes: int
    macs: int


def assert_equal(call: Call, pair: Pair) -> None:
    """Nothing wrong is timed: the two agree within 1e-5 of the largest value, in half precision within 4 units of the mantissa."""
    ours = pair.fastcnn()
    error, allowed = relative_error(ours, pair.torch()), 1e-5 if ours.dtype == torch.float32 else 4 * torch.finfo(ours.dtype).eps
    if not error <= allowed:
        raise WrongOutput(f"{call.op} {call.label}: differs from torch by {error:.1e} (allowed: {allowed:.1e}); it is not timed")


def build(call: Call, dtype: torch.dtype = torch.float32, memory_format: torch.memory_format = torch.channels_last,
          device: str = "cpu", compute: torch.dtype | None = None) -> Pair:  # fmt: skip
    """Random tensors of the call's shapes; BN statistics away from 0 and 1. ``compute``: the same values in that dtype."""
    generator = torch.Generator(device).manual_seed(0)

    def tensor(spec: TensorSpec) -> Tensor:
        value = torch.randn(spec.shape, generator=generator, device=device).to(dtype)
        return value.contiguous(memory_format=memory_format) if value.dim() == 4 else value

    arguments = [tensor(a) if isinstance(a, TensorSpec) else a for a in call.arguments]
    for i in _WEIGHTS.get(call.op, ()):
        arguments[i] *= arguments[i][0].numel() ** -0.5  # as nets are initialised: outputs of the size of the inputs
    if call.op in ("conv_bn_act", "batch_norm_act"):
        variance = 6 if call.op == "conv_bn_act" else 2
        if arguments[variance] is not None:
            arguments[variance] = arguments[variance].abs() + 0.5
    arguments = [a.to(compute or dtype) if isinstance(a, Tensor) else a for a in arguments]
    ours, theirs = _BUILDERS[call.op](*arguments)
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    moved = sum(t.numel() * t.element_size() for t in tensors) + torch.Size(call.output).numel() * tensors[0].element_size()
    macs = 0
    if call.op in ("conv_bn_act", "depthwise_conv2d", "depthwise_se_gate", "pointwise_conv2d"):
        macs = torch.Size(call.output).numel() * arguments[1][0].numel()
    return Pair(ours, theirs, moved, macs)


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple, padding: tuple, dilation: tuple, groups: int) -> Tensor:
    left, right, top, bottom = padding
    if left == right and top == bottom:
        return F.conv2d(x, weight, bias, stride, (top, left), dilation, groups)
    return F.conv2d(F.pad(x, padding), weight, bias, stride, 0, dilation, groups)


def _resolved(x: Tensor, weight: Tensor, stride: tuple, padding: tuple, dilation: tuple) -> tuple:
    from fastcnn.ops._checks import resolve_padding

    return resolve_padding(padding, x.shape[2:], weight.shape[2:], stride, dilation)


def _conv_bn_act(x, weight, bias, bn_weight, bn_bias, mean, var, residual, stride, padding, dilation, groups, eps, activation):
    four = _resolved(x, weight, stride, padding, dilation)
    padding = "same" if padding == (-1, -1, -1, -1) else padding
    act = _IN_PLACE[activation]

    def theirs() -> Tensor:
        y = _conv2d(x, weight, bias, stride, four, dilation, groups)
        if mean is not None:
            y = F.batch_norm(y, mean, var, bn_weight, bn_bias, False, 0.1, eps)
        return act(y if residual is None else y + residual)

    return lambda: fastcnn.ops.conv_bn_act(x, weight, bn_weight, bn_bias, mean, var, bias, residual, stride, padding, dilation, groups, False, 0.1,
                                           eps, activation), theirs


def _depthwise(x, weight, bias, residual, stride, padding, dilation, activation):
    four = _resolved(x, weight, stride, padding, dilation)
    padding = "same" if padding == (-1, -1, -1, -1) else padding
    return (lambda: fastcnn.ops.depthwise_conv2d(x, weight, bias, stride, padding, dilation, activation, residual),
            lambda: _conv2d(x, weight, bias, stride, four, dilation, x.shape[1]))


def _batch_norm_act(x, mean, var, weight, bias, residual, eps, activation):
    act = _IN_PLACE[activation]

    def theirs() -> Tensor:
        y = F.batch_norm(x, mean, var, weight, bias, False, 0.1, eps)
        return act(y if residual is None else y + residual)

    return lambda: fastcnn.ops.batch_norm_act(x, mean, var, weight, bias, residual, False, 0.1, eps, activation), theirs


def _channel_shuffle(x, groups):
    n, c, h, w = x.shape
    memory_format = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format

    def theirs() -> Tensor:  # torchvision's spelling, with the memory format kept
        return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w).contiguous(memory_format=memory_format)

    return lambda: fastcnn.ops.channel_shuffle(x, groups), theirs


def _channel_shuffle_concat(x1, x2):
    n, c, h, w = x1.shape
    memory_format = torch.channels_last if x1.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format

    def theirs() -> Tensor:
        y = torch.cat((x1, x2), dim=1)
        return y.view(n, 2, c, h, w).transpose(1, 2).reshape(n, 2 * c, h, w).contiguous(memory_format=memory_format)

    return lambda: fastcnn.ops.channel_shuffle_concat(x1, x2), theirs


def _pointwise(x, weight, bias, residual, gate, scale, shift, prologue, activation):
    mean, var = (None, None) if scale is None else (torch.zeros_like(scale), torch.ones_like(scale))

    def theirs() -> Tensor:
        z = x if scale is None else F.batch_norm(x, mean, var, scale, shift, False, 0.1, 0.0)
        if prologue != "identity":
            z = _IN_PLACE[prologue](z.clone() if z is x else z)
        y = F.conv2d(z if gate is None else z * gate[:, :, None, None], weight, bias)
        return _IN_PLACE[activation](y if residual is None else y + residual)

    return lambda: fastcnn.ops.pointwise_conv2d(x, weight, bias, residual, gate, scale, shift, prologue, activation), theirs


def _se_gate(x, w1, b1, w2, b2, activation, gate):
    m1, m2 = (w.reshape(*w.shape[:2], 1, 1) for w in (w1, w2))

    def theirs() -> Tensor:
        s = F.adaptive_avg_pool2d(x, 1)
        return _IN_PLACE[gate](F.conv2d(_IN_PLACE[activation](F.conv2d(s, m1, b1)), m2, b2)).flatten(1)

    # in torch's dtype, to be compared: nothing to do in float32
    return lambda: fastcnn.ops.se_gate(x, w1, b1, w2, b2, activation, gate).to(x.dtype), theirs


def _depthwise_se_gate(x, weight, bias, w1, b1, w2, b2, stride, padding, dilation, activation, squeeze, gate):
    four = _resolved(x, weight, stride, padding, dilation)
    padding = "same" if padding == (-1, -1, -1, -1) else padding
    m1, m2 = (w.reshape(*w.shape[:2], 1, 1) for w in (w1, w2))

    def ours() -> Tensor:
        _, scale = fastcnn.ops.depthwise_se_gate(x, weight, bias, w1, b1, w2, b2, stride, padding, dilation, activation, squeeze, gate)
        return scale.to(x.dtype)  # what the map is wrong in shows in its means

    def theirs() -> Tensor:
        y = _IN_PLACE[activation](_conv2d(x, weight, bias, stride, four, dilation, x.shape[1]))
        s = _IN_PLACE[squeeze](F.conv2d(F.adaptive_avg_pool2d(y, 1), m1, b1))
        return _IN_PLACE[gate](F.conv2d(s, m2, b2)).flatten(1)

    return ours, theirs


def _se_scale(x, w1, b1, w2, b2, activation, gate):
    w1, w2 = (w.reshape(*w.shape[:2], 1, 1) for w in (w1, w2))

    def theirs() -> Tensor:
        s = F.adaptive_avg_pool2d(x, 1)
        return x * _IN_PLACE[gate](F.conv2d(_IN_PLACE[activation](F.conv2d(s, w1, b1)), w2, b2))

    return lambda: fastcnn.ops.se_scale(x, w1, b1, w2, b2, activation, gate), theirs


_BUILDERS = {
    "conv_bn_act": _conv_bn_act,
    "depthwise_conv2d": _depthwise,
    "depthwise_se_gate": _depthwise_se_gate,
    "batch_norm_act": _batch_norm_act,
    "channel_shuffle": _channel_shuffle,
    "channel_shuffle_concat": _channel_shuffle_concat,
    "pointwise_conv2d": _pointwise,
    "se_gate": _se_gate,
    "se_scale": _se_scale,
    "global_avg_pool": lambda x: (lambda: fastcnn.ops.global_avg_pool(x), lambda: F.adaptive_avg_pool2d(x, 1)),
    "max_pool2d": lambda x, *window: (lambda: fastcnn.ops.max_pool2d(x, *window[:3], ceil_mode=window[3]),
                                      lambda: F.max_pool2d(x, *window[:3], ceil_mode=window[3])),
    "hardswish": lambda x: (lambda: fastcnn.ops.hardswish(x), lambda: F.hardswish(x)),
    "activation": lambda x, kind: (lambda: fastcnn.ops.activation(x, kind), lambda: _FRESH[kind](x)),
}
OPS = tuple(_BUILDERS)
