# SPDX-License-Identifier: Apache-2.0
"""Every op once more in the plainest torch: no convolution, batch norm or activation of its own. To run in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("identity", "relu", "relu6", "hardswish", "hardsigmoid", "silu", "sigmoid")


def activation(x: Tensor, kind: str) -> Tensor:
    if kind == "identity":
        return x.clone()
    if kind == "relu":
        return x.clamp(min=0)
    if kind == "relu6":
        return x.clamp(0, 6)
    if kind == "hardsigmoid":
        return (x + 3).clamp(0, 6) / 6
    if kind == "hardswish":
        return x * (x + 3).clamp(0, 6) / 6
    gate = 1 / (1 + torch.exp(-x))
    return gate if kind == "sigmoid" else x * gate


def four_paddings(
    padding: int | str | Sequence[int],
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) of every spelling; "same" by TensorFlow's rule, Ho = ceil(H / stride)."""
    if padding == "valid":
        return (0, 0, 0, 0)
    if padding == "same":
        ends = []
        for d in (1, 0):
            out = (size[d] + stride[d] - 1) // stride[d]
            total = max(0, (out - 1) * stride[d] + (kernel[d] - 1) * dilation[d] + 1 - size[d])
            ends += [total // 2, total - total // 2]
        return tuple(ends)
    if isinstance(padding, int):
        return (padding,) * 4
    return (padding[1], padding[1], padding[0], padding[0]) if len(padding) == 2 else tuple(padding)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """Tap by tap: shift, multiply, add."""
    stride, dilation = _pair(stride), _pair(dilation)
    out, depth, *kernel = weight.shape
    left, right, top, bottom = four_paddings(padding, x.shape[2:], kernel, stride, dilation)
    padded = F.pad(x, (left, right, top, bottom))
    ho, wo = ((padded.shape[2 + d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1 for d in (0, 1))
    y = x.new_zeros(x.shape[0], groups, out // groups, ho, wo)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            top_row, left_column = i * dilation[0], j * dilation[1]
            rows = slice(top_row, top_row + (ho - 1) * stride[0] + 1, stride[0])
            columns = slice(left_column, left_column + (wo - 1) * stride[1] + 1, stride[1])
            taps = padded[:, :, rows, columns].unflatten(1, (groups, depth))
            y = y + torch.einsum("ngchw,goc->ngohw", taps, weight[:, :, i, j].unflatten(0, (groups, out // groups)))
    y = y.flatten(1, 2)
    return y if bias is None else y + bias.view(1, -1, 1, 1)


def convolution_magnitude(x: Tensor, weight: Tensor, bias: Tensor | None = None, *geometry) -> Tensor:
    """The convolution of absolute values: what the rounding of its sums is measured by."""
    return convolution(x.abs(), weight.abs(), None if bias is None else bias.abs(), *geometry)


def batch_norm(
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    eps: float,
) -> Tensor:
    if training:
        mean = x.mean((0, 2, 3))
        var = (x - mean.view(1, -1, 1, 1)).square().mean((0, 2, 3))
    y = (x - mean.view(1, -1, 1, 1)) / (var.view(1, -1, 1, 1) + eps).sqrt()
    if weight is not None:
        y = y * weight.view(1, -1, 1, 1)
    return y if bias is None else y + bias.view(1, -1, 1, 1)


def running(x: Tensor, mean: Tensor, var: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    """The running statistics after a training step on ``x``: the variance there is the unbiased one."""
    values = x.transpose(0, 1).flatten(1)
    return (1 - momentum) * mean + momentum * values.mean(1), (1 - momentum) * var + momentum * values.var(
        1, correction=1
    )


def channel_shuffle(x: Tensor, groups: int, inverse: bool = False) -> Tensor:
    per_group = x.shape[1] // groups
    source = [g * per_group + i for i in range(per_group) for g in range(groups)]
    if inverse:
        source = sorted(range(len(source)), key=source.__getitem__)
    return x[:, source]


def se_scale(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, kind: str = "relu", gate: str = "hardsigmoid"
) -> Tensor:
    hidden = activation(x.mean((2, 3)) @ w1.flatten(1).T + b1, kind)
    return x * activation(hidden @ w2.flatten(1).T + b2, gate)[:, :, None, None]


def global_avg_pool(x: Tensor) -> Tensor:
    return x.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3])
