# SPDX-License-Identifier: Apache-2.0
"""The tile of every GEMM, by shape: one table, read at the launch. Nothing is tuned inside a call.

Chosen by arithmetic, not yet by a measurement: outputs of mobile nets are narrow (16 to 320), so a tile is as wide as
the output where it can be and 64 or 128 rows high, which is what a Hopper warp group multiplies; fewer rows while
they would leave multiprocessors idle. float32 has no tensor cores without TF32: its tiles keep the operands in
registers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

_MULTIPROCESSORS = 132


class Tile(NamedTuple):
    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


# bytes of an element: (widest output, tile), the first that is wide enough, else the last
TILES = {
    2: ((16, Tile(128, 16, 64, 4, 3)), (32, Tile(128, 32, 64, 4, 3)), (64, Tile(128, 64, 64, 4, 3)),
        (0, Tile(128, 128, 64, 8, 3))),
    4: ((16, Tile(64, 16, 32, 4, 2)), (32, Tile(64, 32, 32, 4, 2)), (0, Tile(64, 64, 16, 4, 2))),
    8: ((16, Tile(32, 16, 16, 4, 1)), (0, Tile(32, 32, 16, 4, 1))),
}  # fmt: skip


def gemm_tile(dtype: torch.dtype, rows: int, columns: int, depth: int, last: bool) -> Tile:
    """The tile of a [rows, depth] x [depth, columns] product; ``last``: channels_last.

    In NCHW each output of a thread needs an address of its own, so there are fewer of them.
    """
    table = TILES[dtype.itemsize]
    tile = next((tile for widest, tile in table if columns <= widest), table[-1][1])
    programs = triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns)
    if dtype.itemsize == 2 and programs < _MULTIPROCESSORS:
        tile = tile._replace(rows=64, columns=min(tile.columns, 64), warps=4)
    if not last and tile.columns >= 64:
        tile = tile._replace(columns=64, warps=8 if tile.rows > 64 else 4)
    return tile._replace(depth=min(tile.depth, max(triton.next_power_of_2(depth), 16)))


def splits(programs: int, depth: int, step: int) -> int:
    """Into how many parts a sum over ``depth`` is cut, so that about two programs run on every multiprocessor."""
    return max(min(2 * _MULTIPROCESSORS // max(programs, 1), triton.cdiv(depth, step), 128), 1)


def precision(dtype: torch.dtype) -> str:
    """tl.dot's own default for float32 is TF32; ours is torch's switch for it."""
    return "tf32" if dtype is torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"
