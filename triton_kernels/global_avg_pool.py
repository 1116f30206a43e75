# SPDX-License-Identifier: Apache-2.0
"""Global average pooling and its gradient; the sums over pixels that squeeze-and-excitation shares.

A program sums a chunk of the pixels of one image for CHANNELS channels, PIXELS at a time (2048 elements, two 16-byte
accesses a thread in float16; channels are adjacent in channels_last, pixels in NCHW); a second kernel adds the chunks.
Chunks are cut until about 512 programs run. One read of x: the roof is DRAM bandwidth.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _host
from ._epilogue import number, tile
from ._reduce import sum_parts

_PROGRAMS = 512  # sums are cut until about so many programs run


@triton.jit
def _global_avg_pool_sums_kernel(x, factor, parts, N, C, c_units, p_units, chunk, VEC: tl.constexpr,
                                 LAST: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
                                 COMPUTE: tl.constexpr):  # fmt: skip
    """parts[chunk, n, c] = the sum of x, or of x * factor, over the chunk's pixels. Bytes: x, factor, parts 1.00."""
    P = p_units if LAST else p_units * VEC
    C_hinted = c_units * VEC if LAST else c_units
    i_n = tl.program_id(1).to(tl.int64)
    i_c = tl.program_id(0).to(tl.int64) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    first = tl.program_id(2).to(tl.int64) * chunk
    base = i_n * C * P
    b_sum = tl.zeros((PIXELS, CHANNELS), COMPUTE)
    for p in range(0, tl.minimum(chunk, P - first), PIXELS):
        i_p = first + p + tl.arange(0, PIXELS)[:, None]
        if LAST:
            o = i_p * C_hinted + i_c
        else:
            o = i_c * P + i_p
        m = (i_p < P) & (i_c < C_hinted)
        b_x = tl.load(x + base + o, mask=m, other=0.0).to(COMPUTE)
        if factor is not None:
            b_x *= tl.load(factor + base + o, mask=m, other=0.0).to(COMPUTE)
        b_sum += b_x
    o = (tl.program_id(2) * N + i_n) * C + i_c
    tl.store(parts + o, tl.sum(b_sum, 0)[None, :], mask=i_c < C)


@triton.jit
def _global_avg_pool_backward_kernel(grad, y, scale_bits, rows, units, C, P, VEC: tl.constexpr, LAST: tl.constexpr,
                                     ROWS: tl.constexpr, LANES: tl.constexpr, COMPUTE: tl.constexpr):  # fmt: skip
    """Bytes: y 1.00; grad is one value for each image and channel, asked for at every element, which L1 serves."""
    o, m, i_n, i_c, _ = tile(rows, units, C, P, VEC, LAST, ROWS, LANES)
    scale = number(scale_bits, COMPUTE)
    b_grad = tl.load(grad + i_n * C + i_c + 0 * o, mask=m).to(COMPUTE) * scale
    tl.store(y + o, b_grad.to(y.dtype.element_ty), mask=m)


def pixel_sums(x: Tensor, last: bool, y: Tensor, scale: float, factor: Tensor | None = None) -> Tensor:
    """y[n, c] = scale * the sum of x (times ``factor``) over H and W; x and factor dense, y dense [N, C]."""
    N, C = x.shape[:2]
    P = x.shape[2:].numel()
    VEC = _host.vector(x.dtype, C if last else P)
    CHANNELS, PIXELS = _host.column_tile(C, P, last)
    programs = N * triton.cdiv(C, CHANNELS)
    tiles = triton.cdiv(P, PIXELS)
    chunk = triton.cdiv(tiles, max(min(_PROGRAMS // programs, 64), 1)) * PIXELS
    parts = torch.empty((triton.cdiv(P, chunk), N, C), dtype=_host.wide(x), device=x.device)
    units = (C // VEC, P) if last else (C, P // VEC)
    with torch.cuda.device_of(x):
        for n in range(0, N, 65535):  # what the second dimension of a grid holds
            count = min(N - n, 65535)
            whole = count == N
            part = parts if whole else torch.empty((parts.shape[0], count, C), dtype=parts.dtype, device=x.device)
            _global_avg_pool_sums_kernel[(triton.cdiv(C, CHANNELS), count, parts.shape[0])](
                x[n:], None if factor is None else factor[n:], part, count, C, *units, chunk, VEC=VEC, LAST=last,
                PIXELS=PIXELS, CHANNELS=CHANNELS, COMPUTE=_host.compute_type(x),
            )  # fmt: skip
            if not whole:
                parts[:, n : n + count] = part
    return sum_parts(parts, y, scale)


def launch_global_avg_pool(x: Tensor) -> Tensor:
    """The mean over H and W, [N, C, 1, 1] in the memory format of x."""
    last = _host.is_channels_last(x)
    y = _host.empty(x, (*x.shape[:2], 1, 1), last)
    return pixel_sums(_host.dense(x, last), last, y, 1 / x.shape[2:].numel()) if y.numel() else y


def launch_global_avg_pool_backward(grad: Tensor, x: Tensor) -> Tensor:
    """grad / (H * W) at every pixel, in the memory format of x."""
    last = _host.is_channels_last(x)
    y = _host.empty(x, x.shape, last)
    if y.numel():
        rows = _host.as_rows(y, last)
        with torch.cuda.device_of(x):
            _global_avg_pool_backward_kernel[rows.grid](
                grad.contiguous(), y, _host.bits(1 / rows.P), *rows.sizes, **rows.constants
            )
    return y
