# SPDX-License-Identifier: Apache-2.0
"""How many warps of a kernel fit on a multiprocessor, from its registers, shared memory and threads.

The rules and the figures with a function's name are those of cuda_occupancy.h (CUDA 13.0, which comes with Triton too;
test_occupancy.py compares). What that header takes from the device's properties is from the table of compute
capabilities in the CUDA C++ Programming Guide.
"""

from __future__ import annotations

from typing import NamedTuple

WARP = 32
REGISTERS = 64 << 10  # of a multiprocessor (the guide)
PARTITIONS = 4  # cudaOccSubPartitionsPerMultiprocessor
REGISTER_UNIT = 256  # cudaOccRegAllocationGranularity, of a warp


class Limits(NamedTuple):
    threads: int  # of a multiprocessor (the guide)
    blocks: int  # cudaOccMaxBlocksPerMultiprocessor
    shared: int  # bytes of a multiprocessor: the largest of cudaOccAlignUpShmemSizeVoltaPlus
    shared_unit: int  # cudaOccSMemAllocationGranularity
    reserved: int  # bytes that the system takes of each block (the guide)


LIMITS = {
    75: Limits(1024, 16, 64 << 10, 256, 0),
    80: Limits(2048, 32, 164 << 10, 128, 1024),
    86: Limits(1536, 16, 100 << 10, 128, 1024),
    89: Limits(1536, 24, 100 << 10, 128, 1024),
    90: Limits(2048, 32, 228 << 10, 128, 1024),
    100: Limits(2048, 32, 228 << 10, 128, 1024),
    120: Limits(1536, 24, 100 << 10, 128, 1024),
}


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def blocks(arch: int, registers: int, shared: int, threads: int) -> int:
    """Blocks of ``threads`` that fit at once; ``shared`` is what the kernel asks for, without what the system takes."""
    limits, warps = LIMITS[arch], -(-threads // WARP)
    of_a_warp = _round_up(registers * WARP, REGISTER_UNIT)
    if of_a_warp * _round_up(warps, PARTITIONS) > REGISTERS:
        return 0
    by_registers = REGISTERS // PARTITIONS // of_a_warp * PARTITIONS // warps if registers else limits.blocks
    of_a_block = _round_up(shared + limits.reserved, limits.shared_unit)
    by_shared = limits.shared // of_a_block if of_a_block else limits.blocks
    return min(limits.threads // WARP // warps, limits.blocks, by_registers, by_shared)


def occupancy(arch: int, registers: int, shared: int, threads: int) -> float:
    """The share of a multiprocessor's warps that are there at once."""
    warps = blocks(arch, registers, shared, threads) * -(-threads // WARP)
    return warps * WARP / LIMITS[arch].threads
