# SPDX-License-Identifier: Apache-2.0
"""Each runtime as a call without arguments that computes one batch, all with the same number of threads.

Nothing is left at a default that would make the comparison unequal: OpenVINO's own choice of precision is bf16 where
the CPU has it, ONNX Runtime's threads would spin on into the next engine's time, torch.compile folds batch norm only
when it may freeze the weights.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

FASTCNN = "fastcnn"
EAGER = "eager channels_last"
COMPILE, COMPILE_LAST = "torch.compile, frozen", "torch.compile, frozen, channels_last"
ORT = "ONNX Runtime"
OPENVINO, OPENVINO_STREAMS = "OpenVINO", "OpenVINO, 2 streams"
STREAMS = 2

Call = Callable[[], Any]  # computes the batch and returns it, [N, ...], as a Tensor or as numpy's array


@dataclass
class Case:
    """What each engine starts from.

    ``x`` is [N, C, H, W] in NCHW and float32, whatever ``dtype`` the engines compute in; ``folder`` takes their files.
    """

    model: nn.Module
    x: Tensor
    folder: Path
    threads: int
    dtype: torch.dtype = torch.float32

    def onnx(self, batch: int) -> Path:
        """The model as an ONNX file of that fixed batch size, written when first asked for."""
        path = self.folder / f"batch{batch}.onnx"
        if not path.exists():
            from fastcnn.onnx import export

            # inference_mode's tensors cannot be exported
            with torch.inference_mode(False), torch.no_grad():
                export(self.model, self.x[:batch].clone(), path, dynamic_batch=False)
        return path

    def cast(self, memory_format: torch.memory_format) -> tuple[nn.Module, Tensor]:
        """A copy of the model, and the batch, in ``dtype`` and ``memory_format``."""
        model = copy.deepcopy(self.model).to(dtype=self.dtype, memory_format=memory_format)
        return model, self.x.to(dtype=self.dtype, memory_format=memory_format)


class Engine(NamedTuple):
    """``needs`` are packages beyond torch. ``serves`` says whether it has anything to show for a case."""

    make: Callable[[Case], Call]
    needs: tuple[str, ...] = ()
    serves: Callable[[Case], bool] = lambda case: True


def fastcnn_call(case: Case) -> Call:
    import fastcnn

    with torch.inference_mode(False), torch.no_grad():
        half = None if case.dtype == torch.float32 else case.dtype
        fast = fastcnn.accelerate(case.model, case.x.clone(), dtype=half)
    x = case.x
    return lambda: fast(x)


def eager(case: Case) -> Call:
    model, x = case.cast(torch.channels_last)
    return lambda: model(x)


def compiled(model: nn.Module, x: Tensor) -> Call:
    """torch.compile with frozen weights, which folds batch norm and packs weights; compiled by a first call."""
    import torch._inductor.config as inductor

    run = torch.compile(model, dynamic=False)
    with inductor.patch(freezing=True):
        run(x)
    return lambda: run(x)


def onnx_runtime(case: Case) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = case.threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.force_spinning_stop", "1")  # its threads sleep once a call is over
    session = onnxruntime.InferenceSession(str(case.onnx(len(case.x))), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: case.x.numpy()}
    return lambda: session.run(None, feed)[0]


def openvino_latency(case: Case) -> Call:
    """The whole batch as one request."""
    network = _openvino(case, len(case.x), {"PERFORMANCE_HINT": "LATENCY"})
    request, output = network.create_infer_request(), network.output(0)
    feed = {0: case.x.numpy()}
    return lambda: request.infer(feed, share_inputs=True, share_outputs=True)[output]


def openvino_streams(case: Case) -> Call:
    """A request an image, all in flight at once on as many streams as :data:`STREAMS`."""
    import numpy
    import openvino

    network = _openvino(case, 1, {"NUM_STREAMS": STREAMS})
    pixels = case.x.numpy()
    result = numpy.empty((len(pixels), *network.output(0).shape[1:]), numpy.float32)
    requests = []
    for i in range(len(pixels)):
        request = network.create_infer_request()
        request.set_input_tensor(openvino.Tensor(pixels[i : i + 1], shared_memory=True))
        request.set_output_tensor(openvino.Tensor(result[i : i + 1], shared_memory=True))
        requests.append(request)

    def call() -> Any:
        for request in requests:
            request.start_async()
        for request in requests:
            request.wait()
        return result

    return call


def _openvino(case: Case, batch: int, options: dict[str, Any]) -> Any:
    import openvino

    precision = {torch.float32: "f32", torch.bfloat16: "bf16"}[case.dtype]
    options = options | {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": case.threads}
    core = openvino.Core()
    return core.compile_model(core.read_model(case.onnx(batch)), "CPU", options)


def _of_several(case: Case) -> bool:
    return len(case.x) > 1 and case.threads > 1


_ONNX = ("onnx", "onnxscript")
ENGINES: dict[str, Engine] = {
    FASTCNN: Engine(fastcnn_call),
    ORT: Engine(onnx_runtime, (*_ONNX, "onnxruntime"), lambda case: case.dtype == torch.float32),
    OPENVINO: Engine(openvino_latency, (*_ONNX, "openvino")),
    OPENVINO_STREAMS: Engine(openvino_streams, (*_ONNX, "openvino"), _of_several),
    COMPILE_LAST: Engine(lambda case: compiled(*case.cast(torch.channels_last))),
    COMPILE: Engine(lambda case: compiled(*case.cast(torch.contiguous_format))),
    EAGER: Engine(eager),
}


def missing(engines: dict[str, Engine] | None = None) -> list[str]:
    """Packages that engines need and that are not installed."""
    needed = dict.fromkeys(package for engine in (engines or ENGINES).values() for package in engine.needs)
    return [package for package in needed if importlib.util.find_spec(package) is None]
