# SPDX-License-Identifier: Apache-2.0
"""Squeeze-and-excitation: pool, two small fully connected layers, scale."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks
from ._register import no_double_backward, register, register_autograd
from .activation import activation_backward_reference, activation_reference
from .se_gate import check, flops, gates, matrices, wide

_OP = "se_scale"


def se_scale_reference(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: str, gate: str) -> tuple[Tensor, Tensor]:
    pooled = wide(x).mean((2, 3))
    scale = gates(pooled, w1, b1, w2, b2, activation, gate)
    return _checks.empty_like_format(x, x.shape).copy_(wide(x) * scale[:, :, None, None]), pooled


def se_scale_backward_reference(grad: Tensor, x: Tensor, pooled: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: str,
                                gate: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    m1, v1, m2, v2 = matrices(w1, b1, w2, b2)
    z1 = torch.addmm(v1, pooled, m1.t())
    hidden = activation_reference(z1, activation)
    z2 = torch.addmm(v2, hidden, m2.t())
    grad_z2 = activation_backward_reference((wide(grad) * wide(x)).sum((2, 3)), z2, gate)
    grad_z1 = activation_backward_reference(grad_z2 @ m2, z1, activation)
    grad_pooled = (grad_z1 @ m1)[:, :, None, None] / (x.shape[2] * x.shape[3])
    grad_x = wide(grad) * activation_reference(z2, gate)[:, :, None, None] + grad_pooled
    found = (grad_x, grad_z1.t() @ pooled, grad_z1.sum(0), grad_z2.t() @ hidden, grad_z2.sum(0))
    results = _fake_backward(grad, x, pooled, w1, b1, w2, b2, activation, gate)
    return tuple(result.copy_(value.view(result.shape)) for result, value in zip(results, found))


def _fake(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: str, gate: str) -> tuple[Tensor, Tensor]:
    return _checks.empty_like_format(x, x.shape), x.new_empty(x.shape[:2], dtype=torch.promote_types(x.dtype, torch.float32))


def _fake_backward(grad: Tensor, x: Tensor, pooled: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: str,
                   gate: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _checks.empty_like_format(x, x.shape), *(w.new_empty(w.shape) for w in (w1, b1, w2, b2))


def _flops_backward(grad: tuple, x: tuple, pooled: tuple, w1: tuple, *arguments: object, out_shape: object = None) -> int:
    return 3 * flops(x, w1)  # both layers again, then two gradients each


def _backward(needs: tuple, inputs: list, outputs: tuple, grads: tuple) -> list[Tensor | None]:
    x, *rest = inputs
    found = _op_backward(grads[0], x, outputs[0], *rest)
    return [g if need else None for g, need in zip(found, needs)] + [None, None]


_op = register("se_scale", se_scale_reference, _fake, flops)
_op_backward = register("se_scale_backward", se_scale_backward_reference, _fake_backward, _flops_backward)
register_autograd(_op, _backward, se_scale_reference, outputs=(1,))
no_double_backward(_op_backward)


def se_scale(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: str = "relu", gate: str = "hardsigmoid") -> Tensor:
    """``x * gate(w2 @ activation(w1 @ mean(x) + b1) + b2)``: squeeze, excite and scale as one op.

    Args:
        x: ``[N, C, H, W]`` with at least one pixel; the mean is over H and W.
        w1, b1: ``[R, C]`` or ``[R, C, 1, 1]``, and ``[R]``: the squeeze layer.
        w2, b2: ``[C, R]`` or ``[C, R, 1, 1]``, and ``[C]``: the excite layer.
        activation, gate: names of :func:`activation`, after the first and the second layer.
    Returns: shape and dtype of ``x``, a new tensor.
    Memory format: as ``x`` (contiguous or channels_last). Dtypes: float32, float64, float16, bfloat16; weights and biases in x's dtype or
    float32 (so autocast needs no casts). The scale is computed in float32 (float64 for float64). Determinism: bitwise.
    Raises: ValueError or TypeError for a shape, dtype or device that does not fit.
    Source: arXiv:1709.01507, eq. 2-4; hard-sigmoid gate: arXiv:1905.02244.

    >>> fastcnn.ops.se_scale(torch.ones(1, 2, 2, 2), torch.ones(1, 2), torch.zeros(1), torch.zeros(2, 1), torch.tensor([-3., 3.])).flatten().tolist()
    [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    """
    check(_OP, x, w1, b1, w2, b2, activation, gate)
    return _op(x, w1, b1, w2, b2, activation, gate)[0]
