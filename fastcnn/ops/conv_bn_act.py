# SPDX-License-Identifier: Apache-2.0
"""act(bn(conv(x)) + residual) as one op, in eval and in training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks, _usual
from . import _conv_bn_act_reference as reference
from ._register import no_double_backward, register, register_autocast, register_autograd

_OP = "conv_bn_act"
_PLACES = (0, 1, 2, 3, 4, 7)  # of x, weight, bias, bn_weight, bn_bias and residual in both forward schemas


def _flops(x_shape, weight_shape, *arguments, out_shape=None, **kwargs) -> int:
    y_shape = out_shape if isinstance(out_shape[0], int) else out_shape[0]
    return 2 * math.prod(y_shape) * math.prod(weight_shape[1:])


def _flops_backward(grad_shape, x_shape, weight_shape, *arguments, out_shape=None, **kwargs) -> int:
    mask = arguments[-1]
    return 2 * math.prod(grad_shape) * math.prod(weight_shape[1:]) * (int(mask[0]) + int(mask[1]))


_op = register(_OP, reference.forward, reference.fake, _flops)
_op_train = register("conv_bn_act_train", reference.train, reference.fake_train, _flops)
_op_backward = register("conv_bn_act_backward", reference.backward, reference.fake_backward, _flops_backward)


def _gradients(needs: Sequence[bool], values: tuple[Tensor, ...]) -> tuple:
    found: list[Tensor | None] = [None] * len(needs)
    for place, value in zip(_PLACES, values):
        if needs[place]:
            found[place] = value
    return tuple(found)


def _backward(needs, inputs, outputs, grads):
    x, weight, bias, bn_weight, bn_bias, mean, variance, residual, *geometry, eps, activation = inputs
    invstd = None if variance is None else torch.rsqrt(variance.to(reference.accumulator(x)) + eps)
    mask = [needs[place] for place in _PLACES]
    return _gradients(needs, _op_backward(grads[0], x, weight, None, bias, bn_weight, bn_bias, mean, invstd, residual,
                                          *geometry, False, activation, mask))  # fmt: skip


def _backward_train(needs, inputs, outputs, grads):
    x, weight, bias, bn_weight, bn_bias, _, _, residual, *geometry, _, _, activation = inputs
    mask = [needs[place] for place in _PLACES]
    z, mean, invstd = outputs
    return _gradients(needs, _op_backward(grads[0], x, weight, z, bias, bn_weight, bn_bias, mean, invstd, residual,
                                          *geometry, True, activation, mask))  # fmt: skip


def _drop(*inputs) -> tuple[int, ...]:
    return (7,) if inputs[-1] == "identity" else ()


def _drop_train(*inputs) -> tuple[int, ...]:
    return (5, 6, *_drop(*inputs))  # the page overwrites the running statistics right after the op


register_autograd(_op, _backward, reference.differentiable, drop=_drop)
register_autograd(_op_train, _backward_train, reference.differentiable_train, outputs=(1, 2, 3), drop=_drop_train)
no_double_backward(_op_backward)
for _each in (_op, _op_train):
    register_autocast(_each, cast=(0, 1, 7))

def _check(x, weight, vectors, residual, stride, padding, dilation, groups, training, momentum, eps, activation):
    """(stride, padding, dilation) as the ops take them, or the error that names the argument."""
    _checks.check_input(_OP, "x", x, 4)
    _checks.check_input(_OP, "weight", weight, 4)
    _checks.check_activation(_OP, "activation", activation)
    stride, dilation = _checks.pair(_OP, "stride", stride, 1), _checks.pair(_OP, "dilation", dilation, 1)
    padding = _checks.four_paddings(_OP, padding)
    channels, out_channels = x.shape[1], weight.shape[0]
    if not isinstance(groups, int) or groups < 1 or channels % groups or out_channels % groups:
        raise ValueError(f"{_OP}: groups must be positive and divide the channels of x, {channels}, and of the output, "
                         f"{out_channels}, got {groups}")  # fmt: skip
    if weight.shape[1] != channels // groups:
        raise ValueError(f"{_OP}: weight must be [O, {channels // groups}, kH, kW] for x with C = {channels} and "
                         f"groups = {groups}, got {_checks.shape_text(weight)}")  # fmt: skip
    if channels < 1 or out_channels < 1:
        raise ValueError(f"{_OP}: x and weight must have at least one channel, got {_checks.shape_text(x)} and {_checks.shape_text(weight)}")
    shape = (x.shape[0], out_channels, *_checks.check_window(_OP, x, weight, stride, padding, dilation))
    cast = _checks.autocast_active(x)
    _checks.check_like(_OP, "weight", weight, x, any_dtype=cast)
    for name, vector in zip(("bn_weight", "bn_bias", "running_mean", "running_var", "bias"), vectors):
        _checks.check_like(_OP, name, vector, x, (out_channels,), f"[{out_channels}], one value per output channel",
                           float32_allowed=True, any_dtype=cast)  # fmt: skip
    _checks.check_like(_OP, "residual", residual, x, shape, f"{list(shape)}, the shape of the output", any_dtype=cast)
    bn_weight, bn_bias, mean, var, _ = vectors
    if (mean is None) != (var is None):
        raise ValueError(f"{_OP}: running_mean and running_var must be given together, got only "
                         f"{'running_var' if mean is None else 'running_mean'}")  # fmt: skip
    if not training and mean is None and (bn_weight is not None or bn_bias is not None):
        raise ValueError(f"{_OP}: running_mean and running_var must be given with bn_weight or bn_bias when training "
                         "is False, got None")  # fmt: skip
    for name, value in (("eps", eps), ("momentum", momentum)):
        if not isinstance(value, (int, float, torch.SymFloat)):
            raise TypeError(f"{_OP}: {name} must be a number, got {type(value).__name__}")
    if not 0.0 <= eps < math.inf:
        raise ValueError(f"{_OP}: eps must be finite and not negative, got {eps}")
    if training:
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"{_OP}: momentum must be between 0 and 1, got {momentum}")
        if shape[0] * shape[2] * shape[3] == 1:
            raise ValueError(f"{_OP}: training needs more than 1 value per channel of the convolution's output, "
                             f"got {list(shape)}")  # fmt: skip
    return stride, padding, dilation


def conv_bn_act(
    x: Tensor, weight: Tensor, bn_weight: Tensor | None = None, bn_bias: Tensor | None = None,
    running_mean: Tensor | None = None, running_var: Tensor | None = None, bias: Tensor | None = None,
    residual: Tensor | None = None, stride: int | Sequence[int] = 1, padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1, groups: int = 1, training: bool = False, momentum: float = 0.1,
    eps: float = 1e-5, activation: str = "identity",
) -> Tensor:  # fmt: skip
    """2-D convolution, batch norm, residual and activation in one op: ``act(bn(conv(x) + bias) + residual)``.

    ``bn(z) = (z - mean) / sqrt(var + eps) * bn_weight + bn_bias``, with the running statistics in eval, the batch's own
    in training. 1x1 and depthwise convolutions run on kernels of ours with the rest in their epilogue, the others on
    ATen's convolution and one fused pass.

    Args:
        x: ``[N, C, H, W]``.
        weight: ``[O, C / groups, kH, kW]``.
        bn_weight, bn_bias: ``[O]``, None for 1 and 0.
        running_mean, running_var: ``[O]``; in training they are updated in place, the variance with the unbiased
            estimate, and may be None. In eval, all four None means no batch norm.
        bias: ``[O]``, of the convolution.
        residual: ``[N, O, Ho, Wo]``, added before the activation.
        stride, dilation: one number or (h, w).
        padding: one number, (h, w), (left, right, top, bottom), "valid", or "same" (TensorFlow's:
            ``Ho = ceil(H / stride)``, the odd pixel at the bottom and the right).
        momentum: weight of the batch in the running statistics, 0 to 1.
        activation: a name of :func:`activation`.
    Returns: ``[N, O, Ho, Wo]`` in the dtype and memory format of ``x``.
    Memory format: contiguous and channels_last each have their own kernels; that of ``x`` is kept, whatever
        ``weight`` has.
    Dtypes: float32, float64, float16, bfloat16; accumulated in float32 (float64), in eval rounded once. BN vectors and
        bias: the dtype of ``x`` or float32. Under autocast x, weight and residual are cast, the vectors stay.
    Determinism: bitwise for the kernels of ours; no sum is split by the number of threads.
    Raises: ValueError and TypeError naming the argument, what is wanted and what was given; ValueError in training with
        one value per channel.
    Source: batch norm arXiv:1502.03167, MobileNet arXiv:1704.04861.

    >>> x, weight = torch.ones(1, 2, 1, 1), torch.tensor([[1., 2.], [3., -9.]]).view(2, 2, 1, 1)
    >>> fastcnn.ops.conv_bn_act(x, weight, bias=torch.tensor([0.5, 0.]), activation="relu").flatten().tolist()
    [3.5, 0.0]
    """
    vectors = (bn_weight, bn_bias, running_mean, running_var, bias)
    if not training and (running_mean is None) is (running_var is None) and type(eps) is float and 0.0 <= eps < math.inf:
        normal = running_mean is not None or (bn_weight is None and bn_bias is None)
        usual = normal and _usual.convolution(x, weight, vectors, residual, stride, padding, dilation, groups, activation)
        if usual:
            return _op(x, weight, bias, bn_weight, bn_bias, running_mean, running_var, residual, *usual, groups, eps,
                       activation)  # fmt: skip
    stride, padding, dilation = _check(x, weight, vectors, residual, stride, padding, dilation, groups, training,
                                       momentum, eps, activation)  # fmt: skip
    if not training:
        return _op(x, weight, bias, bn_weight, bn_bias, running_mean, running_var, residual, stride, padding, dilation,
                   groups, eps, activation)  # fmt: skip
    y, _, _, _, new_mean, new_var = _op_train(x, weight, bias, bn_weight, bn_bias, running_mean, running_var, residual,
                                              stride, padding, dilation, groups, momentum, eps, activation)  # fmt: skip
    if running_mean is not None:
        with torch.no_grad():
            running_mean.copy_(new_mean)
            running_var.copy_(new_var)
    return y
