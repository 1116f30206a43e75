# SPDX-License-Identifier: Apache-2.0
"""h-swish, forward and backward, over dense memory.

One read and one write an element (backward two and one): the roof is DRAM bandwidth.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024  # 4 elements a thread at the default 4 warps: 16-byte accesses in float32


@triton.jit
def _hardswish_forward_kernel(x, y, count, BLOCK: tl.constexpr, COMPUTE: tl.constexpr):
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m = o < count
    b_x = tl.load(x + o, mask=m).to(COMPUTE)
    b_y = b_x * tl.minimum(tl.maximum(b_x + 3, 0), 6) * (1 / 6)
    tl.store(y + o, b_y.to(y.dtype.element_ty), mask=m)


@triton.jit
def _hardswish_backward_kernel(grad, x, y, count, BLOCK: tl.constexpr, COMPUTE: tl.constexpr):
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m = o < count
    b_x = tl.load(x + o, mask=m).to(COMPUTE)
    b_grad = tl.load(grad + o, mask=m).to(COMPUTE)
    b_slope = tl.where(b_x <= -3, 0.0, tl.where(b_x >= 3, 1.0, b_x * (1 / 3) + 0.5))
    tl.store(y + o, (b_grad * b_slope).to(y.dtype.element_ty), mask=m)


def launch_hardswish(x: Tensor) -> Tensor:
    """x * relu6(x + 3) / 6, in the memory format of x."""
    y = torch.empty_like(x)
    _launch(_hardswish_forward_kernel, y, x)
    return y


def launch_hardswish_backward(grad: Tensor, x: Tensor) -> Tensor:
    """grad * hardswish'(x), in the memory format of x."""
    y = torch.empty_like(x)
    _launch(_hardswish_backward_kernel, y, grad, x)
    return y


def _launch(kernel: triton.JITFunction, y: Tensor, *inputs: Tensor) -> None:
    if y.numel() == 0:
        return
    compute = tl.float64 if y.dtype is torch.float64 else tl.float32
    dense = [x if x.stride() == y.stride() else torch.empty_like(y).copy_(x) for x in inputs]
    with torch.cuda.device_of(y):
        kernel[(triton.cdiv(y.numel(), _BLOCK),)](*dense, y, y.numel(), BLOCK=_BLOCK, COMPUTE=compute)
