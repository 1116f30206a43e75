# SPDX-License-Identifier: Apache-2.0
"""What the multiply-add units of this machine's CPU can do at most in fp32, measured by a loop of nothing else."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

CHAINS = 12  # independent sums: two units of 4 cycles' latency need 8, and 16 registers must hold them and two factors
SECONDS, REPEATS = 0.005, 40  # of one sample; samples
GEMM = 1536

# The vector is as wide as the compiler's target has it; the arguments keep the sums from being computed beforehand.
SOURCE = """
#if defined(__AVX512F__)
typedef float vec __attribute__((vector_size(64)));
#elif defined(__AVX__)
typedef float vec __attribute__((vector_size(32)));
#else
typedef float vec __attribute__((vector_size(16)));
#endif
#define EACH(M) M(0) M(1) M(2) M(3) M(4) M(5) M(6) M(7) M(8) M(9) M(10) M(11)
#define START(i) vec a##i = zero + start * i;
#define STEP(i) a##i = a##i * factor + shift;
#define SUM(i) total += a##i;
extern "C" int lanes() { return sizeof(vec) / sizeof(float); }
extern "C" float multiply_add(long steps, float start, float scale, float offset) {
  const vec zero = {}, factor = zero + scale, shift = zero + offset;
  EACH(START)
  for (long step = 0; step < steps; ++step) { EACH(STEP) }
  vec total = zero;
  EACH(SUM)
  return total[0];
}
"""


class Peak(NamedTuple):
    """``how``: by the loop, or by a large matrix product where no C++ compiler is at hand."""

    gflops: float
    how: str


_best: dict[int, Peak] = {}  # by threads


def fma_peak(threads: int) -> Peak:
    """The most GFLOP/s of ``threads`` threads that this process has seen: a disturbed probe flatters nobody."""
    now = _probe(threads)
    _best[threads] = max(now, _best.get(threads, now))
    return _best[threads]


def _probe(threads: int) -> Peak:
    library = _library()
    if library is None:
        return Peak(_gemm(), f"a {GEMM} x {GEMM} matrix product")
    flops_a_step = 2 * CHAINS * library.lanes()

    def rate(steps: int, pool: ThreadPoolExecutor) -> float:
        start = time.perf_counter()
        list(pool.map(lambda _: library.multiply_add(steps, 1.0, 0.999, 0.001), range(threads)))
        return threads * flops_a_step * steps / (time.perf_counter() - start)

    with ThreadPoolExecutor(threads) as pool:
        steps = 100_000
        steps = int(rate(steps, pool) * SECONDS / (threads * flops_a_step)) + 1
        return Peak(max(rate(steps, pool) for _ in range(REPEATS)) / 1e9, "a loop of multiply-adds")


@cache
def _library() -> ctypes.CDLL | None:
    """The loop, compiled for this CPU; None without a compiler that takes GNU's options."""
    named = shlex.split(os.environ.get("CXX", ""))
    compiler = named or [path for path in map(shutil.which, ("c++", "g++", "clang++")) if path][:1]
    if not compiler:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "fma.cpp", Path(folder) / "fma.so"
        source.write_text(SOURCE, encoding="utf-8")
        options = ["-O2", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", "-o", str(target), str(source)]
        try:
            subprocess.run([*compiler, *options], check=True, capture_output=True, timeout=60)
            library = ctypes.CDLL(str(target))
        except (OSError, subprocess.SubprocessError):
            return None
    library.multiply_add.argtypes = [ctypes.c_long, ctypes.c_float, ctypes.c_float, ctypes.c_float]
    library.multiply_add.restype = ctypes.c_float
    return library


def _gemm() -> float:
    a = torch.randn(GEMM, GEMM)
    times = [_timed(lambda: a @ a) for _ in range(REPEATS)]
    return 2 * GEMM**3 / min(times) / 1e9


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
