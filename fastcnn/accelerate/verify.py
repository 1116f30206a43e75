# SPDX-License-Identifier: Apache-2.0
"""Whether the accelerated model still computes what the original does, and how fast each is."""

from __future__ import annotations

import statistics
import time
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

FLOOR, FACTOR = 1e-5, 5.0
_OTHER_DRAW = 1e-2  # no rounding makes two runs of one model differ that much
SECONDS, ROUNDS = 0.3, 15  # of timing, at most


def tensors(outputs: Any) -> list[Tensor]:
    """The floating tensors among ``outputs``."""
    return [y for y in tree_leaves(outputs) if isinstance(y, Tensor) and y.is_floating_point()]


def random_like(example: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Standard normal inputs of the example's shapes, from a generator of their own; others as they are."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) if x.is_floating_point() else x
        for x in example
    )


@torch.no_grad()
def errors(
    original: nn.Module, fast: nn.Module, inputs: tuple[Tensor, ...]
) -> tuple[dict[str, float | None], str | None]:
    """Largest differences over all outputs; why there is no comparison in fp64, or None."""
    ours, theirs = tensors(fast(*_copies(inputs))), tensors(_fresh(original)(*_copies(inputs)))
    row: dict[str, float | None] = {
        "absolute": max((_largest(a.double() - b.double()) for a, b in zip(ours, theirs, strict=True)), default=0.0),
        "relative": _relative(ours, theirs),
        "top1": _top1(ours, theirs),
        "fp64": None, "original_fp64": None, "allowed": FLOOR,
    }  # fmt: skip
    try:
        exact = tensors(
            deepcopy(original).double()(*(x.double() if x.is_floating_point() else x for x in _copies(inputs)))
        )
        lasts = [x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in _copies(inputs)]
        others = [theirs, tensors(deepcopy(original).to(memory_format=torch.channels_last)(*lasts))]
        half = fast.dtype() if hasattr(fast, "dtype") else None
        if half in (torch.float16, torch.bfloat16):
            cast = (x.to(half) if x.is_floating_point() else x for x in _copies(inputs))
            others.append(tensors(deepcopy(original).to(half)(*cast)))
    except Exception as error:  # noqa: BLE001  (a model may hold what cannot be copied, or constants in fp32)
        return (
            row,
            f"not compared with the original in fp64: {type(error).__name__}: {str(error).splitlines()[0][:200]}",
        )
    if _relative(tensors(_fresh(original)(*_copies(inputs))), theirs) > _OTHER_DRAW:
        return row, "not compared with the original, which gives two results for one input: it draws random numbers"
    row["fp64"] = _relative(ours, exact)
    row["original_fp64"] = max(_relative(other, exact) for other in others)
    floor = max(FLOOR, torch.finfo(half).eps if half in (torch.float16, torch.bfloat16) else 0.0)
    row["allowed"] = max(floor, FACTOR * row["original_fp64"])
    return row, None


@torch.no_grad()
def written(original: nn.Module, inputs: tuple[Tensor, ...]) -> list[str]:
    """What a call of the original writes to: its inputs, its buffers. Empty where the original cannot be copied."""
    fresh, given = _fresh(original), _copies(inputs)
    if fresh is original:
        return []
    fresh(*given)
    names = [f"input {i}" for i, (x, y) in enumerate(zip(inputs, given, strict=True)) if not _equal(x, y)]
    now = dict(fresh.named_buffers())
    return names + [name for name, then in original.named_buffers() if not _equal(then, now[name])]


def _copies(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A model may write to its inputs."""
    return tuple(x.clone() for x in inputs)


def _fresh(original: nn.Module) -> nn.Module:
    """A model may write to its buffers, too: a copy, where it can be copied."""
    try:
        return deepcopy(original)
    except Exception:  # noqa: BLE001
        return original


def _equal(x: Tensor, y: Tensor) -> bool:
    return torch.equal(x, y) or (x.is_floating_point() and torch.allclose(x, y, rtol=0.0, atol=0.0, equal_nan=True))


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def _relative(ours: list[Tensor], theirs: list[Tensor]) -> float:
    found = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:
            return float("inf")
        a, b = a.double(), b.double()
        known = torch.isfinite(b)
        if not torch.equal(known, torch.isfinite(a)) or not torch.equal(torch.isnan(a), torch.isnan(b)):
            return float("inf")
        difference = _largest((a - b)[known])
        found = max(found, difference / (_largest(b[known]) or 1.0))
    return found


def _top1(ours: list[Tensor], theirs: list[Tensor]) -> float:
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.dim() >= 2 and a.shape == b.shape and a.numel()]
    if not pairs:
        return 1.0
    return min(float((a.argmax(1) == b.argmax(1)).double().mean()) for a, b in pairs)


def milliseconds(before: nn.Module, after: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, float]:
    """Medians of rounds in turn, within a third of a second or so; a figure for orientation."""
    return _milliseconds({"before": _fresh(before), "after": after}, _copies(inputs))


@torch.inference_mode()
def _milliseconds(calls: dict[str, nn.Module], inputs: tuple[Tensor, ...]) -> dict[str, float]:
    times: dict[str, list[float]] = {"before": [], "after": []}
    for call in calls.values():
        call(*inputs)
    start = time.perf_counter()
    while len(times["after"]) < ROUNDS and (not times["after"] or time.perf_counter() - start < SECONDS):
        for name, call in calls.items():
            began = time.perf_counter()
            call(*inputs)
            if inputs[0].is_cuda:
                torch.cuda.synchronize(inputs[0].device)
            times[name].append(1e3 * (time.perf_counter() - began))
    return {name: statistics.median(rounds) for name, rounds in times.items()}
