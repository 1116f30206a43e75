# SPDX-License-Identifier: Apache-2.0
"""activation and batch_norm_act for use_backend("emulator"): what their entries do around the launches."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from fastcnn.ops import _checks
from tests.cross import exact
from tests.emulator.backend import accumulated, address, dense, in_order_of, serves
from tests.emulator.batch_norm_act import Problem, backward_input, backward_sums, fold, forward, statistics


@serves("activation")
def _activation(kernels: ModuleType, x: Tensor, kind: str, grad: Tensor | None = None) -> Tensor:
    y = torch.empty_like(x)
    if y.numel():
        x, grad = in_order_of(x, y), None if grad is None else in_order_of(grad, y)
        tensors = [address(t) for t in (grad, x, y)]
        kernels.activation(str(x.dtype), exact.KINDS.index(kind), *tensors, y.numel())
    return y


@serves("activation_backward", "activation")
def _activation_backward(kernels: ModuleType, grad: Tensor, x: Tensor, kind: str) -> Tensor:
    return _activation(kernels, x, kind, grad)


def _problem(x: Tensor, grad: Tensor | None, residual: Tensor | None, activation: str, *vectors: Tensor) -> Problem:
    last = _checks.is_channels_last(x)
    x, grad, residual = (dense(t, last) for t in (x, grad, residual))
    return Problem(x, grad, residual, *vectors, activation, last)


def _apply(kernels: ModuleType, p: Problem, like: Tensor) -> Tensor:
    y = _checks.empty_like_format(like, like.shape)
    return forward(kernels, p, y) if y.numel() else y


@serves("batch_norm_act")
def _eval(
    kernels: ModuleType, x: Tensor, running_mean: Tensor, running_var: Tensor, weight: Tensor | None,
    bias: Tensor | None, residual: Tensor | None, eps: float, activation: str,
) -> Tensor:  # fmt: skip
    weight, bias, mean, var = (accumulated(v, x) for v in (weight, bias, running_mean, running_var))
    folded = fold(kernels, weight, bias, mean, var, eps=eps)
    return _apply(kernels, _problem(x, None, residual, activation, *folded, mean, mean), x)


@serves("batch_norm_act_train", "batch_norm_act")
def _train(
    kernels: ModuleType, x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, residual: Tensor | None, momentum: float, eps: float, activation: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    like = torch.empty(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
    weight, bias, old_mean, old_var = (accumulated(v, x) for v in (weight, bias, running_mean, running_var))
    running = None if old_mean is None else (old_mean, old_var)
    p = _problem(x, None, residual, activation, like, like, like, like)
    momentum = momentum if x.numel() else 0.0
    mean, invstd, *moved = statistics(kernels, p, running, momentum=momentum, eps=eps)
    scale, shift = fold(kernels, weight, bias, mean, None, invstd)
    y = _apply(kernels, p._replace(scale=scale, shift=shift), x)
    new = (x.new_empty(0), x.new_empty(0)) if running is None else (moved[0].to(running_mean.dtype), moved[1].to(
        running_var.dtype))  # fmt: skip
    return y, mean, invstd, *new


@serves("batch_norm_act_backward", "batch_norm_act")
def _backward(
    kernels: ModuleType, grad: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None,
    bias: Tensor | None, residual: Tensor | None, training: bool, activation: str, mask: Sequence[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    mean, invstd = accumulated(mean, x), accumulated(invstd, x)
    folded = fold(kernels, accumulated(weight, x), accumulated(bias, x), mean, None, invstd)
    p = _problem(x, grad, residual, activation, *folded, mean, invstd)
    images = [_checks.empty_like_format(x, x.shape) if mask[i] else None for i in (0, 3)]
    centred = training and mask[0]
    constant = slope = grad_weight = grad_bias = None
    if mask[1] or mask[2] or centred:
        grad_weight, grad_bias, constant, slope = backward_sums(kernels, p)
    if x.numel() and (mask[0] or mask[3]):
        backward_input(kernels, p, *((constant, slope) if centred else (None, None)), *images)
    none = x.new_empty(0)
    return (
        none if images[0] is None else images[0],
        grad_weight.to(weight.dtype) if mask[1] and weight is not None else none,
        grad_bias.to(bias.dtype) if mask[2] and bias is not None else none,
        none if images[1] is None else images[1],
    )
