# SPDX-License-Identifier: Apache-2.0
"""Time on a device: events around single calls on cold caches, implementations in turn, within a budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

import torch

from fastcnn.benchmark import Timing

WARM_UPS = 25
WARM_UP_SECONDS = 1.0  # of one implementation; slower ones warm up less often, three times at least
LEAST_ROUNDS = 3
AHEAD_CYCLES = 400_000  # the device idles about 0.2 ms, in which the host queues the call behind it
COPY_BYTES = 1 << 30


class Clock(Protocol):
    """Seconds of ``count`` calls, one by one. ``queued``: the host's share is hidden, as for a kernel in a network."""

    def samples(self, call: Callable[[], object], count: int, queued: bool) -> list[float]: ...


class CudaClock:
    """By CUDA events; more than the L2 cache is overwritten before every call."""

    def __init__(self, device: torch.device | str = "cuda") -> None:
        size = max(2 * torch.cuda.get_device_properties(device).L2_cache_size, 1 << 26)
        self._cache = torch.empty(size, dtype=torch.uint8, device=device)

    def samples(self, call: Callable[[], object], count: int, queued: bool) -> list[float]:
        pairs = []
        for _ in range(count):
            self._cache.zero_()
            if queued:
                torch.cuda._sleep(AHEAD_CYCLES)
            else:
                torch.cuda.synchronize()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            pairs.append((start, end))
        torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e-3 for start, end in pairs]


class HostClock:
    """The same interface by the host's clock."""

    def samples(self, call: Callable[[], object], count: int, queued: bool) -> list[float]:
        found = []
        for _ in range(count):
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
        return found


class Budget:
    """Seconds that a part of the run may take."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._end = now, now() + seconds

    @property
    def left(self) -> float:
        return self._end - self._now()

    def share(self, fraction: float) -> Budget:
        """A budget that ends after this fraction of what is left."""
        return Budget(fraction * self.left, self._now)


def interleave(calls: Mapping[str, Callable[[], object]], clock: Clock, budget: Budget, queued: bool, rounds: int = 11,
               count: int = 3) -> dict[str, Timing]:  # fmt: skip
    """Rounds of every call in turn, each round beginning with another; a round keeps the median of ``count``."""
    for call in calls.values():
        first = max(clock.samples(call, 3, queued))
        clock.samples(call, max(0, min(WARM_UPS - 3, int(WARM_UP_SECONDS / max(first, 1e-6)))), queued)
    names, timings = list(calls), {name: Timing() for name in calls}
    for i in range(rounds):
        if i >= LEAST_ROUNDS and budget.left <= 0:
            break
        first = i % max(len(names), 1)
        for name in names[first:] + names[:first]:
            timings[name].rounds.append(Timing(clock.samples(calls[name], count, queued)).median)
    return timings


def copy_bandwidth(clock: Clock, device: torch.device | str, size: int = COPY_BYTES) -> float:
    """Bytes a second of a large copy, read and written bytes counted: the byte roof that one can reach."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    clock.samples(lambda: target.copy_(source), 3, True)
    return 2 * size / min(clock.samples(lambda: target.copy_(source), 20, True))
