# SPDX-License-Identifier: Apache-2.0
"""Whole networks on the same weights: torch eager, torch.compile, TensorRT, fastcnn, each without and with a graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fastcnn
from benchmarks.gpu import trt
from benchmarks.gpu.timer import Budget, Clock, interleave
from benchmarks.models import op_lists
from fastcnn.backends import BackendUnavailable
from fastcnn.reference import WrongOutput, assert_matches, calibrate, reference_model

BATCHES = (1, 64, 256, 8)  # in the order in which time may run out
DTYPES = (torch.float16, torch.bfloat16)
EAGER, COMPILE, TENSORRT, FASTCNN, TRITON = "torch eager", "torch.compile", "TensorRT", "fastcnn", "fastcnn triton"
COMPILE_MODE = "max-autotune-no-cudagraphs"  # the graph is ours, captured alike for all
COMPILE_SHARE = 0.5  # of the time goes at most to compiling
CHECKED = 4  # images that the fp64 reference computes


@dataclass
class NetRow:
    """One implementation of one network. ``note`` says why there is no time where ``milliseconds`` is None."""

    net: str
    batch: int
    dtype: str
    implementation: str
    graph: bool
    milliseconds: float | None = None
    quartiles: tuple[float, float] | None = None
    images_per_second: float | None = None
    percent_of_roof: float | None = None
    error: float | None = None
    note: str = ""


class Weights:
    """A network's reference with statistics of data, and ours with the same weights; built once, on the host."""

    def __init__(self, name: str) -> None:
        facts = fastcnn.models.metadata(name)
        self.name, self.size = name, facts["input_size"]
        self.reference = reference_model(facts["reference"], **facts.get("reference_kwargs", {}))
        calibrate(self.reference, self.size)
        self.ours = fastcnn.create_model(name, weights=self.reference.state_dict()).eval()

    def on(self, device: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
        nets = (copy.deepcopy(net) for net in (self.reference, self.ours))
        return tuple(net.to(device, dtype, memory_format=torch.channels_last) for net in nets)


def configurations(names: Sequence[str], dtypes: Sequence[torch.dtype] = DTYPES,
                   batches: Sequence[int] = BATCHES) -> Iterator[tuple[str, torch.dtype, int]]:  # fmt: skip
    for dtype in dtypes:
        for batch in batches:
            for name in names:
                yield name, dtype, batch


def graphed(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The call captured in a CUDA graph; its inputs and output stay where they are."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = call()

    def replay() -> Tensor:
        graph.replay()
        return y

    return replay


def roof_bytes(name: str) -> float | None:
    """Bytes of an image by op_lists, None for a network that has no list."""
    listed = name.replace("mobilenet_v1_x1_0", "mobilenet_v1")
    return 1e6 * op_lists.megabytes(op_lists.op_list(listed)) if listed in op_lists.NETS else None


@torch.inference_mode()
def measure_net(weights: Weights, dtype: torch.dtype, batch: int, device: str, clock: Clock, bandwidth: float,
                budget: Budget, compiling: Budget, graphs: bool = True) -> list[NetRow]:  # fmt: skip
    """Every implementation without and with a graph; a wrong one is not timed."""
    theirs, ours = weights.on(device, dtype)
    x = torch.randn(batch, *weights.size, generator=torch.Generator().manual_seed(1))
    x = x.to(device, dtype, memory_format=torch.channels_last)
    double = copy.deepcopy(weights.reference).to(device, torch.float64)
    truth = double(x[:CHECKED].double())
    own = {EAGER: theirs(x)[:CHECKED]}
    torch._dynamo.reset()

    def through_triton() -> Callable[[], Tensor]:
        def run() -> Tensor:
            with fastcnn.use_backend("triton"):
                return ours(x)

        return run

    def compiled() -> Callable[[], Tensor]:
        net = torch.compile(theirs, mode=COMPILE_MODE, dynamic=False)
        return lambda: net(x)

    makers: dict[str, Callable[[], Callable[[], Tensor]]] = {
        EAGER: lambda: lambda: theirs(x),
        FASTCNN: lambda: lambda: ours(x),
        TRITON: through_triton,
    }
    slow = {COMPILE: compiled} | ({TENSORRT: lambda: trt.build(theirs, x)} if trt.installed() else {})
    rows: dict[tuple[str, bool], NetRow] = {}
    calls: dict[tuple[str, bool], Callable[[], Tensor]] = {}
    for name, make in (makers | slow).items():
        for graph in (False, True) if graphs else (False,):
            row = rows[name, graph] = NetRow(weights.name, batch, str(dtype)[6:], name, graph)
            if name in slow and compiling.left <= 0:
                row.note = "left out: time"
                continue
            if graph and (name, False) not in calls:
                row.note = rows[name, False].note
                continue
            try:
                call = graphed(calls[name, False]) if graph else make()
                row.error = assert_matches(weights.name, call()[:CHECKED], own, truth)
                calls[name, graph] = call
            except WrongOutput as wrong:
                row.note = f"wrong: {wrong}"
            except BackendUnavailable as reason:
                row.note = str(reason)
            except Exception as failure:  # one that cannot compile, run or be captured is a finding, not the end
                row.note = f"failed: {type(failure).__name__}: {failure}".splitlines()[0][:200]
    _time(rows, calls, batch, clock, bandwidth, budget, roof_bytes(weights.name))
    return list(rows.values())


def _time(rows: Mapping[tuple[str, bool], NetRow], calls: Mapping[tuple[str, bool], Callable[[], Tensor]], batch: int,
          clock: Clock, bandwidth: float, budget: Budget, image_bytes: float | None) -> None:  # fmt: skip
    for key, timing in interleave(calls, clock, budget, queued=False).items():
        row, seconds = rows[key], timing.median
        row.milliseconds, row.quartiles = seconds * 1e3, tuple(q * 1e3 for q in timing.quartiles)
        row.images_per_second = batch / seconds
        if image_bytes is not None:
            row.percent_of_roof = 100 * image_bytes * batch / bandwidth / seconds


def measure(names: Sequence[str], device: str, clock: Clock, bandwidth: float, budget: Budget,
            graphs: bool = True) -> tuple[list[NetRow], int]:  # fmt: skip
    """The rows, and how many configurations the budget left out."""
    rows: list[NetRow] = []
    weights: dict[str, Weights] = {}
    compiling = budget.share(COMPILE_SHARE)
    left_out = 0
    for name, dtype, batch in configurations(names):
        if budget.left <= 0:
            left_out += 1
            continue
        if name not in weights:
            weights[name] = Weights(name)
        rows += measure_net(weights[name], dtype, batch, device, clock, bandwidth, budget, compiling, graphs)
    return rows, left_out
