# SPDX-License-Identifier: Apache-2.0
"""TensorRT, by torch_tensorrt or else by tensorrt and an ONNX file in memory; nothing of it is required."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable

import torch
from torch import Tensor, nn


def installed() -> str | None:
    """The package that will be used."""
    return next((name for name in ("torch_tensorrt", "tensorrt") if importlib.util.find_spec(name)), None)


def build(net: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """An engine for this one input, in its dtype."""
    return _by_torch_tensorrt(net, x) if installed() == "torch_tensorrt" else _by_onnx(net, x)


def _by_torch_tensorrt(net: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    import torch_tensorrt

    compiled = torch_tensorrt.compile(net, ir="dynamo", inputs=[x], enabled_precisions={x.dtype})
    return lambda: compiled(x)


def _by_onnx(net: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    import tensorrt

    file = io.BytesIO()
    torch.onnx.export(net, (x.contiguous(),), file, input_names=["x"], output_names=["y"], dynamo=False)
    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(file.getvalue()):
        raise RuntimeError(f"TensorRT cannot read the network: {parser.get_error(0)}")
    config = builder.create_builder_config()
    config.set_flag(tensorrt.BuilderFlag.FP16 if x.dtype is torch.float16 else tensorrt.BuilderFlag.BF16)
    engine = tensorrt.Runtime(logger).deserialize_cuda_engine(builder.build_serialized_network(network, config))
    context = engine.create_execution_context()
    source, y = x.contiguous(), torch.empty(len(x), 1000, dtype=x.dtype, device=x.device)
    for name, tensor in (("x", source), ("y", y)):
        context.set_tensor_address(name, tensor.data_ptr())

    def run() -> Tensor:
        context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
        return y

    run.keeps = (engine, source)  # their memory must outlive this function
    return run
