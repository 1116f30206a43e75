# SPDX-License-Identifier: Apache-2.0
"""Channel shuffle in every spelling: reshape and transpose, stack, index, aten's own; a shuffled concat of two as one op.

A chain of operators that only move elements is run on a map of element numbers, for two batch sizes. Where each channel of
the result is one whole channel of the chain's sources, the order of these says what the chain is.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map

from ..channels import channels, emit_cat, emit_slice, is_cat, shuffle_groups
from ..program import (
    CHANNEL_SHUFFLE,
    SHUFFLE_CONCAT,
    Notes,
    aten,
    calls,
    emit,
    is_map,
    is_op,
    only_user,
    replace,
    shape,
    tensor_of,
    value,
)

REORDERING = (aten.transpose, aten.permute, aten.stack, aten.cat, aten.select, aten.unbind, aten.index_select,
              aten.index, aten.gather)  # fmt: skip
MOVING = (*REORDERING, aten.reshape, aten.unflatten, aten.slice, aten.expand, operator.getitem)
ENDS = (aten.reshape, aten.transpose, aten.permute, aten.select, aten.index_select, aten.index, aten.gather,
        operator.getitem)  # fmt: skip
INDEXING = (aten.index_select, aten.index, aten.gather)
SHUFFLES = (aten.channel_shuffle, aten.native_channel_shuffle)
SIZES = ((3, 5, 7), (5, 11, 13))  # what a run puts for the first, second and third symbol
MOST_ELEMENTS = 2**26  # of a run: 512 MiB of numbers


class Chain(NamedTuple):
    """Nodes that only move elements, from ``sources`` to ``end``; ``order`` counts through all channels of the sources."""

    end: fx.Node
    inner: set[fx.Node]
    sources: list[fx.Node]
    order: list[int]


def channel_shuffle(program: fx.GraphModule, notes: Notes) -> int:
    """Bring every spelling to ``channel_shuffle`` or, behind a concat of two that nobody else reads, ``channel_shuffle_concat``."""
    ours = set(calls(program, CHANNEL_SHUFFLE))
    count = 0
    for node in calls(program, *SHUFFLES):
        x, groups = node.args
        if is_map(node):
            replace(program, node, x if groups == 1 else emit(program, node, CHANNEL_SHUFFLE, (x, groups)))
            count += 1
    moved: dict[fx.Node, fx.Node] = {}  # ends of earlier chains, which later ones start from
    for chain in _replaceable(_chains(program, notes)):
        chain = chain._replace(sources=[moved.get(x, x) for x in chain.sources])
        new = _emit_order(program, chain)
        if new is None:
            if is_op(chain.end, *INDEXING) and sorted(chain.order) == list(range(len(chain.order))):
                notes.leave(chain.end, "a constant order of the channels, but no shuffle")
            continue
        replace(program, chain.end, new)
        moved[chain.end] = new
        count += 1
    for node in calls(program, CHANNEL_SHUFFLE):
        joined = node.args[0]
        if node.args[1] != 2 or not is_cat(joined) or len(joined.args[0]) != 2:
            continue
        first, second = joined.args[0]
        if not (is_map(first) and is_map(second)) or channels(first) is None or channels(first) != channels(second):
            continue
        if only_user(joined) is not node:
            notes.leave(node, "the concat before it has another reader")
            continue
        replace(program, node, emit(program, node, SHUFFLE_CONCAT, (first, second)))
        count += node in ours
    return count


def _chains(program: fx.GraphModule, notes: Notes) -> list[Chain]:
    found = []
    for end in calls(program, *ENDS):
        if not is_map(end) or channels(end) is None or end.kwargs:
            continue
        inner, sources = _walk(end)
        if not sources or not any(is_op(node, *REORDERING) for node in (*inner, end)):
            continue
        if any(not is_map(x) or channels(x) is None or not _same_place(x, end) for x in sources):
            continue
        order = _channel_order(program, end, inner, sources, notes)
        if order is not None:
            found.append(Chain(end, inner, sources, order))
    return found


def _same_place(x: fx.Node, end: fx.Node) -> bool:
    """Whether two maps have one batch, height and width."""
    return all(str(a) == str(b) for i, (a, b) in enumerate(zip(shape(x), shape(end), strict=True)) if i != 1)


def _walk(end: fx.Node) -> tuple[set[fx.Node], list[fx.Node]]:
    """The moving nodes behind ``end`` and the tensors that they start from, in order; constants of numbers are neither."""
    inner: set[fx.Node] = set()
    sources: list[fx.Node] = []
    waiting = [end]
    while waiting:
        node = waiting.pop()
        for x in node.all_input_nodes:
            val = x.meta.get("val")
            if not isinstance(val, (Tensor, list, tuple)) or (isinstance(val, Tensor) and not val.is_floating_point()):
                continue
            if is_op(x, *MOVING) and not x.kwargs and not (is_map(x) and _same_place(x, end)):
                if x not in inner:
                    inner.add(x)
                    waiting.append(x)
            elif x not in sources:
                sources.append(x)
    order = {node: i for i, node in enumerate(end.graph.nodes)} if len(sources) > 1 else {}
    return inner, sorted(sources, key=lambda node: order.get(node, 0))


def _channel_order(
    program: fx.GraphModule, end: fx.Node, inner: set[fx.Node], sources: list[fx.Node], notes: Notes
) -> list[int] | None:
    orders = []
    for sizes in SIZES:
        numbers = _Numbers(program, sizes)
        shapes = [[numbers.size(each) for each in shape(x)] for x in sources]
        (n, _, h, w), total = shapes[0], sum(each[1] for each in shapes)
        if n * total * h * w > MOST_ELEMENTS:
            notes.leave(end, f"too large to be followed element by element: {n * total * h * w} elements")
            return None
        every = torch.arange(n * total * h * w).view(n, total, h, w)
        for x, part in zip(sources, every.split([each[1] for each in shapes], 1), strict=True):
            numbers.known[x] = part.contiguous()
        result = numbers.run(end, inner)
        if not isinstance(result, Tensor) or result.dim() != 4 or (result.shape[0], *result.shape[2:]) != (n, h, w):
            return None
        order = result[0, :, 0, 0] // (h * w)
        if int(order.max()) >= total or not torch.equal(result, every[:, order]):
            return None
        orders.append(order.tolist())
    return orders[0] if orders[0] == orders[1] else None


class _Numbers:
    """Runs moving nodes on integers, with ``sizes`` in the place of the program's symbols."""

    def __init__(self, program: fx.GraphModule, sizes: tuple[int, ...]) -> None:
        self.program = program
        self.known: dict[fx.Node, Any] = {}
        self.sizes = sizes
        self.symbols: dict[Any, int] = {}

    def size(self, number: Any) -> int:
        if not isinstance(number, torch.SymInt):
            return int(number)
        expression = number.node.expr
        for symbol in sorted(expression.free_symbols, key=str):
            self.symbols.setdefault(symbol, self.sizes[len(self.symbols) % len(self.sizes)])
        return int(expression.subs(self.symbols))

    def run(self, node: fx.Node, inner: set[fx.Node]) -> Any:
        """None where an operator refuses the numbers."""

        def argument(each: Any) -> Any:
            if isinstance(each, torch.SymInt):
                return self.size(each)
            if not isinstance(each, fx.Node):
                return each
            if each not in self.known:
                self.known[each] = self.run(each, inner) if each in inner else self.constant(each)
            return self.known[each]

        try:
            return node.target(*tree_map(argument, node.args))
        except (RuntimeError, TypeError, IndexError):
            return None

    def constant(self, node: fx.Node) -> Any:
        val = value(node)
        if isinstance(val, (int, torch.SymInt)):
            return self.size(val)
        tensor = tensor_of(self.program, node)
        if tensor is not None:
            return tensor.detach().cpu()
        return self.run(node, set()) if is_op(node, *MOVING) else None


def _replaceable(chains: list[Chain]) -> list[Chain]:
    """Without those of which an inner value is needed besides: they would be computed once more, not less."""
    while True:
        gone = set().union(*(chain.inner | {chain.end} for chain in chains)) if chains else set()
        kept = [chain for chain in chains if all(user in gone for node in chain.inner for user in node.users)]
        if len(kept) == len(chains):
            return kept
        chains = kept


def _emit_order(program: fx.GraphModule, chain: Chain) -> fx.Node | None:
    """The fewest operators that leave the channels in the chain's order; None where no shuffle, slice or concat does."""
    end, sources, order = chain.end, chain.sources, chain.order
    total = sum(channels(x) for x in sources)
    if len(sources) > 1:
        sources, order = _in_order_of_use(sources, order)
        groups = shuffle_groups(order) if len(order) == total else None
        if groups is None:
            return None
        if groups == 2 and len(sources) == 2 and channels(sources[0]) == channels(sources[1]):
            return emit(program, end, SHUFFLE_CONCAT, sources)
        joined = emit_cat(program, end, sources)
        return joined if groups == 1 else emit(program, end, CHANNEL_SHUFFLE, (joined, groups))
    x = sources[0]
    if len(order) == total:
        groups = shuffle_groups(order)
        return None if groups is None else x if groups == 1 else _shuffle(program, end, x, groups)
    step = order[1] - order[0] if len(order) > 1 else 1
    start = order[0]
    if order != list(range(start, start + step * len(order), step or 1)):
        return None
    if step == 1:
        return emit_slice(program, end, x, start, start + len(order))
    # Every step-th channel: one group of the shuffle that undoes one of `step` groups.
    if step < 1 or start >= step or step * len(order) != total:
        return None
    whole = _shuffle(program, end, x, len(order))
    return emit_slice(program, end, whole, start * len(order), (start + 1) * len(order))


def _in_order_of_use(sources: list[fx.Node], order: list[int]) -> tuple[list[fx.Node], list[int]]:
    owner = [(x, channel) for x in sources for channel in range(channels(x))]
    used = list(dict.fromkeys(owner[k][0] for k in order))
    position = {each: k for k, each in enumerate((x, channel) for x in used for channel in range(channels(x)))}
    return used, [position[owner[k]] for k in order]


def _shuffle(program: fx.GraphModule, before: fx.Node, x: fx.Node, groups: int) -> fx.Node:
    """The same shuffle once: the halves of a de-interleaved map share it."""
    for user in x.users:
        if is_op(user, CHANNEL_SHUFFLE) and user.args == (x, groups) and user < before:
            return user
    return emit(program, before, CHANNEL_SHUFFLE, (x, groups))
