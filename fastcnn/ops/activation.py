# SPDX-License-Identifier: Apache-2.0
"""Elementwise activations: relu, relu6, hardswish (its own page), hardsigmoid, silu, sigmoid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks
from ._register import no_double_backward, register, register_autograd


def _hardsigmoid(x: Tensor) -> Tensor:
    # aten's hardsigmoid has no second derivative; this spelling has, and serves where a graph is recorded
    return F.relu6(x + 3) / 6 if x.requires_grad and torch.is_grad_enabled() else F.hardsigmoid(x)


_TORCH = {"identity": torch.clone, "relu": F.relu, "relu6": F.relu6, "hardswish": F.hardswish, "hardsigmoid": _hardsigmoid, "silu": F.silu,
          "sigmoid": torch.sigmoid}

_TORCH_BACKWARD = {
    "identity": lambda grad, x: grad,
    "relu": lambda grad, x: torch.ops.aten.threshold_backward(grad, x, 0),
    "relu6": lambda grad, x: torch.ops.aten.hardtanh_backward(grad, x, 0, 6),
    "hardswish": torch.ops.aten.hardswish_backward,
    # aten.hardsigmoid_backward holds 1/6 in float32, also for float64
    "hardsigmoid": lambda grad, x: torch.where((x > -3) & (x < 3), grad / 6, 0.0),
    "silu": torch.ops.aten.silu_backward,
    "sigmoid": lambda grad, x: torch.ops.aten.sigmoid_backward(grad, torch.sigmoid(x)),
}


def activation_reference(x: Tensor, kind: str) -> Tensor:
    return _TORCH[kind](x)


def activation_backward_reference(grad: Tensor, x: Tensor, kind: str) -> Tensor:
    return torch.empty_like(x).copy_(_TORCH_BACKWARD[kind](grad, x))


def _fake(x: Tensor, kind: str) -> Tensor:
    return torch.empty_like(x)


def _fake_backward(grad: Tensor, x: Tensor, kind: str) -> Tensor:
    return torch.empty_like(x)


_op = register("activation", activation_reference, _fake)
_op_backward = register("activation_backward", activation_backward_reference, _fake_backward)
register_autograd(_op, lambda needs, inputs, outputs, grads: (_op_backward(grads[0], *inputs), None), activation_reference)
no_double_backward(_op_backward)


def activation(x: Tensor, kind: str) -> Tensor:
    """The activation called ``kind``, elementwise, in the accumulation type float32 (float64 for float64) and rounded once.

    Args:
        x: any shape, any floating dtype.
        kind: "identity", "relu", "relu6", "hardswish", "hardsigmoid", "silu" or "sigmoid".
    Returns: the shape, dtype and memory format of ``x``, always a new tensor.
    Memory format: kept, for every dense layout. Dtypes: float32, float64, float16, bfloat16. Determinism: bitwise.
    Gradient: at a knot the one that torch takes (relu 0 at 0, hardswish 0 at -3 and 1 at 3). NaN stays NaN.
    Raises: TypeError for a tensor that is not dense and floating; ValueError for an unknown kind.

    >>> fastcnn.ops.activation(torch.tensor([-4., -1., 0., 7.]), "relu6").tolist()
    [0.0, 0.0, 0.0, 6.0]
    """
    _checks.check_input("activation", "x", x)
    _checks.check_activation("activation", "kind", kind)
    return _op(x, kind)


def relu(x: Tensor) -> Tensor:
    """max(x, 0). See :func:`activation`.

    >>> fastcnn.ops.relu(torch.tensor([-1., 2.])).tolist()
    [0.0, 2.0]
    """
    _checks.check_input("relu", "x", x)
    return _op(x, "relu")


def relu6(x: Tensor) -> Tensor:
    """min(max(x, 0), 6). See :func:`activation`. Source: MobileNetV2, arXiv:1801.04381.

    >>> fastcnn.ops.relu6(torch.tensor([-1., 2., 8.])).tolist()
    [0.0, 2.0, 6.0]
    """
    _checks.check_input("relu6", "x", x)
    return _op(x, "relu6")


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x), also called swish. See :func:`activation`. Source: arXiv:1710.05941.

    >>> fastcnn.ops.silu(torch.tensor([0., 100.])).tolist()
    [0.0, 100.0]
    """
    _checks.check_input("silu", "x", x)
    return _op(x, "silu")


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)). See :func:`activation`.

    >>> fastcnn.ops.sigmoid(torch.tensor([0.])).tolist()
    [0.5]
    """
    _checks.check_input("sigmoid", "x", x)
    return _op(x, "sigmoid")


def hardsigmoid(x: Tensor) -> Tensor:
    """relu6(x + 3) / 6. See :func:`activation`. Source: MobileNetV3, arXiv:1905.02244.

    >>> fastcnn.ops.hardsigmoid(torch.tensor([-3., 0., 3.])).tolist()
    [0.0, 0.5, 1.0]
    """
    _checks.check_input("hardsigmoid", "x", x)
    return _op(x, "hardsigmoid")
