# SPDX-License-Identifier: Apache-2.0
"""Channel shuffle and its inverse (ShuffleNet, arXiv:1707.01083)."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks
from ._register import register, register_autograd


def channel_shuffle_reference(x: Tensor, groups: int) -> Tensor:
    channels = x.shape[1]
    mixed = x.unflatten(1, (groups, channels // groups)).transpose(1, 2).flatten(1, 2)
    return _checks.empty_like_format(x, x.shape).copy_(mixed)


def _fake(x: Tensor, groups: int) -> Tensor:
    return _checks.empty_like_format(x, x.shape)


def _backward(needs: tuple, inputs: list, outputs: tuple, grads: tuple) -> tuple[Tensor, None]:
    return _op(grads[0], _inverse(grads[0], inputs[1])), None


def _inverse(x: Tensor, groups: int) -> int:
    return max(x.shape[1] // groups, 1)


_op = register("channel_shuffle", channel_shuffle_reference, _fake)
register_autograd(_op, _backward, channel_shuffle_reference, drop=lambda *inputs: (0,))


def channel_shuffle(x: Tensor, groups: int, inverse: bool = False) -> Tensor:
    """Interleave the channels of ``groups`` groups: output channel ``i * groups + g`` is input channel ``g * (C // groups) + i``.

    Args:
        x: ``[N, C, H, W]``, or any ``[N, C, *]`` of 3 dimensions or more.
        groups: divides ``C``.
        inverse: undo the shuffle with the same ``groups``.
    Returns: the shape and dtype of ``x``; a copy, bitwise equal up to order.
    Memory format: contiguous or channels_last (channels_last_3d for 5-D), as ``x``. Dtypes: float32, float64, float16, bfloat16.
    Determinism: bitwise.
    Raises: ValueError when ``groups`` does not divide ``C``, naming both, or for fewer than 3 dimensions; TypeError for a tensor that is not
    dense and floating.
    Source: ShuffleNet, arXiv:1707.01083, sec. 3.1.

    >>> fastcnn.ops.channel_shuffle(torch.arange(6.).view(1, 6, 1, 1), 2).flatten().tolist()
    [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
    """
    _checks.check_input("channel_shuffle", "x", x)
    shape = x.shape
    if len(shape) < 3:
        raise ValueError(f"channel_shuffle: x must have at least 3 dimensions [N, C, *], got {_checks.shape_text(x)}")
    if not isinstance(groups, int) or isinstance(groups, bool):
        raise TypeError(f"channel_shuffle: groups must be an int, got {type(groups).__name__}")
    if groups < 1 or shape[1] % groups:
        raise ValueError(f"channel_shuffle: groups must be positive and divide C = {shape[1]}, got {groups}")
    if inverse:
        groups = _inverse(x, groups)
    if len(shape) == 5 and x.is_contiguous(memory_format=torch.channels_last_3d):
        return _op(x.flatten(3), groups).view(shape)
    return _op(x, groups)


def channel_shuffle_concat_reference(x1: Tensor, x2: Tensor) -> Tensor:
    shape = (x1.shape[0], 2 * x1.shape[1], *x1.shape[2:])
    return _checks.empty_like_format(x1, shape).copy_(torch.stack((x1, x2), dim=2).flatten(1, 2))


def _concat_fake(x1: Tensor, x2: Tensor) -> Tensor:
    return _checks.empty_like_format(x1, (x1.shape[0], 2 * x1.shape[1], *x1.shape[2:]))


def _concat_backward(needs: tuple, inputs: list, outputs: tuple, grads: tuple) -> tuple[Tensor, Tensor]:
    grad = grads[0]
    return _op(grad, _inverse(grad, 2)).chunk(2, dim=1)


_concat = register("channel_shuffle_concat", channel_shuffle_concat_reference, _concat_fake)
register_autograd(_concat, _concat_backward, channel_shuffle_concat_reference, drop=lambda *inputs: (0, 1))


def channel_shuffle_concat(x1: Tensor, x2: Tensor) -> Tensor:
    """``channel_shuffle(torch.cat((x1, x2), 1), groups=2)`` in one pass: channels ``2 i`` are those of ``x1``, ``2 i + 1`` of ``x2``.

    The end of a ShuffleNetV2 unit. A half of a split (``x.chunk(2, dim=1)``) is read where it lies.

    Args:
        x1, x2: ``[N, C, H, W]``, one shape, dtype and device.
    Returns: ``[N, 2 C, H, W]``; a copy, bitwise equal up to order.
    Memory format: that of ``x1``. Dtypes: float32, float64, float16, bfloat16. Determinism: bitwise.
    Raises: ValueError for other ranks, shapes or devices; TypeError for another dtype or a tensor that is not dense and floating.
    Source: ShuffleNetV2, arXiv:1807.11164, figure 3.

    >>> fastcnn.ops.channel_shuffle_concat(torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1)).flatten().tolist()
    [0.0, 1.0, 0.0, 1.0]
    """
    name = "channel_shuffle_concat"
    _checks.check_input(name, "x1", x1, 4)
    _checks.check_input(name, "x2", x2, 4)
    if x2.shape != x1.shape:
        raise ValueError(f"{name}: x2 must have the shape of x1, {_checks.shape_text(x1)}, got {_checks.shape_text(x2)}")
    if x2.dtype != x1.dtype:
        raise TypeError(f"{name}: x2 must have the dtype of x1, {x1.dtype}, got {x2.dtype}")
    if x2.device != x1.device:
        raise ValueError(f"{name}: x2 must be on the device of x1, {x1.device}, got {x2.device}")
    return _concat(x1, x2)
