# SPDX-License-Identifier: Apache-2.0
"""Channel shuffle, its inverse, and concat + shuffle: one read and one write an element, 2 s bytes of size s.

A program moves ROWS x LANES elements, 2048 at most: rows are pixels and lanes channels in channels_last, planes and
pixels in NCHW. Nothing is computed: the roof is DRAM bandwidth.

channels_last: two groups (ShuffleNetV2, and concat with two inputs where they lie) are interleaved in registers, and
their inverse is split there, so that both sides are 16-byte accesses; any other number of groups reads its channels
one by one from a pixel that the cache holds. NCHW: whole planes are copied.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _host

_ROWS_TIMES_LANES = 2048


@triton.jit
def _channel_shuffle_interleave_kernel(x1, x2, y, rows, step1, step2, step_y, units, VEC: tl.constexpr,
                                       V1: tl.constexpr, V2: tl.constexpr, VY: tl.constexpr, ROWS: tl.constexpr,
                                       LANES: tl.constexpr):  # fmt: skip
    """Bytes: x1 1.00, x2 1.00, y 1.00; a channel slice is read, and written, where it lies."""
    half = units * VEC
    i_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    i_c = tl.program_id(1) * LANES + tl.arange(0, LANES)[None, :]
    m = (i_row < rows) & (i_c < half)
    b_1 = tl.load(x1 + i_row * (step1 * V1) + i_c, mask=m)
    b_2 = tl.load(x2 + i_row * (step2 * V2) + i_c, mask=m)
    i_y = tl.program_id(1) * (2 * LANES) + tl.arange(0, 2 * LANES)[None, :]
    tl.store(y + i_row * (step_y * VY) + i_y, tl.interleave(b_1, b_2), mask=(i_row < rows) & (i_y < 2 * half))


@triton.jit
def _channel_shuffle_split_kernel(x, y, rows, units, VEC: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr):
    """Bytes: x 1.00, y 1.00."""
    half = units * VEC
    i_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    i_x = tl.program_id(1) * (2 * LANES) + tl.arange(0, 2 * LANES)[None, :]
    b = tl.load(x + i_row * (2 * half) + i_x, mask=(i_row < rows) & (i_x < 2 * half))
    b_1, b_2 = tl.split(tl.reshape(b, (ROWS, LANES, 2)))
    i_c = tl.program_id(1) * LANES + tl.arange(0, LANES)[None, :]
    m = (i_row < rows) & (i_c < half)
    tl.store(y + i_row * (2 * half) + i_c, b_1, mask=m)
    tl.store(y + i_row * (2 * half) + half + i_c, b_2, mask=m)


@triton.jit
def _channel_shuffle_gather_kernel(x, y, rows, units, groups, VEC: tl.constexpr, ROWS: tl.constexpr,
                                   LANES: tl.constexpr):  # fmt: skip
    """Bytes: x 1.00, y 1.00; the reads are C / groups apart, within the pixel that the program's other lanes read."""
    C = units * VEC
    i_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    i_c = tl.program_id(1) * LANES + tl.arange(0, LANES)[None, :]
    m = (i_row < rows) & (i_c < C)
    i_from = (i_c % groups) * (C // groups) + i_c // groups
    tl.store(y + i_row * C + i_c, tl.load(x + i_row * C + i_from, mask=m), mask=m)


@triton.jit
def _channel_shuffle_planes_kernel(x1, x2, y, planes, C, groups, step1, step2, step_y, p_units, VEC: tl.constexpr,
                                   ROWS: tl.constexpr, LANES: tl.constexpr):  # fmt: skip
    """A row is a plane of y. With two inputs (groups is 2) the second serves the odd channels. Bytes: as above."""
    P = p_units * VEC
    i_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    i_p = tl.program_id(1) * LANES + tl.arange(0, LANES)[None, :]
    m = (i_row < planes) & (i_p < P)
    i_n, i_c = i_row // C, i_row % C
    if x2 is None:
        i_from = (i_c % groups) * (C // groups) + i_c // groups
        b = tl.load(x1 + i_n * (step1 * VEC) + i_from * P + i_p, mask=m)
    else:
        odd = i_c % 2 == 1
        b = tl.load(x1 + i_n * (step1 * VEC) + i_c // 2 * P + i_p, mask=m & ~odd)
        b_2 = tl.load(x2 + i_n * (step2 * VEC) + i_c // 2 * P + i_p, mask=m & odd)
        b = tl.where(odd, b_2, b)
    tl.store(y + i_n * (step_y * VEC) + i_c * P + i_p, b, mask=m)


def _grid(rows: int, length: int) -> tuple[tuple[int, int], dict[str, int]]:
    LANES = min(triton.next_power_of_2(length), 512)
    ROWS = max(min(_ROWS_TIMES_LANES // LANES, triton.next_power_of_2(rows)), 1)
    return (triton.cdiv(rows, ROWS), triton.cdiv(length, LANES)), {"ROWS": ROWS, "LANES": LANES}


def launch_channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Output channel i * groups + g is input channel g * (C // groups) + i."""
    C, last = x.shape[1], _host.is_channels_last(x)
    y = _host.empty(x, x.shape, last)
    if x.numel() == 0:
        return y
    if groups == 2:
        _interleave(x[:, : C // 2], x[:, C // 2 :], y, last)
        return y
    with torch.cuda.device_of(x):
        if not last:
            x, step, _ = _host.rows_of(x, False)
            _planes(x, None, y, groups, step, 0)
        elif C == 2 * groups:
            rows, VEC = x.numel() // C, _host.vector(x.dtype, groups)
            grid, constants = _grid(rows, groups)
            _channel_shuffle_split_kernel[grid](_host.dense(x, True), y, rows, groups // VEC, VEC=VEC, **constants)
        else:
            rows, VEC = x.numel() // C, _host.vector(x.dtype, C)
            grid, constants = _grid(rows, C)
            _channel_shuffle_gather_kernel[grid](_host.dense(x, True), y, rows, C // VEC, groups, VEC=VEC, **constants)
    return y


def launch_channel_shuffle_concat(x1: Tensor, x2: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Channels 2 i are those of x1, 2 i + 1 those of x2; each is read where it lies.

    ``out``: where the result goes, possibly a channel slice of a wider map in the memory format of x1.
    """
    last, size = _host.is_channels_last(x1), (x1.shape[0], 2 * x1.shape[1], *x1.shape[2:])
    if out is None:
        out = _host.empty(x1, size, last)
    _host.check_shape("channel_shuffle_concat", "out", out, size)
    if out.numel():
        if _host.rows_of(out, last)[0].data_ptr() != out.data_ptr():
            got = f"got strides {out.stride()}"
            raise ValueError(f"channel_shuffle_concat: out must be a map or a channel slice of one, {got}")
        _interleave(x1, x2, out, last)
    return out


def _interleave(x1: Tensor, x2: Tensor, y: Tensor, last: bool) -> None:
    with torch.cuda.device_of(y):
        if not last:
            (x1, step1, _), (x2, step2, _) = _host.rows_of(x1, False), _host.rows_of(x2, False)
            _planes(x1, x2, y, 2, step1, step2)
            return
        (x1, _, step1), (x2, _, step2) = _host.rows_of(x1, True), _host.rows_of(x2, True)
        half, step_y = x1.shape[1], _host.rows_of(y, True)[2]
        rows = y.numel() // (2 * half)
        VEC, V1, V2, VY = (_host.vector(y.dtype, n) for n in (half, step1, step2, step_y))
        grid, constants = _grid(rows, half)
        _channel_shuffle_interleave_kernel[grid](
            x1, x2, y, rows, step1 // V1, step2 // V2, step_y // VY, half // VEC, VEC=VEC, V1=V1, V2=V2, VY=VY,
            **constants,
        )  # fmt: skip


def _planes(x1: Tensor, x2: Tensor | None, y: Tensor, groups: int, step1: int, step2: int) -> None:
    C, P = y.shape[1], y.shape[2:].numel()
    step_y = _host.rows_of(y, False)[1]
    VEC = _host.vector(y.dtype, P, step1, step2, step_y)
    grid, constants = _grid(y.shape[0] * C, P)
    _channel_shuffle_planes_kernel[grid](
        x1, x2, y, y.shape[0] * C, C, groups, step1 // VEC, step2 // VEC, step_y // VEC, P // VEC, VEC=VEC, **constants
    )
