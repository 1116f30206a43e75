# SPDX-License-Identifier: Apache-2.0
"""This machine's roof: the time that the bytes or the multiply-adds of a call take at least, from rates measured here.

Each rate is measured once a process and number of threads, in about a second, with torch's own kernels: no operator of
ours is measured by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from itertools import accumulate

import torch

_PROBE_BYTES = (1 << 18, 1 << 20, 1 << 22, 1 << 25, 1 << 27)  # from within L2 to DRAM
_GEMMS = (768, 1152, 1536)


def _best(call: Callable[[], object], repeats: int = 7) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def copy_bandwidth() -> dict[int, float]:
    """Working set in bytes -> bytes per second of a copy, reads and writes counted, all threads.

    A smaller set is never slower than a larger one: where it seems so, the calls cost more than the bytes.
    """
    return _copy_bandwidth(torch.get_num_threads())


@cache
def _copy_bandwidth(threads: int) -> dict[int, float]:
    largest_first = sorted(_PROBE_BYTES, reverse=True)
    return dict(zip(largest_first, accumulate(map(_copy_rate, largest_first), max), strict=True))


def _copy_rate(size: int) -> float:
    source = torch.zeros(size // 8)
    target = torch.empty_like(source)
    inner = max(1, (1 << 26) // size)

    def copy() -> None:
        for _ in range(inner):
            target.copy_(source)

    return size * inner / _best(copy)


def peak_flops() -> float:
    """FLOP/s of torch's own fp32 GEMM at its best size: an attainable peak, below the FMA units' product."""
    return _peak_flops(torch.get_num_threads())


@cache
def _peak_flops(threads: int) -> float:
    rates = []
    for size in _GEMMS:
        a = torch.randn(size, size)
        rates.append(2 * size**3 / _best(lambda a=a: a @ a))
    return max(rates)


def roof_seconds(moved: int, macs: int, flops: float | None = None) -> float:
    """The slower of: the bytes at the copy rate of the nearest working set, the multiply-adds at ``flops`` or the GEMM rate."""
    nearest = min(_PROBE_BYTES, key=lambda size: abs(size - moved))
    return max(moved / copy_bandwidth()[nearest], 2 * macs / (flops or peak_flops()))
