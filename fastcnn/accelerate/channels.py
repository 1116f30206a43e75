# SPDX-License-Identifier: Apache-2.0
"""Operators that only move channels: how the rewrites read them and write them.

An order is a tuple: position ``k`` holds channel ``order[k]``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from .program import CHANNEL_SHUFFLE, aten, emit, is_op, shape, tensor_of

Order = tuple[int, ...]


def channels(node: fx.Node) -> int | None:
    """The size of dimension 1, None where it is not a constant."""
    sizes = shape(node)
    return sizes[1] if len(sizes) > 1 and isinstance(sizes[1], int) else None


def shuffled(count: int, groups: int) -> Order:
    """The order in which ``channel_shuffle`` leaves ``count`` channels."""
    return tuple(k % groups * (count // groups) + k // groups for k in range(count))


def shuffle_groups(order: Sequence[int]) -> int | None:
    """The ``groups`` with which ``channel_shuffle`` gives ``order``; 1 for the identity, None for any other order."""
    count = len(order)
    if tuple(order) == tuple(range(count)):
        return 1
    # Position 1 holds the first channel of the second group, and groups are count / that wide.
    width = order[1]
    if width < 1 or count % width or tuple(order) != shuffled(count, count // width):
        return None
    return count // width


def inverse(order: Order) -> Order:
    """Position of each channel."""
    found = [0] * len(order)
    for position, channel in enumerate(order):
        found[channel] = position
    return tuple(found)


def permutation(program: fx.GraphModule, node: fx.Node) -> Order | None:
    """The order in which ``node`` leaves the channels of its first argument; None unless that is all it does."""
    if is_op(node, CHANNEL_SHUFFLE):
        count = channels(node)
        return None if count is None else shuffled(count, node.args[1])
    if is_op(node, aten.index_select.default):
        dim, index = node.args[1], tensor_of(program, node.args[2])
    elif is_op(node, aten.index.Tensor):
        dim, index = 1, None
        if len(node.args[1]) == 2 and node.args[1][0] is None:
            index = tensor_of(program, node.args[1][1])
    else:
        return None
    if dim not in (1, 1 - len(shape(node))) or index is None or index.dim() != 1 or index.is_floating_point():
        return None
    count = channels(node.args[0])
    order = tuple(each + (count or 0) * (each < 0) for each in index.tolist())
    return order if count and sorted(order) == list(range(count)) else None


def is_cat(node: object) -> bool:
    """Whether ``node`` joins tensors along dimension 1."""
    return is_op(node, aten.cat.default) and len(node.args) == 2 and node.args[1] == 1


def slice_of(node: object) -> tuple[fx.Node, int, int] | None:
    """``(x, start, stop)`` of a slice along dimension 1 with constant bounds inside ``x``; None for anything else."""
    if not is_op(node, aten.slice.Tensor):
        return None
    x, dim, start, stop, step = (*node.args, *(None, 0, None, None, 1)[len(node.args) :])
    count = channels(x) if dim == 1 else None
    start, stop = start or 0, count if stop is None else stop
    if count is None or step != 1 or not (isinstance(start, int) and isinstance(stop, int)):
        return None
    start, stop = (min(max(bound + count * (bound < 0), 0), count) for bound in (start, stop))
    return (x, start, stop) if start < stop else None


def emit_slice(program: fx.GraphModule, before: fx.Node, x: fx.Node, start: int, stop: int) -> fx.Node:
    """Channels ``start`` to ``stop`` of ``x``: ``x`` itself where that is all."""
    if (start, stop) == (0, channels(x)):
        return x
    return emit(program, before, aten.slice.Tensor, (x, 1, start, stop))


def emit_cat(program: fx.GraphModule, before: fx.Node, parts: Sequence[fx.Node]) -> fx.Node:
    """The channels of all ``parts``: the part itself where there is one."""
    return parts[0] if len(parts) == 1 else emit(program, before, aten.cat.default, (list(parts), 1))
