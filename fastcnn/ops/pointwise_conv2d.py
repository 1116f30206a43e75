# SPDX-License-Identifier: Apache-2.0
"""A 1x1 convolution that works on its input as it reads it: batch norm and activation in front, or the gate of SE."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import _checks
from ._register import inference_only, register, register_autocast
from .activation import activation_reference

_OP = "pointwise_conv2d"


def pointwise_conv2d_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, gate: Tensor | None, scale: Tensor | None,
    shift: Tensor | None, prologue: str, activation: str,
) -> Tensor:  # fmt: skip
    wide = torch.promote_types(x.dtype, torch.float32)
    z = x.to(wide)
    if scale is not None:
        z = z * scale.to(wide).view(1, -1, 1, 1) + shift.to(wide).view(1, -1, 1, 1)
    z = activation_reference(z, prologue)
    if gate is not None:
        z = z * gate.to(wide)[:, :, None, None]
    y = torch.conv2d(z, weight.to(wide), None if bias is None else bias.to(wide))
    y = activation_reference(y if residual is None else y + residual, activation)
    return _fake(x, weight).copy_(y)


def _fake(x: Tensor, weight: Tensor, *arguments: object) -> Tensor:
    return _checks.empty_like_format(x, (x.shape[0], weight.shape[0], *x.shape[2:]))


def _flops(x: tuple, weight: tuple, *arguments: object, out_shape: tuple, **kwargs: object) -> int:
    return 2 * math.prod(out_shape) * weight[1]


_op = register(_OP, pointwise_conv2d_reference, _fake, _flops)
inference_only(_op, "batch_norm_act or se_scale, and conv_bn_act")
register_autocast(_op, cast=(0, 1, 3))


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, gate: Tensor | None,
           scale: Tensor | None, shift: Tensor | None, prologue: str, activation: str) -> None:  # fmt: skip
    _checks.check_input(_OP, "x", x, 4)
    _checks.check_input(_OP, "weight", weight, 4)
    channels, out_channels = x.shape[1], weight.shape[0]
    if tuple(weight.shape[1:]) != (channels, 1, 1):
        raise ValueError(
            f"{_OP}: weight must be [O, C, 1, 1] for x with C = {channels}, got {_checks.shape_text(weight)}; "
            "conv_bn_act takes other kernels, strides and groups"
        )
    if channels < 1 or out_channels < 1:
        shapes = f"{_checks.shape_text(x)} and {_checks.shape_text(weight)}"
        raise ValueError(f"{_OP}: x and weight must have at least one channel, got {shapes}")
    if x.shape[2] < 1 or x.shape[3] < 1:
        raise ValueError(f"{_OP}: x must have at least one row and one column, got {_checks.shape_text(x)}")
    cast = _checks.autocast_active(x)
    _checks.check_like(_OP, "weight", weight, x, any_dtype=cast)
    shape = (x.shape[0], out_channels, *x.shape[2:])
    _checks.check_like(_OP, "residual", residual, x, shape, f"{list(shape)}, the shape of the output", any_dtype=cast)
    if (scale is None) != (shift is None):
        raise ValueError(
            f"{_OP}: scale and shift must be given together, got only {'shift' if scale is None else 'scale'}"
        )
    per_channel = f"[{channels}], one value per channel of x"
    for name, vector, wanted, text in (
        ("bias", bias, (out_channels,), f"[{out_channels}], one value per output channel"),
        ("gate", gate, tuple(x.shape[:2]), f"[N, C] = {list(x.shape[:2])}, one value per image and channel of x"),
        ("scale", scale, (channels,), per_channel), ("shift", shift, (channels,), per_channel),
    ):  # fmt: skip
        _checks.check_like(_OP, name, vector, x, wanted, text, float32_allowed=True, any_dtype=cast)
    _checks.check_activation(_OP, "prologue", prologue)
    _checks.check_activation(_OP, "activation", activation)


def pointwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, gate: Tensor | None = None,
    scale: Tensor | None = None, shift: Tensor | None = None, prologue: str = "identity", activation: str = "identity",
) -> Tensor:  # fmt: skip
    """1x1 convolution behind a prologue: ``activation(conv(prologue(x * scale + shift) * gate) + bias + residual)``.

    For inference. What stands in front of the convolution happens as it reads ``x``, and is never stored: the batch
    norm and ReLU of DenseNet and of pre-activation nets (as ``scale`` and ``shift``), the gate of
    squeeze-and-excitation (from :func:`se_gate`). Without any of it, this is :func:`conv_bn_act` of a 1x1 kernel.

    Args:
        x: ``[N, C, H, W]`` with at least one pixel.
        weight: ``[O, C, 1, 1]``; stride 1, no padding, one group.
        bias: ``[O]``.
        residual: ``[N, O, H, W]``, added before the activation.
        gate: ``[N, C]``, multiplies what the prologue gives.
        scale, shift: ``[C]``, both or none.
        prologue, activation: names of :func:`activation`.
    Returns: ``[N, O, H, W]`` in the dtype of ``x``.
    Memory format: as ``x`` (contiguous or channels_last).
    Dtypes: float32, float64, float16, bfloat16; accumulated in float32 (float64) and rounded once, by Triton the input
        of the convolution too. bias, gate, scale and shift: the dtype of ``x`` or float32. Under autocast x, weight and
        residual are cast, the others stay.
    Determinism: bitwise for the kernels of ours.
    Raises: ValueError and TypeError naming the argument, what is wanted and what was given; RuntimeError when a
        gradient is asked for.
    Source: DenseNet arXiv:1608.06993, pre-activation arXiv:1603.05027, squeeze-and-excitation arXiv:1709.01507.

    >>> x, weight = torch.tensor([-1., 2.]).view(1, 2, 1, 1), torch.ones(1, 2, 1, 1)
    >>> fastcnn.ops.pointwise_conv2d(x, weight, gate=torch.tensor([[9., 3.]]), prologue="relu").item()
    6.0
    """
    _check(x, weight, bias, residual, gate, scale, shift, prologue, activation)
    return _op(x, weight, bias, residual, gate, scale, shift, prologue, activation)
