# SPDX-License-Identifier: Apache-2.0
"""Single ops at the shapes of the networks: ours in CUDA and in Triton, torch eager, torch.compile, cuDNN."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import fastcnn
from benchmarks import implementations, shapes
from benchmarks.gpu.timer import Budget, Clock, interleave
from fastcnn.backends import BackendUnavailable
from fastcnn.reference import relative_error

EAGER, COMPILE, CUDNN = "torch eager", "torch.compile", "cuDNN convolution alone"
COMPILE_MODE = "max-autotune-no-cudagraphs"  # a CUDA graph of one kernel would time the replay
COMPILE_SHARE = 0.5  # of the time; what it leaves goes to more shapes
RIVAL = 5.0  # an error may be this many times torch's own


@dataclass
class KernelRow:
    """One implementation of one call. ``note`` says why there is no time where ``microseconds`` is None."""

    op: str
    label: str
    dtype: str
    implementation: str
    bytes: int
    microseconds: float | None = None
    quartiles: tuple[float, float] | None = None
    gigabytes_per_second: float | None = None
    percent_of_roof: float | None = None
    error: float | None = None
    note: str = ""


def cases(ops: Sequence[str], models: Sequence[str], batch: int) -> Iterator[shapes.Call]:
    """Distinct calls, the ops in turn, those that move most first: what time leaves out is the small ones of each."""
    groups = [shapes.op_calls(op, models, [batch]) for op in ops]
    for calls in groups:
        calls.sort(key=lambda call: -_elements(call))
    for row in itertools.zip_longest(*groups):
        yield from (call for call in row if call is not None)


def _elements(call: shapes.Call) -> int:
    tensors = [a.shape for a in call.arguments if isinstance(a, shapes.TensorSpec)]
    return sum(torch.Size(shape).numel() for shape in (*tensors, call.output))


def measure(calls: Iterator[shapes.Call], dtype: torch.dtype, device: str, clock: Clock, bandwidth: float,
            budget: Budget, backends: Sequence[str] = ("cuda", "triton")) -> tuple[list[KernelRow], int]:  # fmt: skip
    """The rows, and how many calls the budget left out."""
    rows: list[KernelRow] = []
    compiling = budget.share(COMPILE_SHARE)
    left_out = 0
    for call in calls:
        if budget.left <= 0:
            left_out += 1
        else:
            rows += measure_call(call, dtype, device, clock, bandwidth, budget, backends, compiling.left > 0)
    return rows, left_out


@torch.inference_mode()
def measure_call(call: shapes.Call, dtype: torch.dtype, device: str, clock: Clock, bandwidth: float, budget: Budget,
                 backends: Sequence[str], compiled: bool) -> list[KernelRow]:  # fmt: skip
    """Every implementation against fp64 on the same values first; a wrong one is not timed."""
    pair = implementations.build(call, dtype, torch.channels_last, device)
    truth = implementations.build(call, dtype, torch.channels_last, device, compute=torch.float64).torch()
    own_error = relative_error(pair.torch(), truth)
    torch._dynamo.reset()
    candidates: dict[str, Callable[[], Tensor]] = {f"fastcnn {b}": _forced(b, pair.fastcnn) for b in backends}
    candidates[EAGER] = pair.torch
    if compiled:
        candidates[COMPILE] = torch.compile(pair.torch, mode=COMPILE_MODE, dynamic=False)
    rows = {name: KernelRow(call.op, call.label, str(dtype)[6:], name, pair.bytes) for name in candidates}
    right = {}
    for name, candidate in candidates.items():
        try:
            error = relative_error(candidate(), truth)
        except BackendUnavailable as reason:
            rows[name].note = str(reason)
        except Exception as failure:  # one that cannot compile or run is a finding, not the end of the run
            rows[name].note = f"failed: {type(failure).__name__}: {failure}".splitlines()[0][:200]
        else:
            rows[name].error = error
            if error <= max(2 * torch.finfo(dtype).eps, RIVAL * own_error):
                right[name] = candidate
            else:
                rows[name].note = f"wrong: error {error:.1e}, torch eager {own_error:.1e}"
    if not compiled:
        rows[COMPILE] = KernelRow(call.op, call.label, str(dtype)[6:], COMPILE, pair.bytes, note="left out: time")
    alone = _convolution(call, dtype, device)
    if alone is not None:
        rows[CUDNN] = KernelRow(call.op, call.label, str(dtype)[6:], CUDNN, pair.bytes)
        right[CUDNN] = alone
    for name, timing in interleave(right, clock, budget, queued=True).items():
        row, seconds = rows[name], timing.median
        row.microseconds, row.quartiles = seconds * 1e6, tuple(q * 1e6 for q in timing.quartiles)
        row.gigabytes_per_second = row.bytes / seconds / 1e9
        row.percent_of_roof = 100 * row.bytes / bandwidth / seconds
    return list(rows.values())


def _forced(backend: str, call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with fastcnn.use_backend(backend):
            return call()

    return run


def _convolution(call: shapes.Call, dtype: torch.dtype, device: str) -> Callable[[], Tensor] | None:
    """The convolution of the call without what follows it, which torch gives to cuDNN in channels_last."""
    if call.op == "conv_bn_act":
        x, weight, *_, stride, padding, dilation, groups, _, _ = call.arguments
    elif call.op == "depthwise_conv2d":
        x, weight, _, _, stride, padding, dilation, _ = call.arguments
        groups = x.shape[1]
    else:
        return None
    left, right, top, bottom = padding
    if (left, top) != (right, bottom) or left < 0:
        return None  # cuDNN pads both sides alike
    values = [torch.randn(s.shape, device=device).to(dtype, memory_format=torch.channels_last) for s in (x, weight)]
    return lambda: F.conv2d(*values, None, stride, (top, left), dilation, groups)
