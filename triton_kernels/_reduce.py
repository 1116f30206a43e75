# SPDX-License-Identifier: Apache-2.0
"""Sums over N, H and W, and the second stage of every sum: parts that programs of the first left in float32 (float64
for double) are added in one fixed order, so that results repeat to the bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _host
from ._epilogue import element, number

_LANES, _PARTS = 128, 16


@triton.jit
def _sum_parts_kernel(parts, y, S, L, scale_bits, LANES: tl.constexpr, PARTS: tl.constexpr):
    """A program owns LANES of the L sums and takes PARTS of the S parts at a time. Bytes: parts 1.00, y 1.00."""
    i_l = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    m_l = i_l < L
    b_sum = tl.zeros((PARTS, LANES), parts.dtype.element_ty)
    for s in range(0, S, PARTS):
        i_s = s + tl.arange(0, PARTS)[:, None]
        b_sum += tl.load(parts + i_s.to(tl.int64) * L + i_l[None, :], mask=(i_s < S) & m_l[None, :], other=0.0)
    b_y = tl.sum(b_sum, 0) * number(scale_bits, b_sum.dtype)
    tl.store(y + i_l, b_y.to(y.dtype.element_ty), mask=m_l)


def sum_parts(parts: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
    """y = scale * parts.sum(0), where y is [parts.shape[1:]] in memory; deterministic."""
    if y.numel():
        with torch.cuda.device_of(y):
            _sum_parts_kernel[(triton.cdiv(y.numel(), _LANES),)](
                parts, y, parts.shape[0], y.numel(), _host.bits(scale), LANES=_LANES, PARTS=_PARTS
            )
    return y


@triton.jit
def _channel_sums_kernel(x, parts, elements, chunk, c_units, p_units, VEC: tl.constexpr, LAST: tl.constexpr,
                         ELEMENTS: tl.constexpr, CHANNELS: tl.constexpr, COMPUTE: tl.constexpr):  # fmt: skip
    """A program owns a chunk of CHANNELS channels, ELEMENTS at a time, its sums in registers.

    Bytes: x 1.00, parts 1.00 (C for each chunk: at most 1 / ELEMENTS of x in elements). The roof is DRAM bandwidth.
    """
    C = c_units * VEC if LAST else c_units
    i_c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    first = tl.program_id(1).to(tl.int64) * chunk
    b_sum = tl.zeros((ELEMENTS, CHANNELS), COMPUTE)
    for e in range(0, tl.minimum(chunk, elements - first), ELEMENTS):
        i_e = first + e + tl.arange(0, ELEMENTS)[:, None]
        b_sum += tl.load(
            x + element(first + e, i_c, c_units, p_units, VEC, LAST, ELEMENTS),
            mask=(i_e < elements) & (i_c < C),
            other=0.0,
        ).to(COMPUTE)
    tl.store(parts + tl.program_id(1) * C + i_c, tl.sum(b_sum, 0)[None, :], mask=i_c < C)


def channel_sums(x: Tensor, last: bool, y: Tensor) -> Tensor:
    """y[c] = the sum of x over N, H and W; x dense."""
    if x.numel() == 0:
        return y.zero_()
    columns = _host.as_columns(x, last)
    parts = torch.empty((columns.chunks, x.shape[1]), dtype=_host.wide(x), device=x.device)
    with torch.cuda.device_of(x):
        _channel_sums_kernel[columns.grid](x, parts, *columns.sizes, **columns.constants)
    return sum_parts(parts, y)
