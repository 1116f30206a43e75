# SPDX-License-Identifier: Apache-2.0
"""This machine's roof: the time that the bytes or the multiply-adds of a call take at least, from rates measured here."""

from __future__ import annotations

import time
from functools import cache

import torch

_PROBE_BYTES = (1 << 18, 1 << 20, 1 << 22, 1 << 25, 1 << 27)  # from within L2 to DRAM


def _best(call, repeats: int = 7) -> float:
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


@cache
def copy_bandwidth() -> dict[int, float]:
    """Working set in bytes -> bytes per second of a copy, reads and writes counted, all threads."""
    rates = {}
    for size in _PROBE_BYTES:
        source = torch.zeros(size // 8)
        target = torch.empty_like(source)
        inner = max(1, (1 << 26) // size)

        def copy() -> None:
            for _ in range(inner):
                target.copy_(source)

        rates[size] = size * inner / _best(copy)
    return rates


@cache
def peak_flops() -> float:
    """FLOP/s of torch's own large fp32 GEMM: an attainable peak, some 20 % below the FMA units' product."""
    a = torch.randn(1536, 1536)
    return 2 * 1536**3 / _best(lambda: a @ a)


def roof_seconds(moved: int, macs: int) -> float:
    """The slower of: the bytes at the copy rate of the nearest working set, the multiply-adds at the GEMM rate."""
    nearest = min(_PROBE_BYTES, key=lambda size: abs(size - moved))
    return max(moved / copy_bandwidth()[nearest], 2 * macs / peak_flops())
