# SPDX-License-Identifier: Apache-2.0
"""Squeeze-and-excitation without its last step: the scales, for a consumer that applies them as it loads."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks
from ._register import inference_only, register, register_autocast
from .activation import activation_reference

_OP = "se_gate"


def wide(x: Tensor) -> Tensor:
    """The accumulation type: float32 for the half types."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def matrices(w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return wide(w1).flatten(1), wide(b1), wide(w2).flatten(1), wide(b2)


def gates(pooled: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: str, gate: str) -> Tensor:
    m1, v1, m2, v2 = matrices(w1, b1, w2, b2)
    hidden = activation_reference(torch.addmm(v1, pooled, m1.t()), activation)
    return activation_reference(torch.addmm(v2, hidden, m2.t()), gate)


def se_gate_reference(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: str, gate: str) -> Tensor:
    return gates(wide(x).mean((2, 3)), w1, b1, w2, b2, activation, gate)


def _fake(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: str, gate: str) -> Tensor:
    return x.new_empty(x.shape[:2], dtype=torch.promote_types(x.dtype, torch.float32))


def flops(x: tuple, w1: tuple, *arguments: object, out_shape: object = None) -> int:
    return 2 * x[0] * 2 * w1[0] * w1[1]


_op = register(_OP, se_gate_reference, _fake, flops)
inference_only(_op, "se_scale")
register_autocast(_op, cast=())  # the reference is then out of its reach: the layers stay in float32


def check(op: str, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: str, gate: str) -> None:
    """The arguments of se_scale and se_gate."""
    _checks.check_input(op, "x", x, 4)
    if x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(f"{op}: x must have at least one pixel, got {_checks.shape_text(x)}")
    check_layers(op, x, x.shape[1], w1, b1, w2, b2)
    _checks.check_activation(op, "activation", activation)
    _checks.check_activation(op, "gate", gate)


def check_layers(op: str, x: Tensor, channels: int, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> None:
    """The two layers over the means of ``channels`` channels, beside a map of the dtype and device of ``x``."""
    for name, weight in (
        ("w1", w1),
        ("b1", b1),
        ("w2", w2),
        ("b2", b2),
    ):  # before check_like, which takes None for "not given"
        if not isinstance(weight, Tensor):
            raise TypeError(f"{op}: {name} must be a Tensor, got {type(weight).__name__}")
    _checks.check_like(op, "w1", w1, x, float32_allowed=True)
    tail = (1, 1) if w1.dim() == 4 else ()
    if w1.dim() not in (2, 4) or w1.shape[1:] != (channels, *tail):
        raise ValueError(f"{op}: w1 must be [R, C] or [R, C, 1, 1] with C = {channels}, got {_checks.shape_text(w1)}")
    squeezed = w1.shape[0]
    _checks.check_like(op, "b1", b1, x, (squeezed,), f"[R = {squeezed}]", float32_allowed=True)
    _checks.check_like(op, "w2", w2, x, float32_allowed=True)
    if w2.shape != (channels, squeezed) and w2.shape != (channels, squeezed, 1, 1):
        raise ValueError(
            f"{op}: w2 must be [C, R] or [C, R, 1, 1] with C = {channels}, R = {squeezed}, got {_checks.shape_text(w2)}"
        )
    _checks.check_like(op, "b2", b2, x, (channels,), f"[C = {channels}]", float32_allowed=True)


def se_gate(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: str = "relu", gate: str = "hardsigmoid"
) -> Tensor:
    """``gate(w2 @ activation(w1 @ mean(x) + b1) + b2)``: what :func:`se_scale` multiplies ``x`` by, for inference.

    :func:`pointwise_conv2d` takes it as its ``gate``: then ``x`` is neither read nor written once more to be scaled.

    Args:
        x: ``[N, C, H, W]`` with at least one pixel; the mean is over H and W.
        w1, b1: ``[R, C]`` or ``[R, C, 1, 1]``, and ``[R]``: the squeeze layer.
        w2, b2: ``[C, R]`` or ``[C, R, 1, 1]``, and ``[C]``: the excite layer.
        activation, gate: names of :func:`activation`, after the first and the second layer.
    Returns: ``[N, C]`` in float32 (float64 for float64).
    Memory format: any of ``x``. Dtypes: float32, float64, float16, bfloat16; weights and biases in x's dtype or
    float32 (so autocast needs no casts). Determinism: bitwise; the same bits as within :func:`se_scale`.
    Raises: ValueError or TypeError for a shape, dtype or device that does not fit; RuntimeError when a gradient is
    asked for.
    Source: arXiv:1709.01507, eq. 2-3; hard-sigmoid gate: arXiv:1905.02244.

    >>> layers = torch.ones(1, 2), torch.zeros(1), torch.zeros(2, 1), torch.tensor([-3., 3.])
    >>> fastcnn.ops.se_gate(torch.ones(1, 2, 2, 2), *layers).tolist()
    [[0.0, 1.0]]
    """
    check(_OP, x, w1, b1, w2, b2, activation, gate)
    return _op(x, w1, b1, w2, b2, activation, gate)
