# SPDX-License-Identifier: Apache-2.0
"""The shapes that the benchmarks time: recorded from the models on the meta device, never invented."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastcnn

REPRESENTATIVE = ("mobilenet_v1_x1_0", "mobilenet_v2", "mobilenet_v3_large", "shufflenet_v2_x1_0", "efficientnet_b0", "efficientnet_lite0")


class TensorSpec(NamedTuple):
    """A tensor argument: its shape only; dtype and memory format are the benchmark's parameters."""

    shape: tuple[int, ...]


class Call(NamedTuple):
    """One call of ``torch.ops.fastcnn.<op>`` with every tensor replaced by its TensorSpec, and its output shape."""

    op: str
    arguments: tuple
    output: tuple[int, ...]

    @property
    def label(self) -> str:
        x = "x".join(map(str, self.arguments[0].shape))
        if self.op in ("conv_bn_act", "depthwise_conv2d"):
            weight, (stride, *_rest) = self.arguments[1].shape, self.arguments[-6 if self.op == "conv_bn_act" else -4]
            depthwise = "dw" if weight[1] == 1 and weight[0] == self.arguments[0].shape[1] else "conv"
            residual = self.arguments[7 if self.op == "conv_bn_act" else 3] is not None
            return f"{x} {depthwise}{weight[2]}x{weight[3]}s{stride}->{weight[0]} {self.arguments[-1]}{'+res' if residual else ''}"
        if self.op == "channel_shuffle":
            return f"{x} g{self.arguments[1]}"
        if self.op == "channel_shuffle_concat":
            return f"2 x {x}"
        if self.op == "max_pool2d":
            (kernel, _), (stride, _) = self.arguments[1:3]
            return f"{x} k{kernel}s{stride}"
        if self.op == "pointwise_conv2d":
            weight, _, residual, gate, scale, _, prologue, activation = self.arguments[1:]
            front = "gate" if scale is None else f"bn {prologue}{' gate' if gate is not None else ''}"
            return f"{x} {front} ->{weight.shape[0]} {activation}{'+res' if residual is not None else ''}"
        if self.op == "depthwise_se_gate":
            _, weight, _, w1, _, _, _, (stride, _), _, _, activation, squeeze, gate = self.arguments
            window = f"dw{weight.shape[2]}x{weight.shape[3]}s{stride}->{weight.shape[0]}"
            return f"{x} {window} {activation} r{w1.shape[0]} {squeeze}/{gate}"
        if self.op in ("se_scale", "se_gate"):
            return f"{x} r{self.arguments[1].shape[0]} {self.arguments[5]}/{self.arguments[6]}"
        return f"{x} {self.arguments[-1]}" if isinstance(self.arguments[-1], str) else x


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "fastcnn":
            first = result[0] if isinstance(result, tuple) else result
            spec = tuple(TensorSpec(tuple(a.shape)) if isinstance(a, Tensor) else tuple(a) if isinstance(a, list) else a for a in args)
            self.calls.append(Call(func.__name__.split(".")[0], spec, tuple(first.shape)))
        return result


@cache
def model_calls(name: str, batch: int) -> tuple[Call, ...]:
    """Every fastcnn op of one eval forward of the model at its own input size, in order."""
    import fastcnn.models

    size = fastcnn.models.metadata(name)["input_size"]
    with torch.device("meta"), torch.inference_mode(), _Recorder() as recorder:
        fastcnn.create_model(name).eval()(torch.empty(batch, *size))
    return tuple(recorder.calls)


def _is_depthwise(call: Call) -> bool:
    return call.op == "conv_bn_act" and call.arguments[1].shape[1] == 1 and call.arguments[11] == call.arguments[0].shape[1]


def _derived(call: Call) -> Iterator[Call]:
    """The narrower ops that a user of the layer would call on the same tensors."""
    yield call
    if call.op == "channel_shuffle_concat":
        yield Call("channel_shuffle", (TensorSpec(call.output), 2), call.output)
    if call.op == "se_scale":
        yield Call("se_gate", call.arguments, call.output[:2])
    if call.op != "conv_bn_act":
        return
    x, weight, _, bn_weight, bn_bias, mean, var, residual, stride, padding, dilation, _, eps, activation = call.arguments
    y = TensorSpec(call.output)
    if _is_depthwise(call):
        yield Call("depthwise_conv2d", (x, weight, None, None, stride, padding, dilation, "identity"), call.output)
    if mean is not None:
        yield Call("batch_norm_act", (y, mean, var, bn_weight, bn_bias, residual, eps, activation), call.output)
    if activation == "hardswish":
        yield Call("hardswish", (y,), call.output)
    elif activation != "identity":
        yield Call("activation", (y, activation), call.output)


def _fused(call: Call, following: Call | None) -> Iterator[Call]:
    """The 1x1 convolution that reads what squeeze-and-excitation or a batch norm writes, the gate of what a depthwise
    convolution writes, as one op."""
    if following is None or following.arguments[0] != TensorSpec(call.output):
        return
    if following.op == "se_scale" and _is_depthwise(call) and call.arguments[7] is None:
        x, weight, *_, stride, padding, dilation, _, _, activation = call.arguments
        (_, *layers), bias = following.arguments, TensorSpec(weight.shape[:1])
        arguments = (x, weight, bias, *layers[:4], stride, padding, dilation, activation, *layers[4:])
        yield Call("depthwise_se_gate", arguments, call.output)
    if following.op != "conv_bn_act":
        return
    x, weight, *_, residual, stride, padding, _, groups, _, activation = following.arguments
    (out, channels, *kernel), unpadded = weight.shape, tuple(padding) in ((0,) * 4, (-1,) * 4)
    if kernel != [1, 1] or tuple(stride) != (1, 1) or groups != 1 or not unpadded:
        return
    if call.op == "se_scale":
        front = (TensorSpec((x.shape[0], channels)), None, None, "identity")
    elif call.op == "batch_norm_act" and call.arguments[5] is None:
        front = (None, TensorSpec((channels,)), TensorSpec((channels,)), call.arguments[7])
    else:
        return
    yield Call("pointwise_conv2d", (x, weight, TensorSpec((out,)), residual, *front, activation), following.output)


def op_calls(op: str, models: Sequence[str], batches: Sequence[int]) -> list[Call]:
    """The distinct calls of ``op`` in the models, in the order in which they first appear."""
    found = {}
    for batch in batches:
        for model in models:
            calls = model_calls(model, batch)
            for call, following in zip(calls, (*calls[1:], None)):
                for each in (*_derived(call), *_fused(call, following)):
                    if each.op == op:
                        found.setdefault(each)
    return list(found)
