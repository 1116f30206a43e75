# SPDX-License-Identifier: Apache-2.0
"""Batch normalisation with the residual and the activation in the same pass, in eval and in training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks, _usual
from ._register import no_double_backward, register, register_autograd
from .activation import activation_backward_reference, activation_reference

_OP = "batch_norm_act"


def _wide(x: Tensor | None) -> Tensor | None:
    """The accumulation type: float32 for the half types."""
    return None if x is None else x.to(torch.promote_types(x.dtype, torch.float32))


def _normalised(x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None, bias: Tensor | None,
                residual: Tensor | None, training: bool, eps: float, activation: str) -> Tensor:
    z = F.batch_norm(_wide(x), _wide(running_mean), _wide(running_var), _wide(weight), _wide(bias), training, 0.0, eps)
    if residual is not None:
        z = z + _wide(residual)
    return _checks.empty_like_format(x, x.shape).copy_(activation_reference(z, activation))


def batch_norm_act_reference(x: Tensor, running_mean: Tensor, running_var: Tensor, weight: Tensor | None, bias: Tensor | None,
                             residual: Tensor | None, eps: float, activation: str) -> Tensor:
    return _normalised(x, running_mean, running_var, weight, bias, residual, False, eps, activation)


def batch_norm_act_train_reference(x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None,
                                   bias: Tensor | None, residual: Tensor | None, momentum: float, eps: float,
                                   activation: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    y = _normalised(x, None, None, weight, bias, residual, True, eps, activation)
    count = x.numel() // max(x.shape[1], 1)
    if count == 0:  # nothing was seen: the running statistics stay
        mean, var, momentum = _wide(x).new_zeros(x.shape[1]), _wide(x).new_zeros(x.shape[1]), 0.0
    else:
        var, mean = torch.var_mean(_wide(x), (0, 2, 3), correction=0)
    invstd = (var + eps).rsqrt()
    if running_mean is None:
        return y, mean, invstd, x.new_empty(0), x.new_empty(0)
    pairs = (running_mean, mean), (running_var, var * (count / max(count - 1, 1)))
    new_mean, new_var = ((_wide(old) + momentum * (new - _wide(old))).to(old.dtype) for old, new in pairs)
    return y, mean, invstd, new_mean, new_var


def batch_norm_act_backward_reference(grad: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, bias: Tensor | None,
                                      residual: Tensor | None, training: bool, activation: str,
                                      mask: list[bool]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    column = (1, -1, 1, 1)
    scale = _wide(invstd) if weight is None else _wide(invstd) * _wide(weight)
    xhat = (_wide(x) - _wide(mean).view(column)) * _wide(invstd).view(column)
    z = xhat if weight is None else xhat * _wide(weight).view(column)
    z = z if bias is None else z + _wide(bias).view(column)
    z = z if residual is None else z + _wide(residual)
    gz = activation_backward_reference(_wide(grad), z, activation)
    sum_gz, sum_gz_xhat = gz.sum((0, 2, 3)), (gz * xhat).sum((0, 2, 3))
    grad_x = gz
    if training:
        count = max(x.numel() // max(x.shape[1], 1), 1)
        grad_x = gz - (sum_gz.view(column) + xhat * sum_gz_xhat.view(column)) / count
    results = _fake_backward(grad, x, mean, invstd, weight, bias, residual, training, activation, mask)
    for result, value in zip(results, (grad_x * scale.view(column), sum_gz_xhat, sum_gz, gz)):
        if result.shape == value.shape:
            result.copy_(value)
    return results


def _fake(x: Tensor, running_mean: Tensor, running_var: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None,
          eps: float, activation: str) -> Tensor:
    return _checks.empty_like_format(x, x.shape)


def _fake_train(x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None, bias: Tensor | None,
                residual: Tensor | None, momentum: float, eps: float, activation: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, torch.float32)
    kept = [x.new_empty(x.shape[1], dtype=dtype) for _ in range(2)]
    new = [x.new_empty(0) if old is None else old.new_empty(old.shape) for old in (running_mean, running_var)]
    return _checks.empty_like_format(x, x.shape), *kept, *new


def _fake_backward(grad: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, bias: Tensor | None,
                   residual: Tensor | None, training: bool, activation: str, mask: list[bool]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    like_x = [_checks.empty_like_format(x, x.shape) if mask[i] else x.new_empty(0) for i in (0, 3)]
    vectors = [x.new_empty(0) if not on or v is None else v.new_empty(v.shape) for on, v in ((mask[1], weight), (mask[2], bias))]
    return like_x[0], *vectors, like_x[1]


_op = register("batch_norm_act", batch_norm_act_reference, _fake)
_op_train = register("batch_norm_act_train", batch_norm_act_train_reference, _fake_train)
_op_backward = register("batch_norm_act_backward", batch_norm_act_backward_reference, _fake_backward)


def _gradients(needs: tuple, inputs: list, mean: Tensor, invstd: Tensor, training: bool, grad: Tensor) -> list[Tensor | None]:
    x, _, _, weight, bias, residual, *_, activation = inputs
    mask = [needs[0], needs[3], needs[4], needs[5]]
    found = _op_backward(grad, x, mean, invstd, weight, bias, residual, training, activation, mask)
    grad_x, grad_weight, grad_bias, grad_residual = (g if on else None for g, on in zip(found, mask))
    return [grad_x, None, None, grad_weight, grad_bias, grad_residual] + [None] * (len(inputs) - 6)


def _backward(needs: tuple, inputs: list, outputs: tuple, grads: tuple) -> list[Tensor | None]:
    invstd = (_wide(inputs[2]) + inputs[-2]).rsqrt()
    return _gradients(needs, inputs, inputs[1], invstd, False, grads[0])


def _backward_train(needs: tuple, inputs: list, outputs: tuple, grads: tuple) -> list[Tensor | None]:
    return _gradients(needs, inputs, *outputs, True, grads[0])


def _differentiable_train(x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None, bias: Tensor | None,
                          residual: Tensor | None, momentum: float, eps: float, activation: str) -> Tensor:
    return _normalised(x, None, None, weight, bias, residual, True, eps, activation)


def _unread(*inputs: object) -> tuple[int, ...]:
    """Without an activation the backward never forms z, so the residual's values are not kept."""
    return (5,) if inputs[-1] == "identity" else ()


register_autograd(_op, _backward, batch_norm_act_reference, drop=_unread)
# the running statistics must not be kept either: the page overwrites them before the backward runs
register_autograd(_op_train, _backward_train, _differentiable_train, outputs=(1, 2), drop=lambda *inputs: (1, 2, *_unread(*inputs)))
no_double_backward(_op_backward)


def _as_4d(x: Tensor) -> Tensor:
    """[N, C], [N, C, L] and [N, C, D, H, W, ...] as [N, C, *, *]; channels_last_3d becomes channels_last, everything else is contiguous."""
    if x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d):
        return x.flatten(3)
    x = x.contiguous()
    return x[..., None, None] if x.dim() == 2 else x.flatten(2).unsqueeze(2)


def _check(x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None, bias: Tensor | None,
           residual: Tensor | None, training: bool, momentum: float, eps: float, activation: str) -> None:
    _checks.check_input(_OP, "x", x)
    if x.dim() < 2:
        raise ValueError(f"{_OP}: x must have at least 2 dimensions [N, C, *], got {_checks.shape_text(x)}")
    channels = (x.shape[1],)
    for name, vector in (("running_mean", running_mean), ("running_var", running_var), ("weight", weight), ("bias", bias)):
        _checks.check_like(_OP, name, vector, x, channels, f"[C = {channels[0]}]", float32_allowed=True)
    _checks.check_like(_OP, "residual", residual, x, x.shape)
    _checks.check_activation(_OP, "activation", activation)
    if (running_mean is None) is not (running_var is None):
        raise ValueError(f"{_OP}: running_mean and running_var must be given together")
    if not eps >= 0 or (training and eps == 0):
        raise ValueError(f"{_OP}: eps must be {'positive in training' if training else 'at least 0'}, got {eps}")
    if not training:
        if running_mean is None:
            raise ValueError(f"{_OP}: running_mean and running_var must be given when training is False, got None")
    elif momentum is None:
        raise ValueError(f"{_OP}: momentum must be a number (for a cumulative average pass 1 / batches so far), got None")
    elif x.shape[0] * x.shape[2:].numel() == 1:
        raise ValueError(f"{_OP}: x must have more than 1 value per channel in training, got {_checks.shape_text(x)}")


def batch_norm_act(x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
                   bias: Tensor | None = None, residual: Tensor | None = None, training: bool = False, momentum: float = 0.1,
                   eps: float = 1e-5, activation: str = "identity") -> Tensor:
    """``act((x - mean) / sqrt(var + eps) * weight + bias + residual)`` per channel, in one pass over ``x``.

    Args:
        x: ``[N, C, H, W]``, or any ``[N, C, *]``.
        running_mean, running_var: ``[C]``. Eval reads them. Training uses the batch's own mean and biased variance and moves the two
            towards them, in place: ``r = (1 - momentum) r + momentum new``, with the unbiased variance; None: nothing to update.
        weight, bias: ``[C]``, None for 1 and 0.
        residual: shape of ``x``, added before the activation. Under autocast it is cast to the dtype of ``x``.
        activation: a name of :func:`activation`.
    Returns: shape and dtype of ``x``, a new tensor.
    Memory format: contiguous or channels_last (channels_last_3d for 5-D), as ``x``. Dtypes: float32, float64, float16, bfloat16; the ``[C]``
    vectors in x's dtype or float32. Computed and accumulated in float32 (float64 for float64). Determinism: bitwise.
    Raises: ValueError or TypeError for a shape, dtype or device that does not fit; ValueError for one value per channel in training, missing
    running statistics in eval, a negative ``eps``.
    Source: arXiv:1502.03167, algorithms 1 and 2.

    >>> x = torch.tensor([[[[1., 3.]], [[-1., 5.]]]])
    >>> fastcnn.ops.batch_norm_act(x, torch.tensor([1., 2.]), torch.tensor([4., 9.]), eps=0., activation="relu").tolist()
    [[[[0.0, 1.0]], [[0.0, 1.0]]]]
    """
    vectors = (running_mean, running_var, weight, bias)
    if not training and running_mean is not None and running_var is not None and _usual.batch_norm(x, vectors, residual, eps, activation):
        return _op(x, running_mean, running_var, weight, bias, residual, eps, activation)
    if residual is not None and residual.dtype != x.dtype and _checks.autocast_active(x):
        residual = residual.to(x.dtype)
    _check(x, running_mean, running_var, weight, bias, residual, training, momentum, eps, activation)
    shape = x.shape
    if len(shape) != 4:
        x, residual = _as_4d(x), None if residual is None else _as_4d(residual)
    if training:
        y, _, _, new_mean, new_var = _op_train(x, running_mean, running_var, weight, bias, residual, momentum, eps, activation)
        if running_mean is not None:
            with torch.no_grad():
                running_mean.copy_(new_mean)
                running_var.copy_(new_var)
    else:
        y = _op(x, running_mean, running_var, weight, bias, residual, eps, activation)
    return y if len(shape) == 4 else y.view(shape)
