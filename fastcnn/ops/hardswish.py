# SPDX-License-Identifier: Apache-2.0
"""h-swish, x * relu6(x + 3) / 6 (MobileNetV3, arXiv:1905.02244, sec. 5.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _checks
from ._register import no_double_backward, register, register_autograd
from .activation import activation_backward_reference


def hardswish_reference(x: Tensor) -> Tensor:
    return F.hardswish(x)


def hardswish_backward_reference(grad: Tensor, x: Tensor) -> Tensor:
    return activation_backward_reference(grad, x, "hardswish")


def _fake(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _fake_backward(grad: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(x)


_op = register("hardswish", hardswish_reference, _fake)
_op_backward = register("hardswish_backward", hardswish_backward_reference, _fake_backward)
register_autograd(_op, lambda needs, inputs, outputs, grads: (_op_backward(grads[0], inputs[0]),), hardswish_reference)
no_double_backward(_op_backward)


def hardswish(x: Tensor) -> Tensor:
    """h-swish, ``x * relu6(x + 3) / 6``, elementwise.

    Args:
        x: any shape.
    Returns: the shape, dtype and memory format of ``x``, a new tensor.
    Memory format: kept, for every dense layout. Dtypes: float32, float64, float16, bfloat16 (computed in float32, rounded once).
    Determinism: bitwise. Gradient: 0 at and below -3, 1 at and above 3, as torch's.
    Raises: TypeError for a tensor that is not dense and floating.
    Source: MobileNetV3, arXiv:1905.02244, sec. 5.2.

    >>> fastcnn.ops.hardswish(torch.tensor([-4., -3., 0., 3., 5.])).tolist()
    [-0.0, -0.0, 0.0, 3.0, 5.0]
    """
    _checks.check_input("hardswish", "x", x)
    return _op(x)
