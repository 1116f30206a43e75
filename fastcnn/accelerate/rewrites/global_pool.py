# SPDX-License-Identifier: Apache-2.0
"""Means over all pixels that are written with other shapes: ``[N, C, H * W]``, channels last, one side after the other.

Every axis of a tensor on the way is followed as the axes of the map that it consists of, so the spelling does not matter:
a mean is the map's when it has taken H and W and has left N and C in their order. A sum divided by H * W is a mean.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from fastcnn.ops._checks import FLOATING

from ..algebra import close, product
from ..program import (
    GLOBAL_AVG_POOL,
    Notes,
    arguments,
    aten,
    calls,
    emit,
    is_map,
    is_op,
    only_user,
    replace,
    shape,
    value,
)

_MEANS = (aten.mean.dim, aten.adaptive_avg_pool1d.default)
_SUMS = (aten.sum.dim_IntList,)
_RESHAPES = (aten.reshape.default, aten.flatten.using_ints)  # normalise leaves a flatten with more dynamic sizes
_VIEWS = (aten.permute.default, aten.transpose.int, *_RESHAPES)
_Axes = list[tuple[int, ...]]  # of each axis of a tensor: the axes of the map in it; none is left of one that was taken


def global_pool(program: fx.GraphModule, notes: Notes) -> int:
    """Returns: the number of pools that became ``fastcnn.global_avg_pool``, or are gone because they did nothing."""
    count = 0
    for node in reversed(list(calls(program, *_MEANS))):  # the last of two means first
        count += 0 if node._erased else _pool(program, node, _map_of(node, _MEANS))
    for node in reversed(list(calls(program, aten.mul.Tensor, aten.div.Tensor))):
        count += 0 if node._erased else _pool(program, node, _map_of_sum(program, node))
    for node in calls(program, aten.avg_pool2d.default):
        x, given = node.args[0], arguments(node)
        size = tuple(shape(x)[2:])
        whole = is_map(x) and tuple(given["kernel_size"]) == size and not any(given["padding"])
        fits = whole and given["divisor_override"] == size[0] * size[1] and value(x).dtype in FLOATING
        count += _pool(program, node, x if fits else None)
    return count + sum(
        _idle(program, node) for node in calls(program, GLOBAL_AVG_POOL, aten.adaptive_avg_pool2d.default)
    )


def _pool(program: fx.GraphModule, node: fx.Node, x: fx.Node | None) -> int:
    """1 and the pool of ``x`` in the place of ``node``; 0 where there is no x."""
    if x is None:
        return 0
    pooled = emit(program, node, GLOBAL_AVG_POOL, (x,))
    sizes = [-1 if isinstance(size, torch.SymInt) else size for size in shape(node)]
    if len(sizes) != 4 or sizes[2:] != [1, 1]:
        pooled = emit(program, node, aten.reshape.default, (pooled, sizes))
    replace(program, node, pooled)
    return 1


def _idle(program: fx.GraphModule, node: fx.Node) -> int:
    """A pool to the size that the map has is the map; as an output it stays the copy that it is."""
    x = node.args[0]
    same = is_map(x) and shape(x)[2:] == shape(node)[2:] and not any(user.op == "output" for user in node.users)
    if same and all(isinstance(size, int) for size in shape(x)[2:]):
        replace(program, node, x)
        return 1
    return 0


def _map_of_sum(program: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """x where ``node`` is the sum over all pixels of x, divided by their number."""
    constant, factors, divisors = product(program, node)
    if len(factors) != 1 or not is_op(factors[0], *_SUMS) or only_user(factors[0]) is None or len(divisors) > 1:
        return None
    x = _map_of(factors[0], _SUMS)
    if x is None:
        return None
    pixels: Any = shape(x)[2] * shape(x)[3]
    if divisors:
        divisor = divisors[0].meta.get("val")
        fits = isinstance(divisor, torch.SymInt) and constant == 1.0 and statically_known_true(divisor == pixels)
    else:
        fits = isinstance(pixels, int) and close(constant * pixels, 1.0)
    return x if fits and shape(node) == shape(factors[0]) else None


def _map_of(last: fx.Node, reductions: tuple) -> fx.Node | None:
    """The map that ``last``, which is one of ``reductions``, has reduced to [N, C], with what stands in between."""
    chain = [last]
    while True:
        x = chain[-1].args[0]
        if not isinstance(x, fx.Node):
            return None
        if (
            is_map(x)
            and value(x).dtype in FLOATING
            and value(last).dtype == value(x).dtype
            and _is_pool(chain, reductions)
        ):
            return x
        if not is_op(x, *_VIEWS) and not (is_op(x, *reductions) and only_user(x) is not None):
            return None
        chain.append(x)


def _is_pool(chain: list[fx.Node], reductions: tuple) -> bool:
    axes: _Axes | None = [(0,), (1,), (2,), (3,)]
    for node in reversed(chain):
        if is_op(node, *reductions):
            axes = _reduced(node, axes)
        elif is_op(node, *_RESHAPES):
            axes = _reshaped(node, axes)
        else:
            axes = _permuted(node, axes)
        if axes is None:
            return False
    return [axis for axis in axes if axis] == [(0,), (1,)]


def _permuted(node: fx.Node, axes: _Axes) -> _Axes:
    given = arguments(node)
    if "dims" in given:
        return [axes[dim] for dim in given["dims"]]
    axes = list(axes)
    first, second = given["dim0"], given["dim1"]
    axes[first], axes[second] = axes[second], axes[first]
    return axes


def _reduced(node: fx.Node, axes: _Axes) -> _Axes | None:
    given = arguments(node)
    if is_op(node, aten.adaptive_avg_pool1d.default):
        return [*axes[:-1], ()] if list(given["output_size"]) == [1] else None
    dims = {dim % len(axes) for dim in given["dim"] or range(len(axes))}
    if given["dtype"] not in (None, value(node.args[0]).dtype):
        return None
    if given["keepdim"]:
        return [() if i in dims else axis for i, axis in enumerate(axes)]
    return [axis for i, axis in enumerate(axes) if i not in dims]


def _reshaped(node: fx.Node, axes: _Axes) -> _Axes | None:
    """Neighbouring axes may be merged, and axes of 1 come and go; None where an axis is cut."""
    waiting = [(axis, size) for axis, size in zip(axes, shape(node.args[0]), strict=True) if axis]
    found: _Axes = []
    for size in shape(node):
        if not waiting or (statically_known_true(size == 1) and not statically_known_true(waiting[0][1] == 1)):
            if not statically_known_true(size == 1):
                return None
            found.append(())
            continue
        merged, extent = waiting.pop(0)
        while waiting and not statically_known_true(extent == size):
            axis, part = waiting.pop(0)
            merged, extent = merged + axis, extent * part
        if not statically_known_true(extent == size):
            return None
        found.append(merged)
    return found if all(statically_known_true(size == 1) for _, size in waiting) else None
