# SPDX-License-Identifier: Apache-2.0
"""What every launcher shares: memory formats, accumulation types, tile shapes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 2048  # elements of a tile: 16 a thread at the default 4 warps, so two 16-byte accesses in float16


def wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def compute_type(x: Tensor) -> tl.dtype:
    return tl.float64 if x.dtype is torch.float64 else tl.float32


def bits(value: float) -> int:
    """A double as an integer argument: a float argument would be rounded to float32."""
    return struct.unpack("<q", struct.pack("<d", value))[0]


def is_channels_last(x: Tensor) -> bool:
    """PyTorch's own rule for the memory format of a result."""
    return x.dim() == 4 and torch._prims_common.suggest_memory_format(x) is torch.channels_last


def empty(x: Tensor, shape: torch.Size | tuple[int, ...], last: bool, dtype: torch.dtype | None = None) -> Tensor:
    memory_format = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype or x.dtype, device=x.device, memory_format=memory_format)


def dense(x: Tensor | None, last: bool) -> Tensor | None:
    """``x`` where it lies when it is dense in the format, else a copy that is."""
    memory_format = torch.channels_last if last else torch.contiguous_format
    if x is None or x.is_contiguous(memory_format=memory_format):
        return x
    return empty(x, x.shape, last).copy_(x)


def vector(dtype: torch.dtype, *lengths: int) -> int:
    """Elements of the widest access, up to 16 bytes, that divides every length."""
    width = 16 // dtype.itemsize
    while any(length % width for length in lengths):
        width //= 2
    return width


def rows_of(x: Tensor, last: bool) -> tuple[Tensor, int, int]:
    """(x, step from image to image, from pixel to pixel or plane to plane); a channel slice is taken where it lies.

    ``last``: channels adjacent and pixels evenly apart. Else: planes dense and side by side. Copied when it is neither.
    """
    N, C, *size = x.shape
    P = x.shape[2:].numel()
    if last:
        H, W = size
        step = x.stride(3) if W > 1 else x.stride(2) if H > 1 else x.stride(0) if N > 1 else C
        even = ((N, x.stride(0), P * step), (H, x.stride(2), W * step), (C, x.stride(1), 1))
        if step >= C and all(length == 1 or got == wanted for length, got, wanted in even):
            return x, P * step, step
        return dense(x, True), P * C, C
    step = x.stride(0) if N > 1 else C * P
    if x.numel() and step >= C * P and x[0].is_contiguous():
        return x, step, P
    return x.contiguous(), C * P, P


def index_type(rows: int, P: int, *images: int) -> tl.dtype:
    """What offsets from the first image of a tile fit in, given the steps from image to image."""
    return tl.int32 if ((rows - 1) // max(P, 1) + 2) * max(images) < 2**31 else tl.int64


def resolve_padding(padding: Sequence[int], x: Tensor, weight: Tensor, stride: Sequence[int],
                    dilation: Sequence[int]) -> tuple[int, ...]:  # fmt: skip
    """(left, right, top, bottom); four times -1 is TensorFlow's SAME: the odd pixel goes right and to the bottom."""
    if tuple(padding) != (-1, -1, -1, -1):
        return tuple(padding)
    found = []
    for i in (1, 0):
        span = dilation[i] * (weight.shape[2 + i] - 1) + 1
        total = max((-(-x.shape[2 + i] // stride[i]) - 1) * stride[i] + span - x.shape[2 + i], 0)
        found += [total // 2, total - total // 2]
    return tuple(found)


def output_size(x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int],
                dilation: Sequence[int]) -> tuple[int, int]:  # fmt: skip
    """(Ho, Wo); ``padding`` as resolved."""
    ends = (padding[2] + padding[3], padding[0] + padding[1])
    spans = [dilation[i] * (weight.shape[2 + i] - 1) + 1 for i in (0, 1)]
    return tuple((x.shape[2 + i] + ends[i] - spans[i]) // stride[i] + 1 for i in (0, 1))


def check_shape(op: str, name: str, x: Tensor | None, wanted: tuple[int, ...]) -> None:
    if x is not None and tuple(x.shape) != wanted:
        raise ValueError(f"{op}: {name} must be {list(wanted)}, got {list(x.shape)}")


class Map(NamedTuple):
    """A dense map as rows of adjacent elements, and the grid of tiles over it (_epilogue.tile)."""

    grid: tuple[int]
    rows: int
    units: int
    C: int
    P: int
    constants: dict[str, object]

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        return self.rows, self.units, self.C, self.P


def as_rows(x: Tensor, last: bool) -> Map:
    N, C = x.shape[:2]
    P = x.shape[2:].numel()
    rows, length = (N * P, C) if last else (N * C, P)
    VEC = vector(x.dtype, length)
    LANES = min(triton.next_power_of_2(length), 1024)
    ROWS = max(min(_TILE // LANES, triton.next_power_of_2(rows)), 1)
    grid = (triton.cdiv(rows, ROWS) * triton.cdiv(length, LANES),)
    constants = {"VEC": VEC, "LAST": last, "ROWS": ROWS, "LANES": LANES, "COMPUTE": compute_type(x)}
    return Map(grid, rows, length // VEC, C, P, constants)


class Columns(NamedTuple):
    """A dense map as columns of N * P elements, one a channel, cut into chunks summed apart (_epilogue.element)."""

    chunks: int
    grid: tuple[int, int]
    sizes: tuple[int, int, int, int]  # elements, elements of a chunk, and C and P in units of VEC in the contiguous one
    constants: dict[str, object]


def column_tile(channels: int, elements: int, last: bool) -> tuple[int, int]:
    """(channels, elements) of a tile that is summed over its elements; the contiguous one is served first."""
    if last:
        CHANNELS = min(triton.next_power_of_2(channels), 64)
        return CHANNELS, min(_TILE // CHANNELS, triton.next_power_of_2(elements))
    ELEMENTS = min(triton.next_power_of_2(elements), _TILE)
    return min(triton.next_power_of_2(channels), _TILE // ELEMENTS), ELEMENTS


_PROGRAMS = 512  # sums are cut until about so many programs run: a few for each multiprocessor of the largest GPUs


def as_columns(x: Tensor, last: bool) -> Columns:
    N, C = x.shape[:2]
    P = x.shape[2:].numel()
    VEC = vector(x.dtype, C if last else P)
    CHANNELS, ELEMENTS = column_tile(C, N * P, last)
    blocks = triton.cdiv(C, CHANNELS)
    tiles = triton.cdiv(N * P, ELEMENTS)
    chunk = triton.cdiv(tiles, max(min(_PROGRAMS // blocks, 256), 1)) * ELEMENTS
    chunks = triton.cdiv(N * P, chunk)
    units = (C // VEC, P) if last else (C, P // VEC)
    constants = {"VEC": VEC, "LAST": last, "ELEMENTS": ELEMENTS, "CHANNELS": CHANNELS, "COMPUTE": compute_type(x)}
    return Columns(chunks, (blocks, chunks), (N * P, chunk, *units), constants)
