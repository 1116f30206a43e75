# SPDX-License-Identifier: Apache-2.0
"""conv_bn_act in plain torch: for devices without a compiled kernel, and for second derivatives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks
from .activation import _TORCH, _TORCH_BACKWARD


def accumulator(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def _per_channel(vector: Tensor, like: Tensor) -> Tensor:
    return vector.to(accumulator(like)).view(1, -1, 1, 1)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int],
              dilation: Sequence[int], groups: int) -> Tensor:
    left, right, top, bottom = _checks.resolve_padding(padding, x.shape[2:], weight.shape[2:], stride, dilation)
    if left != right or top != bottom:
        x, left, top = F.pad(x, (left, right, top, bottom)), 0, 0
    return torch.conv2d(x, weight, None if bias is None else bias.to(x.dtype), stride, (top, left), dilation, groups)


def _finish(z: Tensor, mean: Tensor | None, invstd: Tensor | None, bn_weight: Tensor | None, bn_bias: Tensor | None,
            residual: Tensor | None, activation: str) -> Tensor:
    y = z.to(accumulator(z))
    if mean is not None:
        y = (y - _per_channel(mean, z)) * _per_channel(invstd, z)
    if bn_weight is not None:
        y = y * _per_channel(bn_weight, z)
    if bn_bias is not None:
        y = y + _per_channel(bn_bias, z)
    if residual is not None:
        y = y + residual
    return _TORCH[activation](y).to(z.dtype)


def differentiable(x, weight, bias, bn_weight, bn_bias, running_mean, running_var, residual, stride, padding, dilation,
                   groups, eps, activation):
    z = _convolve(x, weight, bias, stride, padding, dilation, groups)
    invstd = None if running_var is None else torch.rsqrt(running_var.to(accumulator(x)) + eps)
    return _finish(z, running_mean, invstd, bn_weight, bn_bias, residual, activation)


def differentiable_train(x, weight, bias, bn_weight, bn_bias, running_mean, running_var, residual, stride, padding,
                         dilation, groups, momentum, eps, activation):
    z = _convolve(x, weight, bias, stride, padding, dilation, groups)
    wide, count = z.to(accumulator(z)), z.numel() // max(z.shape[1], 1)
    if count == 0:  # nothing was seen: the running statistics stay
        mean, variance, momentum = wide.new_zeros(z.shape[1]), wide.new_zeros(z.shape[1]), 0.0
    else:
        mean = wide.mean((0, 2, 3))
        variance = (wide - mean.view(1, -1, 1, 1)).square().mean((0, 2, 3))
    invstd = torch.rsqrt(variance + eps)
    y = _finish(z, mean, invstd, bn_weight, bn_bias, residual, activation)
    if running_mean is None:
        return y, z, mean, invstd, z.new_empty(0), z.new_empty(0)
    unbiased = variance * (count / max(count - 1, 1))
    pairs = ((running_mean.to(mean.dtype), mean), (running_var.to(mean.dtype), unbiased))
    new_mean, new_var = (old + momentum * (new - old) for old, new in pairs)
    return y, z, mean, invstd, new_mean.to(running_mean.dtype), new_var.to(running_var.dtype)


def _in_format_of(x: Tensor, y: Tensor) -> Tensor:
    return _checks.empty_like_format(x, y.shape).copy_(y)


def forward(x: Tensor, *arguments) -> Tensor:
    return _in_format_of(x, differentiable(x, *arguments))


def train(x: Tensor, *arguments) -> tuple[Tensor, ...]:
    y, z, *statistics = differentiable_train(x, *arguments)
    return _in_format_of(x, y), _in_format_of(x, z), *statistics


def backward(grad, x, weight, z, bias, bn_weight, bn_bias, mean, invstd, residual, stride, padding, dilation, groups,
             training, activation, mask):
    if z is None:
        z = _convolve(x, weight, bias, stride, padding, dilation, groups)
    normalised = z.to(accumulator(x))
    if mean is not None:
        normalised = (normalised - _per_channel(mean, x)) * _per_channel(invstd, x)
    before = _finish(normalised, None, None, bn_weight, bn_bias, residual, "identity")
    g = _TORCH_BACKWARD[activation](grad.to(before.dtype), before)
    found = [None] * 6
    if mask[5]:
        found[5] = _in_format_of(x, g.to(x.dtype))
    sum_g, sum_g_normalised = g.sum((0, 2, 3)), (g * normalised).sum((0, 2, 3))
    if mask[4]:
        found[4] = sum_g.to(bn_bias.dtype)
    if mask[3]:
        found[3] = sum_g_normalised.to(bn_weight.dtype)
    if training and g.numel() > 0:
        mean_g = (_per_channel(sum_g, x) + normalised * _per_channel(sum_g_normalised, x)) / (g.numel() // g.shape[1])
        g = g - mean_g
    for factor in (invstd, bn_weight):
        if factor is not None:
            g = g * _per_channel(factor, x)
    if mask[2]:  # batch norm takes the mean of the batch away, and with it what a bias adds
        found[2] = (torch.zeros_like(sum_g) if training else g.sum((0, 2, 3))).to(bias.dtype)
    if mask[0] or mask[1]:
        left, right, top, bottom = _checks.resolve_padding(padding, x.shape[2:], weight.shape[2:], stride, dilation)
        padded = F.pad(x, (left, right, top, bottom))
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            g.to(x.dtype), padded, weight, None, stride, [0, 0], dilation, False, [0, 0], groups,
            [mask[0], mask[1], False])  # fmt: skip
        if mask[0]:
            found[0] = _in_format_of(x, grad_x[:, :, top:top + x.shape[2], left:left + x.shape[3]])
        if mask[1]:
            found[1] = _in_format_of(weight, grad_weight)
    return tuple(x.new_empty(0) if value is None else value for value in found)


def _output_shape(x, weight, stride, padding, dilation):
    four = _checks.resolve_padding(padding, x.shape[2:], weight.shape[2:], stride, dilation)
    return (x.shape[0], weight.shape[0],
            *_checks.conv_output_size(x.shape[2:], weight.shape[2:], stride, four, dilation))


def fake(x, weight, bias, bn_weight, bn_bias, running_mean, running_var, residual, stride, padding, dilation, *rest):
    return _checks.empty_like_format(x, _output_shape(x, weight, stride, padding, dilation))


def fake_train(x, weight, bias, bn_weight, bn_bias, running_mean, running_var, residual, stride, padding, dilation,
               *rest):
    shape = _output_shape(x, weight, stride, padding, dilation)
    y, z = (_checks.empty_like_format(x, shape) for _ in range(2))
    mean, invstd = (x.new_empty(shape[1], dtype=accumulator(x)) for _ in range(2))
    new = [x.new_empty(0) if old is None else old.new_empty(shape[1]) for old in (running_mean, running_var)]
    return y, z, mean, invstd, *new


def fake_backward(grad, x, weight, z, bias, bn_weight, bn_bias, *rest):
    mask = rest[-1]
    none = [x.new_empty(0) for _ in range(6)]
    vectors = [v.new_empty(v.shape) if needed else unused
               for v, needed, unused in zip((bias, bn_weight, bn_bias), mask[2:5], none)]
    wanted = (
        (x, x.shape, mask[0], none[3]), (weight, weight.shape, mask[1], none[4]), (x, grad.shape, mask[5], none[5]),
    )  # fmt: skip
    maps = [_checks.empty_like_format(like, shape) if needed else unused for like, shape, needed, unused in wanted]
    return maps[0], maps[1], *vectors, maps[2]
