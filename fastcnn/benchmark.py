# SPDX-License-Identifier: Apache-2.0
"""Timing to be believed: correctness asserted first, implementations interleaved, disturbed rounds dropped."""

import copy
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastcnn.reference import WrongOutput, assert_matches, calibrate, reference_model, relative_error

FOREIGN_CPU = 0.06  # cores of other programs' work that a round may see and still count
PAUSE = 0.015  # seconds between implementations: worker threads of the one before stop spinning
EAGER_NCHW, EAGER_CHANNELS_LAST, FASTCNN = "eager NCHW", "eager channels_last", "fastcnn"


@dataclass
class Timing:
    """Rounds of one implementation, in seconds."""

    rounds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def quartiles(self) -> tuple[float, float]:
        low, _, high = statistics.quantiles(self.rounds, n=4) if len(self.rounds) > 1 else self.rounds * 3
        return low, high

    def speedup_over(self, other: "Timing") -> float:
        """Median of ``other``'s time by ours, round by round: both halves of each ratio saw the same machine."""
        return statistics.median(theirs / ours for theirs, ours in zip(other.rounds, self.rounds, strict=True))


@dataclass
class Comparison:
    """``timings`` by implementation; ``noisy`` when too few rounds were undisturbed and all had to be taken."""

    timings: dict[str, Timing]
    clean: int
    dirty: int
    noisy: bool


@dataclass
class ModelResult:
    """One row of the speed table; times in milliseconds, quartiles beside them."""

    model: str
    batch: int
    dtype: str
    memory_format: str
    threads: int
    error: float
    milliseconds: dict[str, float]
    quartiles: dict[str, tuple[float, float]]
    speedup: dict[str, float]
    rounds: int
    noisy: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class _ForeignLoad:
    """Cores busy with other processes between two calls, from the kernel's own counters; 0 where there are none."""

    def __init__(self) -> None:
        self._before = self._read()

    @staticmethod
    def _read() -> tuple[float, float] | None:
        try:
            import resource

            with open("/proc/stat", encoding="ascii") as file:
                ticks = file.readline().split()
        except (ImportError, OSError):
            return None
        busy = sum(int(ticks[i]) for i in (1, 2, 3, 6, 7)) / os.sysconf("SC_CLK_TCK")  # user nice system irq softirq
        own = resource.getrusage(resource.RUSAGE_SELF)
        return busy - own.ru_utime - own.ru_stime, time.time()

    def measure(self) -> float:
        before, self._before = self._before, self._read()
        if before is None or self._before is None:
            return 0.0
        return (self._before[0] - before[0]) / max(self._before[1] - before[1], 1e-3)


def interleave(
    implementations: Mapping[str, Callable[[], object]], rounds: int = 15, seconds: float = 60.0
) -> Comparison:
    """Time ``implementations`` round robin: a round runs each, starting with another, and keeps medians of a few calls.

    A round during which other programs used more than ``FOREIGN_CPU`` cores (beyond half of those that ours leave idle)
    is dropped. When ``seconds`` or three times ``rounds`` pass with fewer than five good ones, all rounds are taken and
    the result is marked noisy.
    """
    names = list(implementations)
    cost = {}
    for name, call in implementations.items():
        call(), call()
        start = time.perf_counter()
        call()
        cost[name] = time.perf_counter() - start
    allowed = FOREIGN_CPU + 0.5 * max((os.cpu_count() or 1) - torch.get_num_threads(), 0)
    good: list[dict[str, float]] = []
    dirty: list[dict[str, float]] = []
    end = time.monotonic() + seconds
    load = _ForeignLoad()
    while len(good) < rounds and len(dirty) < 3 * rounds and (time.monotonic() < end or not good + dirty):
        first = (len(good) + len(dirty)) % len(names)
        load.measure()
        times = {name: _time_once(implementations[name], cost[name]) for name in names[first:] + names[:first]}
        (dirty if load.measure() > allowed else good).append(times)
    noisy = len(good) < min(5, rounds)
    kept = good + dirty if noisy else good
    timings = {name: Timing([times[name] for times in kept]) for name in names}
    return Comparison(timings, len(good), len(dirty), noisy)


def _time_once(call: Callable[[], object], cost: float) -> float:
    time.sleep(PAUSE)
    if cost < 0.1:
        call()  # caches hold the implementation before
    samples = []
    for _ in range(max(1, min(8, int(0.04 / cost)))):
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


@torch.inference_mode()
def bench_model(
    name: str,
    batch: int = 1,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
    rounds: int = 15,
    seconds: float = 60.0,
) -> ModelResult:
    """Check, then time, a model: its reference in eager NCHW and eager channels_last, and fastcnn, on the same weights.

    Args:
        name: a model of ``fastcnn.list_models()``.
        memory_format: that of fastcnn's model and input; the reference is timed in both.
    Raises: MissingReference; WrongOutput, and then nothing is timed.
    """
    import fastcnn.models

    metadata = fastcnn.models.metadata(name)
    reference = reference_model(metadata["reference"], **metadata.get("reference_kwargs", {}))
    calibrate(reference, metadata["input_size"])
    ours = fastcnn.create_model(name, weights=reference.state_dict())
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *metadata["input_size"], generator=generator)
    few = x[:4]  # fp64 convolutions are slow; each picture of a batch is computed alone
    truth = copy.deepcopy(reference).double()(few.double())
    formats = {
        EAGER_NCHW: (reference, torch.contiguous_format),
        EAGER_CHANNELS_LAST: (copy.deepcopy(reference), torch.channels_last),
        FASTCNN: (ours.eval(), memory_format),
    }
    calls: dict[str, Callable[[], Tensor]] = {}
    for label, (net, layout) in formats.items():
        net = net.to(dtype=dtype, memory_format=layout)
        value = x.to(dtype=dtype, memory_format=layout)
        calls[label] = lambda net=net, value=value: net(value)
    outputs = {label: call() for label, call in calls.items()}
    y = outputs.pop(FASTCNN)
    error = assert_matches(name, y[:4], {label: other[:4] for label, other in outputs.items()}, truth)
    if batch > len(few):  # the rest of the batch, against the reference in the same precision
        spread = max(relative_error(outputs[EAGER_CHANNELS_LAST], outputs[EAGER_NCHW]), error)
        rest = relative_error(y, outputs[EAGER_NCHW])
        if not rest <= max(1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps, 10 * spread):
            raise WrongOutput(
                f"{name}: in a batch of {batch} the output differs from the reference by {rest:.1e}; it is not timed"
            )
    comparison = interleave(calls, rounds, seconds)
    timings = comparison.timings
    return ModelResult(
        model=name,
        batch=batch,
        dtype=str(dtype).removeprefix("torch."),
        memory_format=str(memory_format).removeprefix("torch."),
        threads=torch.get_num_threads(),
        error=error,
        milliseconds={label: timing.median * 1e3 for label, timing in timings.items()},
        quartiles={label: (timing.quartiles[0] * 1e3, timing.quartiles[1] * 1e3) for label, timing in timings.items()},
        speedup={label: timings[FASTCNN].speedup_over(timings[label]) for label in (EAGER_NCHW, EAGER_CHANNELS_LAST)},
        rounds=len(timings[FASTCNN].rounds),
        noisy=comparison.noisy,
    )
