# SPDX-License-Identifier: Apache-2.0
"""The tile of every GEMM and depthwise convolution, by shape: one table, read at the launch, and what tuning tries.

Chosen by arithmetic and by the machine code (tests/sass), not yet by a clock: outputs of mobile nets are narrow (16 to
320), so a tile is as wide as the output up to 64, and 64 or 128 rows high, which is what warp groups of Hopper and
Blackwell multiply; fewer rows while they would leave multiprocessors idle. 32 sums a thread: with 64 the epilogue
spills on sm_100. float32 has no tensor cores without TF32, and Triton knows none of Turing's: those tiles keep to
registers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

_MULTIPROCESSORS = 132


class Tile(NamedTuple):
    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


# bytes of an element: (widest output, tile), the first that is wide enough, else the last
TILES = {
    2: ((16, Tile(128, 16, 64, 4, 3)), (32, Tile(128, 32, 64, 4, 3)), (0, Tile(128, 64, 64, 8, 3))),
    4: ((16, Tile(64, 16, 32, 4, 2)), (32, Tile(64, 32, 32, 4, 2)), (0, Tile(64, 64, 16, 4, 2))),
    8: ((16, Tile(32, 16, 16, 4, 1)), (0, Tile(32, 32, 16, 4, 1))),
}


def has_tensor_cores(device: torch.device) -> bool:
    """Whether Triton has tensor-core instructions for it."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


def has_little_shared_memory(device: torch.device) -> bool:
    """The GPUs of desktops, sm_86, 89 and 120: 100 KiB a multiprocessor, where the others have 164 and more."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) in ((8, 6), (8, 9), (12, 0), (12, 1))


def gemm_tile(x: Tensor, rows: int, columns: int, depth: int, last: bool) -> Tile:
    """The tile of a [rows, depth] x [depth, columns] product of the dtype of x; ``last``: channels_last.

    In NCHW each output of a thread needs an address of its own, so a tile has fewer of them.
    """
    size = x.dtype.itemsize
    table = TILES[size if has_tensor_cores(x.device) else max(size, 4)]
    tile = next((tile for widest, tile in table if columns <= widest), table[-1][1])
    programs = triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns)
    if tile.rows == 128 and (not last or programs < _MULTIPROCESSORS):
        tile = tile._replace(rows=64, warps=4)
    if has_little_shared_memory(x.device):
        tile = tile._replace(stages=min(tile.stages, 2))
    return tile._replace(depth=min(tile.depth, max(triton.next_power_of_2(depth), 16)))


def gemm_candidates(tile: Tile, columns: int, depth: int) -> Iterator[Tile]:
    """The neighbours of the table's tile that fit the output's columns and the sum's depth."""
    rows = [{"rows": tile.rows * 2}, {"rows": tile.rows // 2}]
    wide = [{"columns": tile.columns * 2}, {"columns": tile.columns // 2}]
    both = [{**rows[0], **wide[1]}, {**rows[1], **wide[0]}]
    rest = [{"depth": tile.depth * 2}, {"depth": tile.depth // 2}, {"stages": tile.stages + 1}]
    rest += [{"stages": tile.stages - 1}, {"warps": 12 - tile.warps}, {**rows[0], "warps": 8}]
    most = [max(triton.next_power_of_2(n), 16) for n in (columns, depth)]
    for changed in dict.fromkeys(tile._replace(**change) for change in [*rows, *wide, *both, *rest]):
        sums = changed.rows * changed.columns // (32 * changed.warps)
        fits = changed.columns <= most[0] and changed.depth <= most[1] and changed.rows <= 256 and sums <= 64
        if fits and min(changed[:3]) >= 16 and changed.stages >= 1:
            yield changed


class Block(NamedTuple):
    pixels: int
    channels: int
    warps: int


def block_candidates(block: Block) -> Iterator[Block]:
    """Other tiles of a depthwise convolution, of a fourth of its outputs to twice as many."""
    changes: list[dict[str, Any]] = [{"pixels": block.pixels * 2}, {"warps": 2}, {"warps": 8}]
    changes += [{"pixels": block.pixels // n} for n in (2, 4)] + [{"channels": block.channels // n} for n in (2, 4)]
    changes += [{"pixels": block.pixels // 2, "warps": 2}]
    changes += [{"pixels": block.pixels * 2, "channels": block.channels // 2}]
    for changed in dict.fromkeys(block._replace(**change) for change in changes):
        if changed.pixels * changed.channels >= 32 * changed.warps and min(changed) >= 1:
            yield changed


def splits(programs: int, depth: int, step: int) -> int:
    """Into how many parts a sum over ``depth`` is cut, so that about two programs run on every multiprocessor."""
    return max(min(2 * _MULTIPROCESSORS // max(programs, 1), triton.cdiv(depth, step), 128), 1)


def precision(dtype: torch.dtype, allow_tf32: bool | None = None) -> str:
    """tl.dot's own default for float32 is TF32; ours is what the caller says, else torch's switch for it."""
    allowed = torch.backends.cuda.matmul.allow_tf32 if allow_tf32 is None else allow_tf32
    return "tf32" if dtype is torch.float32 and allowed else "ieee"
