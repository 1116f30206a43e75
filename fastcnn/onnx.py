# SPDX-License-Identifier: Apache-2.0
"""ONNX: each inference op in standard operators (opset 18), and a model with its weights as one file.

Half precision is computed in float32 where the ops do so: everything but the convolution itself.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ._library import NAMESPACE, SCHEMAS
from .ops._checks import SAME, resolve_padding
from .ops.max_pool2d import output_size
from .reference import pip_command

try:
    import onnx
    from onnxscript import ir
    from onnxscript import opset18 as op
except ImportError as error:
    raise ImportError(
        f"fastcnn.onnx: {error}; to install what it needs: {pip_command('onnx', 'onnxscript')}"
    ) from error

__all__ = ["export", "translation_table"]

Value = Any  # of the graph in the making; None where an optional tensor is not given
_LARGEST_FILE = 2**31 - 1  # of a protobuf message, which the file is


def _wide(x: Value) -> ir.DataType:
    """The accumulation type: float32 for the half types."""
    return ir.DataType.DOUBLE if x.dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT


def _cast(value: Value, to: ir.DataType, known: ir.DataType | None = None) -> Value:
    """``known``: the type of ``value`` where that is a result in the making, which carries neither type nor shape."""
    return value if value is None or (known or value.dtype) == to else op.Cast(value, to=to)


def _ints(*values: int) -> Value:
    return op.Constant(value_ints=values)


def _per_channel(vector: Value, dtype: ir.DataType) -> Value:
    return op.Unsqueeze(_cast(vector, dtype), _ints(1, 2))


def _activate(z: Value, kind: str, dtype: ir.DataType) -> Value:
    if kind == "identity":
        return z
    if kind == "relu6":
        low, high = (op.Constant(value=ir.tensor(limit, dtype=dtype)) for limit in (0.0, 6.0))
        return op.Clip(z, low, high)
    if kind == "silu":
        return op.Mul(z, op.Sigmoid(z))
    if kind == "hardsigmoid":
        return op.HardSigmoid(z, alpha=1 / 6, beta=0.5)
    return {"relu": op.Relu, "hardswish": op.HardSwish, "sigmoid": op.Sigmoid}[kind](z)


def activation(x: Value, kind: str) -> Value:
    if kind == "identity":
        return op.Identity(x)
    wide = _wide(x)
    return _cast(_activate(_cast(x, wide), kind, wide), x.dtype, wide)


def hardswish(x: Value) -> Value:
    return activation(x, "hardswish")


def _shuffle(x: Value, like: Value, channels: int, groups: int) -> Value:
    """``like`` has the batch and the spatial size of ``x``."""
    spatial = list(like.shape)[2:]
    known = all(isinstance(size, int) for size in spatial)
    pixels = torch.Size(spatial).numel() if known else -1
    split = op.Reshape(x, _ints(0, groups, channels // groups, pixels))
    shape = _ints(0, channels, *spatial) if known else op.Shape(x)
    return op.Reshape(op.Transpose(split, perm=[0, 2, 1, 3]), shape)


def channel_shuffle(x: Value, groups: int) -> Value:
    return _shuffle(x, x, x.shape[1], groups)


def channel_shuffle_concat(x1: Value, x2: Value) -> Value:
    return _shuffle(op.Concat(x1, x2, axis=1), x1, 2 * x1.shape[1], 2)


def global_avg_pool(x: Value) -> Value:
    return op.GlobalAveragePool(x)


def _squeeze_excite(
    x: Value, w1: Value, b1: Value, w2: Value, b2: Value, activation: str, gate: str
) -> tuple[Value, Value]:
    """The gates and the means that they come from, both [N, C] in the accumulation type."""
    wide = _wide(x)
    pooled = gates = op.Flatten(_cast(op.GlobalAveragePool(x), wide, x.dtype), axis=1)
    for weight, bias, kind in ((w1, b1, activation), (w2, b2, gate)):
        matrix = op.Flatten(_cast(weight, wide), axis=1)  # the weight of a 1x1 convolution is one too
        gates = _activate(op.Gemm(gates, matrix, _cast(bias, wide), transB=1), kind, wide)
    return gates, pooled


def se_gate(x: Value, w1: Value, b1: Value, w2: Value, b2: Value, activation: str, gate: str) -> Value:
    return _squeeze_excite(x, w1, b1, w2, b2, activation, gate)[0]


def se_scale(x: Value, w1: Value, b1: Value, w2: Value, b2: Value, activation: str, gate: str) -> tuple[Value, Value]:
    gates, pooled = _squeeze_excite(x, w1, b1, w2, b2, activation, gate)
    wide = _wide(x)
    y = op.Mul(_cast(x, wide), op.Unsqueeze(gates, _ints(2, 3)))
    return _cast(y, x.dtype, wide), pooled


def _batch_norm(z: Value, mean: Value, var: Value, weight: Value, bias: Value, eps: float, dtype: ir.DataType) -> Value:
    def of_ones(value: float) -> Value:
        return op.ConstantOfShape(op.Shape(mean), value=ir.tensor([value], dtype=dtype))

    weight = of_ones(1.0) if weight is None else _cast(weight, dtype)
    bias = of_ones(0.0) if bias is None else _cast(bias, dtype)
    return op.BatchNormalization(z, weight, bias, _cast(mean, dtype), _cast(var, dtype), epsilon=eps)


def _end(y: Value, residual: Value, activation: str, dtype: ir.DataType, x: Value) -> Value:
    """What follows a convolution or a batch norm, in ``dtype``; the result in the type of ``x``."""
    y = y if residual is None else op.Add(y, _cast(residual, dtype))
    return _cast(_activate(y, activation, dtype), x.dtype, dtype)


def batch_norm_act(
    x: Value, running_mean: Value, running_var: Value, weight: Value, bias: Value, residual: Value, eps: float,
    activation: str,
) -> Value:  # fmt: skip
    wide = _wide(x)
    y = _batch_norm(_cast(x, wide), running_mean, running_var, weight, bias, eps, wide)
    return _end(y, residual, activation, wide, x)


def _pad_same(x: Value, kernel: list[int], stride: list[int], dilation: list[int]) -> Value:
    """TensorFlow's padding from the size that ``x`` has when the model runs."""
    window = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = op.Shape(x, start=2, end=4)
    last = op.Div(op.Sub(size, _ints(1, 1)), _ints(*stride))
    total = op.Max(op.Sub(op.Add(op.Mul(last, _ints(*stride)), _ints(*window)), size), _ints(0, 0))
    before = op.Div(total, _ints(2, 2))
    return op.Pad(x, op.Concat(_ints(0, 0), before, _ints(0, 0), op.Sub(total, before), axis=0))


def _convolve(
    x: Value, weight: Value, bias: Value, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Value:
    options: dict[str, Any] = {"strides": stride, "dilations": dilation, "group": groups}
    kernel, size = list(weight.shape)[2:], list(x.shape)[2:]
    if tuple(padding) != SAME:
        left, right, top, bottom = padding
        options["pads"] = [top, left, bottom, right]
    elif list(dilation) == [1, 1]:
        options["auto_pad"] = "SAME_UPPER"
    elif all(isinstance(each, int) for each in size):  # auto_pad and dilation together: not in every runtime
        left, right, top, bottom = resolve_padding(padding, size, kernel, stride, dilation)
        options["pads"] = [top, left, bottom, right]
    else:
        return op.Conv(_pad_same(x, kernel, stride, dilation), weight, _cast(bias, x.dtype), **options)
    return op.Conv(x, weight, _cast(bias, x.dtype), **options)


def conv_bn_act(
    x: Value, weight: Value, bias: Value, bn_weight: Value, bn_bias: Value, running_mean: Value, running_var: Value,
    residual: Value, stride: list[int], padding: list[int], dilation: list[int], groups: int, eps: float,
    activation: str,
) -> Value:  # fmt: skip
    z = _convolve(x, weight, bias, stride, padding, dilation, groups)
    wide = _wide(x)
    y = _cast(z, wide, x.dtype)
    if running_mean is not None:
        y = _batch_norm(y, running_mean, running_var, bn_weight, bn_bias, eps, wide)
    return _end(y, residual, activation, wide, x)


def depthwise_conv2d(
    x: Value, weight: Value, bias: Value, residual: Value, stride: list[int], padding: list[int],
    dilation: list[int], activation: str,
) -> Value:  # fmt: skip
    z = _convolve(x, weight, bias, stride, padding, dilation, x.shape[1])
    wide = _wide(x)
    return _end(_cast(z, wide, x.dtype), residual, activation, wide, x)


def depthwise_se_gate(
    x: Value, weight: Value, bias: Value, w1: Value, b1: Value, w2: Value, b2: Value, stride: list[int],
    padding: list[int], dilation: list[int], activation: str, squeeze: str, gate: str,
) -> tuple[Value, Value]:  # fmt: skip
    y = depthwise_conv2d(x, weight, bias, None, stride, padding, dilation, activation)
    y.dtype = x.dtype  # a result in the making carries none
    return y, se_gate(y, w1, b1, w2, b2, squeeze, gate)


def pointwise_conv2d(
    x: Value, weight: Value, bias: Value, residual: Value, gate: Value, scale: Value, shift: Value, prologue: str,
    activation: str,
) -> Value:  # fmt: skip
    wide = _wide(x)
    z = _cast(x, wide)
    z = z if scale is None else op.Mul(z, _per_channel(scale, wide))
    z = z if shift is None else op.Add(z, _per_channel(shift, wide))
    z = _activate(z, prologue, wide)
    z = z if gate is None else op.Mul(z, op.Unsqueeze(_cast(gate, wide), _ints(2, 3)))
    y = op.Conv(_cast(z, x.dtype, wide), weight, _cast(bias, x.dtype))
    return _end(_cast(y, wide, x.dtype), residual, activation, wide, x)


def max_pool2d(x: Value, kernel_size: list[int], stride: list[int], padding: list[int], ceil_mode: bool) -> Value:
    sizes, ends = list(x.shape)[2:], list(padding)
    if ceil_mode and all(isinstance(size, int) for size in sizes):
        # written out: operator sets before 22 also count a last window that lies in the padding alone
        for d, (size, kernel, step, pad) in enumerate(zip(sizes, kernel_size, stride, padding, strict=True)):
            last = (output_size(size, kernel, step, pad, True) - 1) * step
            ends[d] = max(last + kernel - size - pad, 0)
        ceil_mode = False
    y, _ = op.MaxPool(x, kernel_shape=kernel_size, strides=stride, pads=[*padding, *ends], ceil_mode=int(ceil_mode))
    return y


_TRANSLATIONS: dict[str, Callable] = {
    function.__name__: function
    for function in (
        activation, hardswish, channel_shuffle, channel_shuffle_concat, global_avg_pool, se_scale, se_gate,
        batch_norm_act, depthwise_conv2d, conv_bn_act, pointwise_conv2d, max_pool2d, depthwise_se_gate,
    )
}  # fmt: skip


def translation_table() -> dict[Callable, Callable]:
    """Op -> its translation, for ``torch.onnx.export(..., dynamo=True, custom_translation_table=...)``.

    Every inference op of ``schemas.txt``; the ops of training and of gradients have none.
    """
    namespace = getattr(torch.ops, NAMESPACE)
    return {getattr(namespace, name).default: _TRANSLATIONS[name] for name in _TRANSLATIONS if name in SCHEMAS}


def export(
    model: nn.Module, args: Tensor | tuple[Any, ...], path: str | os.PathLike, *, dynamic_batch: bool = True
) -> torch.onnx.ONNXProgram:
    """Writes ``model``, ours or not, with its weights as one ONNX file of standard operators.

    Args:
        model: in eval mode.
        args: its input, or the tuple of its inputs.
        path: of the file; nothing is written before the checker of the onnx package has passed the model.
        dynamic_batch: the first dimension of every input tensor is the batch and may have any size at run time.
    Returns: the program that was written.
    Raises: TypeError when ``model`` is not a module or no input is a tensor; ValueError for a model in training mode,
        or with 2 GiB of weights or more; torch's own errors for what cannot be exported.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"export: model must be an nn.Module, got {type(model).__name__}")
    if model.training:
        raise ValueError("export: model must be in eval mode, got one in training mode; call model.eval() first")
    args = args if isinstance(args, tuple) else (args,)
    if not any(isinstance(each, Tensor) for each in args):
        raise TypeError(f"export: args must be a tensor or a tuple with one, got {[type(a).__name__ for a in args]}")
    weights = {id(each): each.nbytes for each in [*model.parameters(), *model.buffers()]}
    if sum(weights.values()) > _LARGEST_FILE:
        raise ValueError(
            f"export: model must have less than 2 GiB of weights for one file, got {sum(weights.values()) / 2**30:.1f} "
            "GiB; call torch.onnx.export(..., external_data=True) with fastcnn.onnx.translation_table()"
        )
    shapes = None
    if dynamic_batch:
        args = tree_map_only(Tensor, _at_least_two, args)
        batch = torch.export.Dim("batch")
        given = dict(inspect.signature(model.forward).bind(*args).arguments)
        shapes = tree_map_only(Tensor, lambda x: {0: batch} if x.dim() else None, given)
    with torch.no_grad(), warnings.catch_warnings():
        # torch names the batch after the first input and says so for each other one
        warnings.filterwarnings("ignore", message="# The axis name: batch will not be used")
        program = torch.onnx.export(
            model, args, dynamo=True, dynamic_shapes=shapes, custom_translation_table=translation_table(),
            verbose=False,
        )  # fmt: skip
    onnx.checker.check_model(program.model_proto, full_check=True)
    program.save(path, external_data=False)
    return program


def _at_least_two(x: Tensor) -> Tensor:
    """torch.export takes a dimension of 1 for a constant."""
    return torch.cat((x, x)) if x.dim() and x.shape[0] == 1 else x
