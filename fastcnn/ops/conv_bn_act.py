# SPDX-License-Identifier: Apache-2.0
"""act(bn(conv(x)) + residual) as one op, in eval and in training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks
from ._register import no_double_backward, register, register_autocast, register_autograd
from .activation import _TORCH, _TORCH_BACKWARD

_OP = "conv_bn_act"


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def _per_channel(vector: Tensor, like: Tensor) -> Tensor:
    return vector.to(_wide(like)).view(1, -1, 1, 1)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
              groups: int) -> Tensor:
    left, right, top, bottom = _checks.resolve_padding(padding, x.shape[2:], weight.shape[2:], stride, dilation)
    if left != right or top != bottom:
        x, left, top = F.pad(x, (left, right, top, bottom)), 0, 0
    return torch.conv2d(x, weight, None if bias is None else bias.to(x.dtype), stride, (top, left), dilation, groups)


def _finish(z: Tensor, mean: Tensor | None, invstd: Tensor | None, bn_weight: Tensor | None, bn_bias: Tensor | None, residual: Tensor | None,
            activation: str) -> Tensor:
    y = z.to(_wide(z))
    if mean is not None:
        y = (y - _per_channel(mean, z)) * _per_channel(invstd, z)
    if bn_weight is not None:
        y = y * _per_channel(bn_weight, z)
    if bn_bias is not None:
        y = y + _per_channel(bn_bias, z)
    if residual is not None:
        y = y + residual
    return _TORCH[activation](y).to(z.dtype)


def _differentiable(x, weight, bias, bn_weight, bn_bias, running_mean, running_var, residual, stride, padding, dilation, groups, eps, activation):
    z = _convolve(x, weight, bias, stride, padding, dilation, groups)
    invstd = None if running_var is None else torch.rsqrt(running_var.to(_wide(x)) + eps)
    return _finish(z, running_mean, invstd, bn_weight, bn_bias, residual, activation)


def _differentiable_train(x, weight, bias, bn_weight, bn_bias, running_mean, running_var, residual, stride, padding, dilation, groups, momentum,
                          eps, activation):
    z = _convolve(x, weight, bias, stride, padding, dilation, groups)
    wide, count = z.to(_wide(z)), z.numel() // max(z.shape[1], 1)
    if count == 0:  # nothing was seen: the running statistics stay
        mean, variance, momentum = wide.new_zeros(z.shape[1]), wide.new_zeros(z.shape[1]), 0.0
    else:
        mean = wide.mean((0, 2, 3))
        variance = (wide - mean.view(1, -1, 1, 1)).square().mean((0, 2, 3))
    invstd = torch.rsqrt(variance + eps)
    y = _finish(z, mean, invstd, bn_weight, bn_bias, residual, activation)
    if running_mean is None:
        return y, z, mean, invstd, z.new_empty(0), z.new_empty(0)
    unbiased = variance * (count / max(count - 1, 1))
    new_mean, new_var = (old + momentum * (new - old) for old, new in ((running_mean.to(mean.dtype), mean), (running_var.to(mean.dtype), unbiased)))
    return y, z, mean, invstd, new_mean.to(running_mean.dtype), new_var.to(running_var.dtype)


def _in_format_of(x: Tensor, y: Tensor) -> Tensor:
    return _checks.empty_like_format(x, y.shape).copy_(y)


def conv_bn_act_reference(x: Tensor, *arguments) -> Tensor:
    return _in_format_of(x, _differentiable(x, *arguments))


def conv_bn_act_train_reference(x: Tensor, *arguments) -> tuple[Tensor, ...]:
    y, z, *statistics = _differentiable_train(x, *arguments)
    return _in_format_of(x, y), _in_format_of(x, z), *statistics


def conv_bn_act_backward_reference(grad, x, weight, z, bias, bn_weight, bn_bias, mean, invstd, residual, stride, padding, dilation, groups,
                                   training, activation, mask):
    if z is None:
        z = _convolve(x, weight, bias, stride, padding, dilation, groups)
    wide = _wide(x)
    normalised = z.to(wide)
    if mean is not None:
        normalised = (normalised - _per_channel(mean, x)) * _per_channel(invstd, x)
    before = _finish(normalised, None, None, bn_weight, bn_bias, residual, "identity")
    g = _TORCH_BACKWARD[activation](grad.to(wide), before)
    found = [x.new_empty(0)] * 6
    if mask[5]:
        found[5] = _in_format_of(x, g.to(x.dtype))
    sum_g, sum_g_normalised = g.sum((0, 2, 3)), (g * normalised).sum((0, 2, 3))
    if mask[4]:
        found[4] = sum_g.to(bn_bias.dtype)
    if mask[3]:
        found[3] = sum_g_normalised.to(bn_weight.dtype)
    if training and g.numel() > 0:
        g = g - (_per_channel(sum_g, x) + normalised * _per_channel(sum_g_normalised, x)) / (g.numel() // g.shape[1])
    for factor in (invstd, bn_weight):
        if factor is not None:
            g = g * _per_channel(factor, x)
    if mask[2]:
        found[2] = g.sum((0, 2, 3)).to(bias.dtype)
    if mask[0] or mask[1]:
        left, right, top, bottom = _checks.resolve_padding(padding, x.shape[2:], weight.shape[2:], stride, dilation)
        padded = F.pad(x, (left, right, top, bottom))
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(g.to(x.dtype), padded, weight, None, stride, [0, 0], dilation, False, [0, 0],
                                                                     groups, [mask[0], mask[1], False])
        if mask[0]:
            found[0] = _in_format_of(x, grad_x[:, :, top:top + x.shape[2], left:left + x.shape[3]])
        if mask[1]:
            found[1] = _in_format_of(weight, grad_weight)
    return tuple(value.clone() if value.numel() == 0 else value for value in found)


def _output_shape(x, weight, stride, padding, dilation):
    four = _checks.resolve_padding(padding, x.shape[2:], weight.shape[2:], stride, dilation)
    return (x.shape[0], weight.shape[0], *_checks.conv_output_size(x.shape[2:], weight.shape[2:], stride, four, dilation))


def _fake(x, weight, bias, bn_weight, bn_bias, running_mean, running_var, residual, stride, padding, dilation, groups, eps, activation):
    return _checks.empty_like_format(x, _output_shape(x, weight, stride, padding, dilation))


def _fake_train(x, weight, bias, bn_weight, bn_bias, running_mean, running_var, residual, stride, padding, dilation, groups, momentum, eps,
                activation):
    shape = _output_shape(x, weight, stride, padding, dilation)
    y, z = (_checks.empty_like_format(x, shape) for _ in range(2))
    mean, invstd = (x.new_empty(shape[1], dtype=_wide(x)) for _ in range(2))
    new = [x.new_empty(0) if old is None else old.new_empty(shape[1]) for old in (running_mean, running_var)]
    return y, z, mean, invstd, *new


def _fake_backward(grad, x, weight, z, bias, bn_weight, bn_bias, mean, invstd, residual, stride, padding, dilation, groups, training, activation,
                   mask):
    vectors = [v.new_empty(v.shape) if needed else x.new_empty(0) for v, needed in zip((bias, bn_weight, bn_bias), mask[2:5])]
    maps = [_checks.empty_like_format(like, shape) if needed else x.new_empty(0)
            for like, shape, needed in ((x, x.shape, mask[0]), (weight, weight.shape, mask[1]), (x, grad.shape, mask[5]))]
    return maps[0], maps[1], *vectors, maps[2]


def _flops(x_shape, weight_shape, *arguments, out_shape=None, **kwargs) -> int:
    y_shape = out_shape if isinstance(out_shape[0], int) else out_shape[0]
    return 2 * math.prod(y_shape) * math.prod(weight_shape[1:])


def _flops_backward(grad_shape, x_shape, weight_shape, *arguments, out_shape=None, **kwargs) -> int:
    mask = arguments[-1]
    return 2 * math.prod(grad_shape) * math.prod(weight_shape[1:]) * (int(mask[0]) + int(mask[1]))


_op = register(_OP, conv_bn_act_reference, _fake, _flops)
_op_train = register("conv_bn_act_train", conv_bn_act_train_reference, _fake_train, _flops)
_op_backward = register("conv_bn_act_backward", conv_bn_act_backward_reference, _fake_backward, _flops_backward)


def _gradients(needs: Sequence[bool], values: tuple[Tensor, ...], count: int) -> tuple:
    places = (0, 1, 2, 3, 4, 7)
    found: list[Tensor | None] = [None] * count
    for place, value in zip(places, values):
        if needs[place]:
            found[place] = value
    return tuple(found)


def _mask(needs: Sequence[bool]) -> list[bool]:
    return [needs[0], needs[1], needs[2], needs[3], needs[4], needs[7]]


def _backward(needs, inputs, outputs, grads):
    x, weight, bias, bn_weight, bn_bias, mean, variance, residual, stride, padding, dilation, groups, eps, activation = inputs
    invstd = None if variance is None else torch.rsqrt(variance.to(_wide(x)) + eps)
    values = _op_backward(grads[0], x, weight, None, bias, bn_weight, bn_bias, mean, invstd, residual, stride, padding, dilation, groups, False,
                          activation, _mask(needs))
    return _gradients(needs, values, 14)


def _backward_train(needs, inputs, outputs, grads):
    x, weight, bias, bn_weight, bn_bias, _, _, residual, stride, padding, dilation, groups, _, _, activation = inputs
    z, mean, invstd = outputs
    values = _op_backward(grads[0], x, weight, z, bias, bn_weight, bn_bias, mean, invstd, residual, stride, padding, dilation, groups, True,
                          activation, _mask(needs))
    return _gradients(needs, values, 15)


def _drop(*inputs) -> tuple[int, ...]:
    return (7,) if inputs[13] == "identity" else ()


def _drop_train(*inputs) -> tuple[int, ...]:
    # the page overwrites the running statistics right after the op
    return (5, 6, 7) if inputs[14] == "identity" else (5, 6)


register_autograd(_op, _backward, _differentiable, drop=_drop)
register_autograd(_op_train, _backward_train, _differentiable_train, outputs=(1, 2, 3), drop=_drop_train)
no_double_backward(_op_backward)
for _each in (_op, _op_train):
    register_autocast(_each, cast=(0, 1, 7))


def _check(x: Tensor, weight: Tensor, bn_weight: Tensor | None, bn_bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
           bias: Tensor | None, residual: Tensor | None, stride, padding, dilation, groups: int, training: bool, momentum: float, eps: float,
           activation: str) -> tuple[tuple[int, ...], ...]:
    _checks.check_input(_OP, "x", x, 4)
    _checks.check_input(_OP, "weight", weight, 4)
    _checks.check_activation(_OP, "activation", activation)
    stride, dilation = _checks.pair(_OP, "stride", stride, 1), _checks.pair(_OP, "dilation", dilation, 1)
    padding = _checks.four_paddings(_OP, padding)
    channels, out_channels = x.shape[1], weight.shape[0]
    if not isinstance(groups, int) or groups < 1 or channels % groups or out_channels % groups:
        raise ValueError(f"{_OP}: groups must be positive and divide the channels of x, {channels}, and of the output, {out_channels}, got {groups}")
    if weight.shape[1] != channels // groups:
        raise ValueError(f"{_OP}: weight must be [O, {channels // groups}, kH, kW] for x with C = {channels} and groups = {groups}, "
                         f"got {_checks.shape_text(weight)}")
    height, width = _checks.check_window(_OP, x, weight, stride, padding, dilation)
    shape = (x.shape[0], out_channels, height, width)
    lowered = _checks.autocast_active(x)  # then the op casts x, weight and residual itself
    _checks.check_like(_OP, "weight", weight, x, any_dtype=lowered)
    for name, tensor in (("bn_weight", bn_weight), ("bn_bias", bn_bias), ("running_mean", running_mean), ("running_var", running_var),
                         ("bias", bias)):
        _checks.check_like(_OP, name, tensor, x, (out_channels,), f"[{out_channels}], one value per output channel", float32_allowed=True,
                           any_dtype=lowered)
    _checks.check_like(_OP, "residual", residual, x, shape, f"{list(shape)}, the shape of the output", any_dtype=lowered)
    if (running_mean is None) != (running_var is None):
        raise ValueError(f"{_OP}: running_mean and running_var must be given together, got only {'running_var' if running_mean is None else 'running_mean'}")
    if not training and running_mean is None and (bn_weight is not None or bn_bias is not None):
        raise ValueError(f"{_OP}: running_mean and running_var must be given with bn_weight or bn_bias when training is False, got None")
    if not eps >= 0.0 or eps == math.inf:
        raise ValueError(f"{_OP}: eps must be finite and not negative, got {eps}")
    if training:
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f"{_OP}: momentum must be between 0 and 1, got {momentum}")
        if shape[0] * height * width == 1:
            raise ValueError(f"{_OP}: training needs more than 1 value per channel of the convolution's output, got {list(shape)}")
    return stride, padding, dilation


def conv_bn_act(x: Tensor, weight: Tensor, bn_weight: Tensor | None = None, bn_bias: Tensor | None = None, running_mean: Tensor | None = None,
                running_var: Tensor | None = None, bias: Tensor | None = None, residual: Tensor | None = None, stride: int | Sequence[int] = 1,
                padding: int | str | Sequence[int] = 0, dilation: int | Sequence[int] = 1, groups: int = 1, training: bool = False,
                momentum: float = 0.1, eps: float = 1e-5, activation: str = "identity") -> Tensor:
    """2-D convolution, batch norm, residual and activation in one op: ``act(bn(conv(x) + bias) + residual)``.

    ``bn(z) = (z - mean) / sqrt(var + eps) * bn_weight + bn_bias``, with the running statistics in eval, the batch's own in training. 1x1 and
    depthwise convolutions run on kernels of ours with the rest in their epilogue, the others on ATen's convolution and one fused pass.

    Args:
        x: ``[N, C, H, W]``.
        weight: ``[O, C / groups, kH, kW]``.
        bn_weight, bn_bias: ``[O]``, None for 1 and 0.
        running_mean, running_var: ``[O]``; in training they are updated in place, the variance with the unbiased estimate, and may be None.
            In eval, all four None means no batch norm.
        bias: ``[O]``, of the convolution.
        residual: ``[N, O, Ho, Wo]``, added before the activation.
        stride, dilation: one number or (h, w).
        padding: one number, (h, w), (left, right, top, bottom), "valid", or "same" (TensorFlow's: ``Ho = ceil(H / stride)``, the odd pixel at
            the bottom and the right).
        momentum: weight of the batch in the running statistics, 0 to 1.
        activation: a name of :func:`activation`.
    Returns: ``[N, O, Ho, Wo]`` in the dtype and memory format of ``x``.
    Memory format: contiguous and channels_last each have their own kernels; the format of ``x`` is kept whatever that of ``weight``.
    Dtypes: float32, float64, float16, bfloat16; accumulated in float32 (float64), in eval rounded once. BN vectors and bias: the dtype of ``x``
        or float32. Under autocast x, weight and residual are cast, the vectors stay.
    Determinism: bitwise for the kernels of ours; no sum is split by the number of threads.
    Raises: ValueError and TypeError naming the argument, what is wanted and what was given; ValueError in training with one value per channel.
    Source: batch norm arXiv:1502.03167, MobileNet arXiv:1704.04861.

    >>> x, weight = torch.ones(1, 2, 1, 1), torch.tensor([[1., 2.], [3., -9.]]).view(2, 2, 1, 1)
    >>> fastcnn.ops.conv_bn_act(x, weight, bias=torch.tensor([0.5, 0.]), activation="relu").flatten().tolist()
    [3.5, 0.0]
    """
    stride, padding, dilation = _check(x, weight, bn_weight, bn_bias, running_mean, running_var, bias, residual, stride, padding, dilation, groups,
                                       training, momentum, eps, activation)
    if not training:
        return _op(x, weight, bias, bn_weight, bn_bias, running_mean, running_var, residual, stride, padding, dilation, groups, eps, activation)
    y, _, _, _, new_mean, new_var = _op_train(x, weight, bias, bn_weight, bn_bias, running_mean, running_var, residual, stride, padding, dilation,
                                              groups, momentum, eps, activation)
    if running_mean is not None:
        with torch.no_grad():
            running_mean.copy_(new_mean)
            running_var.copy_(new_var)
    return y
