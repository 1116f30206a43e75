# SPDX-License-Identifier: Apache-2.0
"""Max pooling over windows, without an index tensor: the backward finds the maxima again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks
from ._register import no_double_backward, register, register_autograd

_NAME = "max_pool2d"
_MOST_PIXELS = 2**24  # of a window: the kernels count them in float32


def max_pool2d_reference(x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool) -> Tensor:
    y = _fake(x, kernel_size, stride, padding, ceil_mode)
    return y.copy_(F.max_pool2d(x, kernel_size, stride, padding, 1, ceil_mode)) if y.numel() else y


def max_pool2d_backward_reference(grad: Tensor, x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int],
                                  ceil_mode: bool) -> Tensor:
    grad_x, window = _fake_backward(grad, x), (kernel_size, stride, padding, (1, 1), ceil_mode)
    if x.numel() == 0:
        return grad_x
    wide = torch.promote_types(x.dtype, torch.float32)  # torch's own sums the windows over a pixel in half precision
    x, grad = x.to(wide).contiguous(), grad.to(wide).contiguous()
    _, indices = torch.ops.aten.max_pool2d_with_indices(x, *window)
    return grad_x.copy_(torch.ops.aten.max_pool2d_with_indices_backward(grad, x, *window, indices))


def output_size(size: int, kernel_size: int, stride: int, padding: int, ceil_mode: bool) -> int:
    """torch's: a last window that hangs over the end has to begin within the input or its left padding."""
    out = (size + 2 * padding - kernel_size + (stride - 1 if ceil_mode else 0)) // stride + 1
    return out - 1 if ceil_mode and (out - 1) * stride >= size + padding else out


def _fake(x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool) -> Tensor:
    size = (output_size(x.shape[2 + d], kernel_size[d], stride[d], padding[d], ceil_mode) for d in (0, 1))
    return _checks.empty_like_format(x, (*x.shape[:2], *size))


def _fake_backward(grad: Tensor, x: Tensor, *window: object) -> Tensor:
    return _checks.empty_like_format(x, x.shape)


_op = register(_NAME, max_pool2d_reference, _fake)
_op_backward = register(f"{_NAME}_backward", max_pool2d_backward_reference, _fake_backward)
register_autograd(_op, lambda needs, inputs, outputs, grads: (_op_backward(grads[0], *inputs), *[None] * 4), max_pool2d_reference)
no_double_backward(_op_backward)


def max_pool2d(x: Tensor, kernel_size: int | Sequence[int], stride: int | Sequence[int] | None = None, padding: int | Sequence[int] = 0,
               dilation: int | Sequence[int] = 1, ceil_mode: bool = False) -> Tensor:
    """The maximum of each window, as ``F.max_pool2d``: padding counts as -inf, a NaN makes its windows NaN.

    No index is stored, forward or for the backward: that reads ``x`` again, and gives the gradient to the pixel that torch gives it to,
    the first maximum of a window in row order, or its last NaN.

    Args:
        x: ``[N, C, H, W]``, or ``[C, H, W]`` without a batch, with at least one pixel.
        kernel_size: an int or (h, w).
        stride: an int or (h, w); ``None`` is ``kernel_size``.
        padding: an int or (h, w), at most half of ``kernel_size``.
        dilation: 1. Nothing in the collection pools with another: use ``torch.nn.functional.max_pool2d`` for it.
        ceil_mode: whether a last window may hang over the end of ``x``.
    Returns: ``[N, C, Ho, Wo]`` in the dtype of ``x``.
    Memory format: as ``x`` (contiguous or channels_last). Dtypes: float32, float64, float16, bfloat16; autocast leaves them, as torch's
    pool. Determinism: bitwise, backward included: each pixel gathers from the windows over it, in their order, in float32 (float64 for
    float64).
    Raises: TypeError or ValueError naming the argument that does not fit.
    Source: torch.nn.functional.max_pool2d.

    >>> fastcnn.ops.max_pool2d(torch.arange(16.).view(1, 1, 4, 4), 3, 2, 1).flatten().tolist()
    [5.0, 7.0, 13.0, 15.0]
    """
    if isinstance(x, Tensor) and x.dim() == 3:
        return max_pool2d(x.unsqueeze(0), kernel_size, stride, padding, dilation, ceil_mode).squeeze(0)
    _checks.check_input(_NAME, "x", x, 4)
    if x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(f"{_NAME}: x must have at least one pixel, got {_checks.shape_text(x)}")
    kernel = _checks.pair(_NAME, "kernel_size", kernel_size, 1)
    steps = kernel if stride is None else _checks.pair(_NAME, "stride", stride, 1)
    pads = _checks.pair(_NAME, "padding", padding, 0)
    if _checks.pair(_NAME, "dilation", dilation, 1) != (1, 1):
        raise ValueError(f"{_NAME}: dilation must be 1, got {dilation!r}; torch.nn.functional.max_pool2d takes others")
    if not isinstance(ceil_mode, bool):
        raise TypeError(f"{_NAME}: ceil_mode must be a bool, got {type(ceil_mode).__name__}")
    if kernel[0] * kernel[1] > _MOST_PIXELS:
        raise ValueError(f"{_NAME}: kernel_size must be at most 2^24 pixels, got {kernel_size!r}")
    if pads[0] > kernel[0] // 2 or pads[1] > kernel[1] // 2:
        raise ValueError(f"{_NAME}: padding must be at most half of kernel_size = {kernel_size!r}, got {padding!r}")
    padded = [x.shape[2 + d] + 2 * pads[d] for d in (0, 1)]
    hanging = [step - 1 if ceil_mode else 0 for step in steps]
    if padded[0] + hanging[0] < kernel[0] or padded[1] + hanging[1] < kernel[1]:
        got = f"{kernel[0]}x{kernel[1]} for {padded[0]}x{padded[1]}"
        raise ValueError(f"{_NAME}: kernel_size must fit the padded input, got {got}")
    return _op(x, kernel, steps, pads, ceil_mode)
