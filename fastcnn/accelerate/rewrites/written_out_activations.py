# SPDX-License-Identifier: Apache-2.0
"""Activations spelled with sums, clamps and products: h-swish, h-sigmoid, swish, sigmoid, ReLU, ReLU6.

A spelling is compared with the definition after it is taken apart (``algebra``), so the order in which it was written does
not matter: ``x * relu6(x + 3) / 6`` and ``clamp(x / 6 + 0.5, 0, 1) * x`` are one. A constant must be the definition's or that
rounded to float32: ``0.2 * x + 0.5`` of older Keras is another function and stays.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import fx

from ..algebra import affine, bounds, close, product
from ..program import ACTIVATION, Notes, aten, calls, emit, is_op, only_user, replace, shape, value

_CLAMPS = (aten.clamp, aten.clamp_min, aten.clamp_max, aten.hardtanh, aten.minimum.default, aten.maximum.default,
           aten.min.other, aten.max.other, ACTIVATION)  # fmt: skip


class _Found(NamedTuple):
    """``activation(x, kind) * other``; without the product where ``other`` is None."""

    x: fx.Node
    kind: str
    other: fx.Node | None = None


def written_out_activations(program: fx.GraphModule, notes: Notes) -> int:
    """Each spelling becomes one ``fastcnn.activation``; returns how many."""
    count = 0
    # from the outside, so that an h-swish is found before the h-sigmoid in it
    for root in reversed(list(calls(program, aten.mul, aten.div, aten.reciprocal, *_CLAMPS))):
        found = None if root._erased else _match(program, root)
        if found is None:
            continue
        new = emit(program, root, ACTIVATION, (found.x, found.kind))
        if found.other is not None:
            new = emit(program, root, aten.mul.Tensor, (found.other, new))
        replace(program, root, new)
        count += 1
    return count


def _match(program: fx.GraphModule, root: fx.Node) -> _Found | None:
    constant, factors, divisors = product(program, root)
    found = None
    if len(factors) == 1 and not divisors:
        found = _hardsigmoid(program, root, constant, factors[0]) or _clamp(program, root)
    elif len(factors) == 2 and not divisors:
        found = _gated(program, root, constant, factors) or _gated(program, root, constant, factors[::-1])
    elif len(factors) < 2 and len(divisors) == 1 and close(constant, 1.0):
        found = _swish(program, factors, divisors[0])
    if found is None or not value(found.x).is_floating_point() or value(found.x).dtype != value(root).dtype:
        return None
    return found if found.other is not None or shape(found.x) == shape(root) else None


def _hardsigmoid(program: fx.GraphModule, root: fx.Node, constant: float, clamp: fx.Node) -> _Found | None:
    """``constant * clamp`` that is ``clamp(x / 6 + 1 / 2, 0, 1)``."""
    inner, low, high = bounds(program, clamp)
    if low != 0.0 or not close(constant * high, 1.0) or (clamp is not root and only_user(clamp) is None):
        return None
    for x, scale, shift in affine(program, inner):
        if close(constant * scale, 1 / 6) and close(constant * shift, 1 / 2):
            return _Found(x, "hardsigmoid")
    return None


def _clamp(program: fx.GraphModule, root: fx.Node) -> _Found | None:
    x, low, high = bounds(program, root)
    kind = {6.0: "relu6", math.inf: "relu"}.get(high)
    if low != 0.0 or kind is None or root.args == (x, kind):
        return None
    return _Found(x, kind)


def _gated(program: fx.GraphModule, root: fx.Node, constant: float, factors: tuple[fx.Node, ...]) -> _Found | None:
    """``constant * x * gate``, of x itself (h-swish, swish) or of another tensor (a squeeze-excite's h-sigmoid)."""
    x, gate = factors
    if close(constant, 1.0) and is_op(gate, ACTIVATION) and gate.args[0] is x and only_user(gate) is not None:
        kind = {"sigmoid": "silu", "hardsigmoid": "hardswish"}.get(gate.args[1])
        return _Found(x, kind) if kind else None
    found = _hardsigmoid(program, root, constant, gate)
    if found is None:
        return None
    return _Found(x, "hardswish") if found.x is x else found._replace(other=x)


def _swish(program: fx.GraphModule, factors: tuple[fx.Node, ...], divisor: fx.Node) -> _Found | None:
    """``1 / (1 + exp(-x))``, or that times x."""
    for exp, scale, shift in affine(program, divisor):
        if is_op(exp, aten.exp) and scale == shift == 1.0 and only_user(exp) is not None:
            for x, factor, offset in affine(program, exp.args[0]):
                if factor == -1.0 and offset == 0.0 and factors in ((), (x,)):
                    return _Found(x, "silu" if factors else "sigmoid")
    return None
