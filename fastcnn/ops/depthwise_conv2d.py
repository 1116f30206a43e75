# SPDX-License-Identifier: Apache-2.0
"""Depthwise convolution with bias, residual and activation in the same pass (MobileNet, arXiv:1704.04861)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks, _usual
from ._register import no_double_backward, register, register_autocast, register_autograd
from .activation import activation_backward_reference, activation_reference

_NAME = "depthwise_conv2d"


def _pads(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int, int, int]:
    return _checks.resolve_padding(padding, x.shape[2:], weight.shape[2:], stride, dilation)


def _preactivation(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    left, right, top, bottom = _pads(x, weight, stride, padding, dilation)
    if left != right or top != bottom:
        x, left, top = F.pad(x, (left, right, top, bottom)), 0, 0
    y = F.conv2d(x, weight, None if bias is None else bias.to(x.dtype), stride, (top, left), dilation, x.shape[1])
    return y if residual is None else y + residual


def depthwise_conv2d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str,
) -> Tensor:
    y = activation_reference(_preactivation(x, weight, bias, residual, stride, padding, dilation), activation)
    return y.contiguous(memory_format=torch.channels_last if _checks.is_channels_last(x) else torch.contiguous_format)


def depthwise_conv2d_backward_reference(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str,
    mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if activation != "identity":
        grad = activation_backward_reference(
            grad, _preactivation(x, weight, bias, residual, stride, padding, dilation), activation
        )
    pads = left, right, top, bottom = _pads(x, weight, stride, padding, dilation)
    even = left == right and top == bottom
    found = torch.ops.aten.convolution_backward(
        grad,
        x if even else F.pad(x, pads),
        weight,
        None,
        stride,
        (top, left) if even else (0, 0),
        dilation,
        False,
        (0, 0),
        x.shape[1],
        (mask[0], mask[1], False),
    )
    results = _empty_gradients(grad, x, weight, bias, mask)
    if mask[0]:
        results[0].copy_(found[0] if even else found[0][:, :, top : top + x.shape[2], left : left + x.shape[3]])
    if mask[1]:
        results[1].copy_(found[1])
    if mask[2]:
        results[2].copy_(grad.sum((0, 2, 3), dtype=results[2].dtype))
    if mask[3]:
        results[3].copy_(grad)
    return results


def _empty_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, mask: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    none = [x.new_empty(0) for _ in mask]
    return (
        _checks.empty_like_format(x, x.shape) if mask[0] else none[0],
        weight.new_empty(weight.shape) if mask[1] else none[1],
        bias.new_empty(bias.shape) if mask[2] else none[2],
        _checks.empty_like_format(x, grad.shape) if mask[3] else none[3],
    )


def fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str,
) -> Tensor:
    out = _checks.conv_output_size(
        x.shape[2:], weight.shape[2:], stride, _pads(x, weight, stride, padding, dilation), dilation
    )
    return _checks.empty_like_format(x, (x.shape[0], weight.shape[0], *out))


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str,
    mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty_gradients(grad, x, weight, bias, mask)


def flops(x: Sequence[int], weight: Sequence[int], *_: object, out_shape: Sequence[int], **__: object) -> int:
    return 2 * torch.Size(out_shape).numel() * weight[2] * weight[3]


def _flops_backward(
    grad: Sequence[int],
    x: Sequence[int],
    weight: Sequence[int],
    bias: object,
    residual: object,
    stride: object,
    padding: object,
    dilation: object,
    activation: str,
    mask: Sequence[bool],
    *,
    out_shape: object,
) -> int:
    passes = mask[0] + mask[1] + (activation != "identity")  # the pre-activation is computed again
    return passes * flops(x, weight, out_shape=grad)


def _backward(needs: Sequence[bool], inputs: Sequence, outputs: Sequence[Tensor], grads: Sequence[Tensor]) -> tuple:
    identity = inputs[-1] == "identity"
    mask = [*needs[:3], needs[3] and not identity]
    found = _op_backward(grads[0], *inputs, mask)
    gradients = [g if wanted else None for g, wanted in zip(found, mask)]
    if needs[3] and identity:
        gradients[3] = grads[0]
    return (*gradients, None, None, None, None)


_op = register(_NAME, depthwise_conv2d_reference, fake, flops)
_op_backward = register(f"{_NAME}_backward", depthwise_conv2d_backward_reference, _fake_backward, _flops_backward)
# without an activation the gradient does not depend on the residual
register_autograd(
    _op,
    _backward,
    depthwise_conv2d_reference,
    drop=lambda *inputs: (3,) if inputs[-1] == "identity" and inputs[3] is not None else (),
)
no_double_backward(_op_backward)
register_autocast(_op, (0, 1, 3))


def check(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: int | Sequence[int],
    padding: int | str | Sequence[int],
    dilation: int | Sequence[int],
    activation: str,
) -> tuple[tuple[int, int], tuple[int, int, int, int], tuple[int, int]]:
    """The arguments of a depthwise convolution; returns stride, the four paddings and dilation."""
    _checks.check_input(op, "x", x, 4)
    casts = _checks.autocast_active(x)
    _checks.check_like(op, "weight", weight, x, any_dtype=casts)
    C = x.shape[1]
    if C == 0:
        raise ValueError(f"{op}: x must have at least one channel, got {_checks.shape_text(x)}")
    if weight is None or weight.dim() != 4 or weight.shape[1] != 1 or weight.shape[0] == 0 or weight.shape[0] % C:
        got = "None" if weight is None else _checks.shape_text(weight)
        raise ValueError(f"{op}: weight must be [C * m, 1, kH, kW] for x with C = {C}, got {got}")
    stride, dilation = _checks.pair(op, "stride", stride, 1), _checks.pair(op, "dilation", dilation, 1)
    padding = _checks.four_paddings(op, padding)
    _checks.check_activation(op, "activation", activation)
    out = _checks.check_window(op, x, weight, stride, padding, dilation)
    _checks.check_like(op, "bias", bias, x, (weight.shape[0],), "[C * m]", float32_allowed=True, any_dtype=casts)
    _checks.check_like(
        op, "residual", residual, x, (x.shape[0], weight.shape[0], *out), "the shape of the output", any_dtype=casts
    )
    return stride, padding, dilation


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    activation: str = "identity",
    residual: Tensor | None = None,
) -> Tensor:
    """Each channel convolved with its own ``m`` filters.

    ``y[n, o] = act(conv(x[n, o // m], weight[o]) + bias[o] + residual[n, o])``

    Args:
        x: ``[N, C, H, W]``, or ``[C, H, W]`` without a batch.
        weight: ``[C * m, 1, kH, kW]``, any kernel size and depth multiplier ``m``.
        bias: ``[C * m]``, in the dtype of ``x`` or float32.
        stride, dilation: an int or (h, w).
        padding: an int, (h, w), (left, right, top, bottom), "valid", or "same" (TensorFlow's rule:
            Ho = ceil(H / stride), the odd pixel at the right and the bottom).
        activation: see :func:`activation`.
        residual: the shape of the output, added before the activation.
    Returns: ``[N, C * m, Ho, Wo]`` in the dtype and memory format of ``x``.
    Memory format: contiguous and channels_last have kernels of their own; nothing is converted between them.
    Dtypes: float32, float64, float16, bfloat16; summed in float32 (float64 for float64) and rounded once.
    Determinism: bitwise, backward included.
    Raises: TypeError or ValueError naming the argument that does not fit.
    Source: MobileNets, arXiv:1704.04861, sec. 3.1; Xception, arXiv:1610.02357.

    >>> x = torch.arange(8.).view(1, 2, 2, 2)
    >>> y = fastcnn.ops.depthwise_conv2d(x, torch.ones(2, 1, 2, 2), torch.tensor([-20., 0.]), activation="relu")
    >>> y.flatten().tolist()
    [0.0, 22.0]
    """
    usual = _usual.convolution(x, weight, (bias,), residual, stride, padding, dilation, None, activation)
    if usual:
        return _op(x, weight, bias, residual, *usual, activation)
    if isinstance(x, Tensor) and x.dim() == 3:
        if isinstance(residual, Tensor):
            residual = residual.unsqueeze(0)
        return depthwise_conv2d(x.unsqueeze(0), weight, bias, stride, padding, dilation, activation, residual).squeeze(
            0
        )
    geometry = check(_NAME, x, weight, bias, residual, stride, padding, dilation, activation)
    return _op(x, weight, bias, residual, *geometry, activation)
