# SPDX-License-Identifier: Apache-2.0
"""Global average pooling: the mean of each plane."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks
from ._register import no_double_backward, register, register_autograd


def global_avg_pool_reference(x: Tensor) -> Tensor:
    mean = x.to(torch.promote_types(x.dtype, torch.float32)).mean((2, 3), keepdim=True)
    return _fake(x).copy_(mean)


def global_avg_pool_backward_reference(grad: Tensor, x: Tensor) -> Tensor:
    return _fake_backward(grad, x).copy_(grad.to(torch.promote_types(x.dtype, torch.float32)) / (x.shape[2] * x.shape[3]))


def _fake(x: Tensor) -> Tensor:
    return _checks.empty_like_format(x, (*x.shape[:2], 1, 1))


def _fake_backward(grad: Tensor, x: Tensor) -> Tensor:
    return _checks.empty_like_format(x, x.shape)


_op = register("global_avg_pool", global_avg_pool_reference, _fake)
_op_backward = register("global_avg_pool_backward", global_avg_pool_backward_reference, _fake_backward)
register_autograd(_op, lambda needs, inputs, outputs, grads: (_op_backward(grads[0], inputs[0]),), global_avg_pool_reference)
no_double_backward(_op_backward)


def global_avg_pool(x: Tensor) -> Tensor:
    """The mean over H and W of each channel, as ``F.adaptive_avg_pool2d(x, 1)``.

    Args:
        x: ``[N, C, H, W]`` with at least one pixel.
    Returns: ``[N, C, 1, 1]`` in the dtype of ``x``.
    Memory format: as ``x`` (contiguous or channels_last). Dtypes: float32, float64, float16, bfloat16; summed in float32 (float64 for
    float64), in blocks, so that the error does not grow with the number of pixels. Determinism: bitwise.
    Raises: ValueError when x is not 4-D or H * W is 0; TypeError for a tensor that is not dense and floating.

    >>> fastcnn.ops.global_avg_pool(torch.arange(8.).view(1, 2, 2, 2)).flatten().tolist()
    [1.5, 5.5]
    """
    _checks.check_input("global_avg_pool", "x", x, 4)
    if x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(f"global_avg_pool: x must have at least one pixel, got {_checks.shape_text(x)}")
    return _op(x)
