# SPDX-License-Identifier: Apache-2.0
"""Elementwise work as one step: a formula waits for the sum and the activation behind it, if nothing else reads it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from ..program import aten, is_op, only_user, tensor_of
from .builder import View
from .state import Lowering
from .words import ACTIVATIONS, Binary, Elementwise

SUMS = (aten.add.Tensor, aten.add.Scalar)
DIFFERENCES = (aten.sub.Tensor, aten.sub.Scalar)
PRODUCTS = (aten.mul.Tensor, aten.mul.Scalar)
QUOTIENTS = (aten.div.Tensor, aten.div.Scalar)
ARITHMETIC = (*SUMS, *DIFFERENCES, *PRODUCTS, *QUOTIENTS, aten.rsub.Scalar)


@dataclass(frozen=True)
class Formula:
    """``activation((x * scale + shift) (kind) other + residual)``; scale and shift hold one value for each channel."""

    x: View
    kind: Binary = Binary.NONE
    other: View | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    residual: View | None = None
    activation: str = "identity"

    def then(self, scale: Tensor | None, shift: Tensor | None) -> Formula | None:
        """With this scale and shift behind it; None where that is another step."""
        if (self.kind, self.residual, self.activation) != (Binary.NONE, None, "identity"):
            return None
        before = self.shift if self.shift is None or scale is None else self.shift * scale
        scales = [each for each in (self.scale, scale) if each is not None]
        shifts = [each for each in (before, shift) if each is not None]
        return replace(self, scale=math.prod(scales) if scales else None, shift=sum(shifts) if shifts else None)

    def plus(self, other: View) -> Formula | None:
        """With ``other`` added, a map of the same size; None where that is another step."""
        if self.activation != "identity" or self.residual is not None or not _same_size(self.x, other):
            return None
        if self.kind is Binary.NONE:
            return replace(self, kind=Binary.ADD, other=other)
        return replace(self, residual=other)

    def activated(self, kind: str) -> Formula | None:
        return replace(self, activation=kind) if self.activation == "identity" else None

    def emit(self, low: Lowering, node: fx.Node) -> None:
        """The step that writes ``node``."""
        number = low.builder.number
        step = Elementwise(number(self.x), number(self.other), number(low.result(node)), self.kind,
                           low.vector(self.scale), low.vector(self.shift), ACTIVATIONS.index(self.activation),
                           number(self.residual))  # fmt: skip
        low.add(node, step, 0, (self.x, self.other, self.residual))


def _same_size(a: View, b: View) -> bool:
    return (a.C, a.H, a.W) == (b.C, b.H, b.W)


def put(low: Lowering, node: fx.Node, formula: Formula) -> None:
    """``node`` is this formula: now where it has several readers, else when its reader asks."""
    if only_user(node) is None:
        formula.emit(low, node)
    else:
        low.waiting[node] = formula


def alpha_of(node: fx.Node) -> float:
    """What a sum or a difference multiplies its second operand by."""
    return node.args[2] if len(node.args) > 2 else node.kwargs.get("alpha", 1)


def affine(
    program: fx.GraphModule, node: fx.Node, channels: int
) -> tuple[fx.Node, float | Tensor, float | Tensor] | None:
    """(x, scale, shift) where ``node`` is ``x * scale + shift`` of a map, numbers and constants of one value a channel.

    None for anything else.
    """
    if not is_op(node, *ARITHMETIC):
        return None
    first, second = node.args[:2]
    alpha = alpha_of(node)
    constants = [_constant(program, each, channels) for each in (first, second)]
    if (constants[0] is None) == (constants[1] is None) or node.kwargs.keys() - {"alpha"}:
        return None
    behind = constants[0] is None  # x comes first
    x, constant = (first, constants[1]) if behind else (second, constants[0])
    if is_op(node, *PRODUCTS):
        return x, constant, 0.0
    if is_op(node, *QUOTIENTS):
        return (x, 1.0 / constant, 0.0) if behind and bool(torch.as_tensor(constant != 0).all()) else None
    if is_op(node, *SUMS):
        return (x, 1.0, alpha * constant) if behind else (x, alpha, constant)
    if is_op(node, *DIFFERENCES):
        return (x, 1.0, -alpha * constant) if behind else (x, -alpha, constant)
    return x, -alpha, constant  # rsub: constant - alpha * x


def _constant(program: fx.GraphModule, operand: object, channels: int) -> float | Tensor | None:
    """A finite number, or a float32 tensor of one value for each channel of a map, in double."""
    if isinstance(operand, (int, float)) and not isinstance(operand, bool):
        return float(operand) if math.isfinite(operand) else None
    tensor = tensor_of(program, operand)
    if tensor is None or tensor.dtype != torch.float32:
        return None
    if tensor.numel() == 1 and tensor.dim() <= 4:
        return tensor.double().flatten()
    each_channel = tensor.shape[-3:] == (channels, 1, 1) and tensor.numel() == channels and tensor.dim() <= 4
    return tensor.double().flatten() if each_channel else None


def vector(value: float | Tensor, channels: int, neutral: float) -> Tensor | None:
    """``value`` for each channel; None where it changes nothing."""
    if isinstance(value, Tensor):
        return value.expand(channels)
    return None if value == neutral else torch.full((channels,), value, dtype=torch.float64)
