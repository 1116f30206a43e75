# SPDX-License-Identifier: Apache-2.0
"""What a launch may do beside launching: take a tuned configuration, time others when asked to, compile.

The table's configuration is the default. ``lookup`` and ``session`` are how the package that mounts this one hands in
what was tuned, and tunes; nothing here is tuned by itself. Compiling takes seconds and synchronises, which a CUDA-graph
capture does not survive: there a kernel that was never compiled is an error that says what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

Config = tuple[int, ...]  # a NamedTuple of ints
lookup: Callable[[torch.device], Mapping[str, Sequence[int]]] = lambda device: {}
session: Session | None = None


class NotCompiled(RuntimeError):
    """A kernel would have to be compiled inside a CUDA-graph capture."""


class Session:
    """Times every configuration of each launch that it meets for the first time, and keeps the fastest.

    Args:
        seconds: times a call that launches one kernel.
    """

    def __init__(self, seconds: Callable[[Callable[[], Any]], float]) -> None:
        self.seconds = seconds
        self.found: dict[str, tuple[Config, float, float]] = {}  # key: (fastest, its time, the default's)

    def best(self, key: str, default: Config, candidates: Iterable[Config], run: Callable[[Config], Any]) -> Config:
        if key not in self.found:
            times = {default: self.seconds(lambda: run(default))}
            for config in candidates:
                if config not in times:
                    try:
                        times[config] = self.seconds(lambda: run(config))
                    except triton.OutOfResources:  # more shared memory or registers than this GPU has
                        continue
            fastest = min(times, key=times.__getitem__)
            self.found[key] = fastest, times[fastest], times[default]
        return self.found[key][0]


def launch(kind: str, shape: tuple, x: Tensor, default: Config, candidates: Callable[[], Iterable[Config]],
           run: Callable[[Config], Any]) -> Any:  # fmt: skip
    """``run`` with the configuration for ``kind`` of kernel and class of shapes ``shape`` on the device of x.

    ``run`` may be called many times: what it writes must not be what it reads.
    """
    tuned = lookup(x.device)
    if session is None and not tuned:
        return run(default)
    key = key_of(kind, shape, x)
    if session is not None:
        return run(session.best(key, default, candidates(), run))
    config = tuned.get(key, ())
    return run(type(default)(*config) if len(config) == len(default) else default)


def key_of(kind: str, shape: tuple, x: Tensor) -> str:
    return " ".join([kind, str(x.dtype).removeprefix("torch."), *map(str, shape)])


def size_class(count: int) -> int:
    """Batch and image sizes that share a configuration: those with the same power of two above them."""
    return triton.next_power_of_2(max(count, 1))


compiled = 0  # kernels of this package that were compiled, or loaded from Triton's cache on disk, in this process
_PACKAGE = __name__.rpartition(".")[0]
_after: Callable[..., Any] | None = None  # the hook that was there before ours


def _before_compiling(*, fn: Any, **rest: Any) -> Any:
    """Triton calls this when it has no kernel in memory for the types, constants and alignment of a launch."""
    global compiled
    if fn.module.rpartition(".")[0] == _PACKAGE:
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            raise NotCompiled(
                f"{fn.name}: not yet compiled for these dtypes and shapes, and a CUDA-graph capture cannot wait for a "
                "compiler; call fastcnn.warmup(model, example) before the capture"
            )
        compiled += 1
    return None if _after is None else _after(fn=fn, **rest)


def _watch_the_compiler() -> None:
    global _after
    if triton.knobs.runtime.jit_cache_hook is not _before_compiling:
        _after, triton.knobs.runtime.jit_cache_hook = triton.knobs.runtime.jit_cache_hook, _before_compiling


_watch_the_compiler()
