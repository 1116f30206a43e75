# SPDX-License-Identifier: Apache-2.0
"""The activations, forward and backward, over dense memory of any rank and format.

A program owns ``BLOCK`` adjacent elements, 8 a thread: one 16-byte access in float16, two in float32. A program whose
elements all exist runs without a mask, so that its accesses are that wide whatever the count. Bytes (s is the size of
an element, tests/triton/test_bytes.py counts them): forward reads x once and writes y once, 2 s an element, backward
3 s. The roof is DRAM bandwidth.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _host
from ._epilogue import activate, slope

_BLOCK = 1024  # 8 elements a thread at the default 4 warps: one 16-byte access in float16, two in float32


@triton.jit
def _activation_forward_kernel(x, y, count, KIND: tl.constexpr, BLOCK: tl.constexpr, COMPUTE: tl.constexpr):
    """Bytes: x 1.00, y 1.00."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    o = first + tl.arange(0, BLOCK)
    if first + BLOCK <= count:
        tl.store(y + o, activate(tl.load(x + o).to(COMPUTE), KIND).to(y.dtype.element_ty))
    else:
        m = o < count
        tl.store(y + o, activate(tl.load(x + o, mask=m).to(COMPUTE), KIND).to(y.dtype.element_ty), mask=m)


@triton.jit
def _activation_backward_kernel(grad, x, y, count, KIND: tl.constexpr, BLOCK: tl.constexpr, COMPUTE: tl.constexpr):
    """Bytes: grad 1.00, x 1.00, y 1.00."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    o = first + tl.arange(0, BLOCK)
    if first + BLOCK <= count:
        b_y = tl.load(grad + o).to(COMPUTE) * slope(tl.load(x + o).to(COMPUTE), KIND)
        tl.store(y + o, b_y.to(y.dtype.element_ty))
    else:
        m = o < count
        b_y = tl.load(grad + o, mask=m).to(COMPUTE) * slope(tl.load(x + o, mask=m).to(COMPUTE), KIND)
        tl.store(y + o, b_y.to(y.dtype.element_ty), mask=m)


def launch_activation(x: Tensor, kind: str) -> Tensor:
    """The activation called ``kind``, in the memory format of x."""
    y = torch.empty_like(x)
    _launch(_activation_forward_kernel, kind, y, x)
    return y


def launch_activation_backward(grad: Tensor, x: Tensor, kind: str) -> Tensor:
    """grad times the derivative at x, in the memory format of x."""
    y = torch.empty_like(x)
    _launch(_activation_backward_kernel, kind, y, grad, x)
    return y


def _launch(kernel: triton.JITFunction, kind: str, y: Tensor, *inputs: Tensor) -> None:
    if y.numel() == 0:
        return
    flat = [x if x.stride() == y.stride() else torch.empty_like(y).copy_(x) for x in inputs]
    constants = {"KIND": kind, "BLOCK": _BLOCK, "COMPUTE": _host.compute_type(y)}
    with torch.cuda.device_of(y):
        kernel[(triton.cdiv(y.numel(), _BLOCK),)](*flat, y, y.numel(), **constants)
