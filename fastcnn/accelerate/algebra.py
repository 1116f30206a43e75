# SPDX-License-Identifier: Apache-2.0
"""Arithmetic with constants, taken apart: what a rewrite compares with a formula, however the formula was written.

Every function looks through a node only where nothing but the formula reads it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import fx

from .program import ACTIVATION, aten, is_op, only_user, tensor_of


class Product(NamedTuple):
    """``constant * product of factors / product of divisors``."""

    constant: float
    factors: tuple[fx.Node, ...]
    divisors: tuple[fx.Node, ...]


def close(found: float, wanted: float) -> bool:
    """Whether ``found`` is ``wanted``, or ``wanted`` rounded to float32."""
    return math.isclose(found, wanted, rel_tol=2.0**-24)


def number(program: fx.GraphModule, arg: Any) -> float | None:
    """``arg`` as a number: a Python one or a scalar tensor that the program holds; None for anything else."""
    if isinstance(arg, (int, float)) and not isinstance(arg, bool):
        return float(arg)
    held = tensor_of(program, arg)
    return held.item() if held is not None and held.dim() == 0 and held.is_floating_point() else None


def product(program: fx.GraphModule, root: fx.Node) -> Product:
    """The value of ``root`` as a product; of a node that is none, the node itself."""
    constant, factors, divisors = 1.0, [], []
    waiting = [(root, True)]
    while waiting:
        arg, up = waiting.pop()
        parts = _parts(program, arg) if arg is root or (isinstance(arg, fx.Node) and only_user(arg)) else None
        if (held := number(program, arg)) is not None:
            constant = constant * held if up else constant / held
        elif parts is None:
            (factors if up else divisors).append(arg)
        else:
            waiting += [(part, up == part_up) for part, part_up in reversed(parts)]
    return Product(constant, tuple(factors), tuple(divisors))


def _parts(program: fx.GraphModule, node: fx.Node) -> list[tuple[Any, bool]] | None:
    """(operand, whether it multiplies) of a product or a quotient."""
    if node.kwargs or any(number(program, arg) == 0.0 for arg in node.args):
        return None
    if is_op(node, aten.mul):
        return [(node.args[0], True), (node.args[1], True)]
    if is_op(node, aten.div):
        return [(node.args[0], True), (node.args[1], False)]
    return [(node.args[0], False)] if is_op(node, aten.reciprocal) else None


def affine(program: fx.GraphModule, node: fx.Node) -> Iterator[tuple[fx.Node, float, float]]:
    """Each (x, scale, shift) with ``node = scale * x + shift``, from x = ``node`` inwards."""
    scale, shift = 1.0, 0.0
    while True:
        yield node, scale, shift
        step = _affine_step(program, node) if only_user(node) is not None else None
        if step is None:
            return
        node, factor, offset = step
        scale, shift = scale * factor, scale * offset + shift


def _affine_step(program: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, float, float] | None:
    if node.kwargs or not is_op(node, aten.add, aten.sub, aten.rsub, aten.mul, aten.div, aten.neg):
        return None
    if is_op(node, aten.neg):
        return node.args[0], -1.0, 0.0
    if len(node.args) != 2:
        return None
    left, right = (number(program, arg) for arg in node.args)
    if (left is None) == (right is None):
        return None
    x, held = (node.args[0], right) if left is None else (node.args[1], left)
    if is_op(node, aten.add):
        return x, 1.0, held
    if is_op(node, aten.mul):
        return x, held, 0.0
    if is_op(node, aten.div):
        return (x, 1.0 / held, 0.0) if left is None and held != 0.0 else None
    minus_x = is_op(node, aten.sub) == (left is not None)  # c - x: a sub with the constant first, a rsub with it last
    return (x, -1.0, held) if minus_x else (x, 1.0, -held)


def bounds(program: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, float, float]:
    """(x, low, high) with ``node = clamp(x, low, high)``; (node, -inf, inf) of a node that is no clamp."""
    low, high = -math.inf, math.inf
    inner = node
    while inner is node or only_user(inner) is not None:
        step = _bounds_step(program, inner)
        if step is None or not step[1] <= step[2]:
            break
        inner, *limits = step
        low, high = (min(max(limit, low), high) for limit in limits)
    return inner, low, high


def _bounds_step(program: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, float, float] | None:
    if is_op(node, ACTIVATION):
        high = {"relu": math.inf, "relu6": 6.0}.get(node.args[1])
        return None if high is None else (node.args[0], 0.0, high)
    if is_op(node, aten.minimum.default, aten.maximum.default, aten.min.other, aten.max.other):
        left, right = (number(program, arg) for arg in node.args)
        if (left is None) == (right is None):
            return None
        x, held = (node.args[0], right) if left is None else (node.args[1], left)
        return (x, -math.inf, held) if is_op(node, aten.minimum, aten.min) else (x, held, math.inf)
    if not is_op(node, aten.clamp, aten.clamp_min, aten.clamp_max, aten.hardtanh):
        return None
    given = list(node.args[1:]) + [None] * (3 - len(node.args))
    low, high = node.kwargs.get("min", given[0]), node.kwargs.get("max", given[1])
    if is_op(node, aten.hardtanh):
        low, high = (-1.0 if low is None else low), (1.0 if high is None else high)
    if is_op(node, aten.clamp_max):
        low, high = None, node.kwargs.get("max", given[0])
    low = -math.inf if low is None else number(program, low)
    high = math.inf if high is None else number(program, high)
    return None if low is None or high is None or node.kwargs.keys() - {"min", "max"} else (node.args[0], low, high)
