# SPDX-License-Identifier: Apache-2.0
"""Values stored in another order of their channels: what that asks of the operators around them, and of their weights."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor, fx

from .channels import Order, channels, is_cat, permutation, slice_of
from .program import (
    ACTIVATION,
    BATCH_NORM,
    CONV,
    GLOBAL_AVG_POOL,
    MAX_POOL,
    SE_SCALE,
    Conv,
    add_tensor,
    aten,
    is_op,
    shape,
    tensor_of,
)

# Each channel of the result is made of the same channel of the one tensor that they read.
CHANNELWISE = (ACTIVATION, MAX_POOL, GLOBAL_AVG_POOL, aten.avg_pool2d, aten.adaptive_avg_pool2d, aten.max_pool2d,
               aten.adaptive_max_pool2d, aten.upsample_nearest2d, aten.upsample_bilinear2d, aten.relu, aten.gelu,
               aten.leaky_relu, aten.elu, aten.mish, aten.softplus, aten.sigmoid, aten.tanh, aten.hardtanh, aten.clamp,
               aten.hardswish, aten.hardsigmoid, aten.silu, aten.neg, aten.pow)  # fmt: skip
BINARY = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.maximum, aten.minimum)
INDEXING = (aten.index_select.default, aten.index.Tensor)


class Stuck(Exception):
    """An operator that must have its channels as they are."""

    def __init__(self, node: fx.Node, reason: str) -> None:
        super().__init__(f"{node.meta.get('layer') or node.name}: {reason}")


class Orders:
    """Which values are stored in another order: at position ``k`` of ``node`` lies its channel ``order[k]``.

    What has no order yet is stored as it was. ``moves`` are the shuffles met on the way: any order fits them.

    Args:
        free: operators that the caller replaces, and so make or read any order.
        fixed: values that keep their order.
    """

    def __init__(
        self, program: fx.GraphModule, free: Collection[fx.Node] = (), fixed: Collection[fx.Node] = ()
    ) -> None:
        self.program = program
        self.free = free
        self.orders: dict[fx.Node, Order] = {node: self._identity(node) for node in fixed}
        self.moves: list[fx.Node] = []
        self.touched: dict[fx.Node, None] = {}

    def of(self, node: fx.Node) -> Order:
        found = self.orders.get(node)
        return self._identity(node) if found is None else found

    @staticmethod
    def _identity(node: fx.Node) -> Order:
        return tuple(range(channels(node) or 0))

    def store(self, node: fx.Node, order: Sequence[int]) -> None:
        """Store ``node`` so, and with it all that this entails.

        Raises: Stuck.
        """
        waiting = [(node, tuple(order))]
        while waiting:
            node, order = waiting.pop()
            identity = order == tuple(range(len(order)))
            if node in self.orders:
                if self.orders[node] != order:
                    raise Stuck(node, "would be wanted in two orders")
                continue
            if channels(node) != len(order):
                raise Stuck(node, "its channels are not what it passes on")
            if not identity and node.op != "call_function":
                raise Stuck(node, "comes from outside in this order")
            self.orders[node] = order
            if identity:
                continue
            for operator in (node, *node.users):
                if operator in self.free:
                    continue
                if permutation(self.program, operator) is not None:
                    if operator not in self.moves:
                        self.moves.append(operator)
                else:
                    self.touched[operator] = None
                    waiting += self._entailed(operator, node)

    def apply(self) -> None:
        """Permute the weights of every operator beside what is stored otherwise."""
        for node in self.touched:
            if is_op(node, CONV, BATCH_NORM, SE_SCALE, aten.linear.default):
                out = _first_result(node) if is_op(node, SE_SCALE) else node
                node.args = permute_weights(self.program, node, self.of(node.args[0]), self.of(out))

    @staticmethod
    def passes_on(node: fx.Node) -> bool:
        """Whether it takes and leaves one map, channel by channel."""
        return is_op(node, *CHANNELWISE) and not node.kwargs and len(node.all_input_nodes) == 1

    def _entailed(self, node: fx.Node, changed: fx.Node) -> Iterator[tuple[fx.Node, Order]]:
        """The orders of the other values of ``node``, an operator that reads or makes ``changed``."""
        order = self.orders[changed]
        if is_op(node, CONV):
            yield from self._conv(node, changed)
        elif is_op(node, aten.linear.default):
            if len(shape(node)) != 2:
                raise Stuck(node, "a linear layer over other dimensions")
            check_weights(self.program, node)
        elif is_op(node, BATCH_NORM):
            check_weights(self.program, node)
            yield from ((each, order) for each in (node.args[0], node.args[5], node) if each is not None)
        elif is_op(node, SE_SCALE):
            check_weights(self.program, node)
            yield from ((each, order) for each in (node.args[0], _first_result(node)))
        elif getattr(node.target, "__name__", "") == "getitem" and is_op(node.args[0], SE_SCALE):
            yield node.args[0].args[0], order
        elif self.passes_on(node) or _is_mean(node) or _is_flatten(node):
            yield from ((each, order) for each in (node.args[0], node))
        elif is_op(node, *BINARY) and not node.kwargs:
            yield from self._operands(node, order)
        elif is_cat(node):
            yield from self._cat(node, changed)
        elif slice_of(node) is not None:
            yield from self._slice(node, changed)
        else:
            reason = "returned" if node.op == "output" else "its channels must be in this order"
            raise Stuck(changed if node.op == "output" else node, reason)

    @staticmethod
    def _operands(node: fx.Node, order: Order) -> Iterator[tuple[fx.Node, Order]]:
        for each in (*node.args, node):
            if not isinstance(each, fx.Node) or not isinstance(each.meta["val"], Tensor):
                continue
            sizes = shape(each)
            if sizes and len(sizes) != len(shape(node)):
                raise Stuck(node, "its operands are of different ranks")
            if sizes and sizes[1] != 1:
                yield each, order

    def _conv(self, node: fx.Node, changed: fx.Node) -> Iterator[tuple[fx.Node, Order]]:
        conv = Conv.of(node)
        outputs = [each for each in (node, conv.residual) if each is not None]
        if changed in outputs:
            yield from ((each, self.orders[changed]) for each in outputs if each is not changed)
        if conv.groups > 1:
            count_in, count_out = channels(conv.x), channels(node)
            width_in, width_out = count_in // conv.groups, count_out // conv.groups
            if changed is conv.x and node not in self.orders:
                groups = _group_order(node, self.orders[conv.x], width_in)
                if groups != tuple(range(conv.groups)):
                    yield node, _expanded(groups, width_out)
            elif changed is node and conv.x not in self.orders:
                groups = _group_order(node, self.orders[node], width_out)
                if groups != tuple(range(conv.groups)):
                    yield conv.x, _expanded(groups, width_in)
            elif _group_order(node, self.of(conv.x), width_in) != _group_order(node, self.of(node), width_out):
                raise Stuck(node, "its groups would be wanted in two orders")
        check_weights(self.program, node)

    def _cat(self, node: fx.Node, changed: fx.Node) -> Iterator[tuple[fx.Node, Order]]:
        parts = node.args[0]
        if any(not channels(part) for part in parts) or len(set(parts)) < len(parts):
            raise Stuck(node, "its parts are not known")
        starts = [sum(map(channels, parts[:i])) for i in range(len(parts))]
        if changed is not node:
            yield node, tuple(at + k for at, part in zip(starts, parts, strict=True) for k in self.of(part))
            return
        for at, part in zip(starts, parts, strict=True):
            order = tuple(k - at for k in self.orders[node][at : at + channels(part)])
            if sorted(order) != list(range(len(order))):
                raise Stuck(node, "channels would cross from part to part")
            yield part, order

    def _slice(self, node: fx.Node, changed: fx.Node) -> Iterator[tuple[fx.Node, Order]]:
        x, start, stop = slice_of(node)
        if changed is x:
            order = tuple(k - start for k in self.orders[x][start:stop])
            if sorted(order) != list(range(len(order))):
                raise Stuck(node, "would be of other channels")
            yield node, order
        elif x not in self.orders:
            yield x, (*range(start), *(start + k for k in self.orders[node]), *range(stop, channels(x)))


def _first_result(node: fx.Node) -> fx.Node:
    users = list(node.users)
    if len(users) != 1 or users[0].args[1] != 0:
        raise Stuck(node, "its means are read too")
    return users[0]


def _is_mean(node: fx.Node) -> bool:
    return is_op(node, aten.mean.dim) and sorted(d % len(shape(node.args[0])) for d in node.args[1] or ()) == [2, 3]


def _is_flatten(node: fx.Node) -> bool:
    """Whether it reshapes ``[N, C, 1, 1]`` and ``[N, C]`` into one another."""
    if not is_op(node, aten.reshape.default):
        return False
    before, after = shape(node.args[0]), shape(node)
    same = len(before) > 1 and len(after) > 1 and before[1] == after[1] and str(before[0]) == str(after[0])
    return same and all(each == 1 for each in (*before[2:], *after[2:]))


def _expanded(groups: Order, width: int) -> Order:
    return tuple(group * width + k for group in groups for k in range(width))


def _group_order(node: fx.Node, order: Order, width: int) -> Order:
    """Which group lies where, when each stays together."""
    blocks = [{k // width for k in order[at : at + width]} for at in range(0, len(order), width)]
    if any(len(block) != 1 for block in blocks):
        raise Stuck(node, "channels would cross from group to group of a grouped convolution")
    return tuple(block.pop() for block in blocks)


def check_weights(program: fx.GraphModule, node: fx.Node) -> None:
    """Raises: Stuck, unless all weights of ``node`` are constants."""
    last = {CONV: 3, BATCH_NORM: 5, SE_SCALE: 5}.get(node.target, 3)
    if any(weight is not None and tensor_of(program, weight) is None for weight in node.args[1:last]):
        raise Stuck(node, "its weights are computed")


def permute_weights(program: fx.GraphModule, node: fx.Node, x: Order, y: Order) -> tuple:
    """The arguments of ``node`` with which it reads channels in the order ``x`` and writes them in the order ``y``."""

    def permuted(weight: fx.Node | None, *orders: tuple[int, Order]) -> fx.Node | None:
        tensor = new = tensor_of(program, weight)
        for dim, order in orders:
            if new is not None and order != tuple(range(len(order))):
                new = new.index_select(dim, torch.tensor(order, device=new.device))
        return weight if new is tensor else add_tensor(program, weight.target, new)

    args = list(node.args)
    if is_op(node, CONV):
        conv = Conv.of(node)
        grouped = conv.groups > 1
        weight = _permuted_groups(program, conv, x, y) if grouped else permuted(conv.weight, (0, y), (1, x))
        return conv._replace(weight=weight, bias=permuted(conv.bias, (0, y))).args
    if is_op(node, aten.linear.default):
        args[1] = permuted(args[1], (0, y), (1, x))
        args[2:3] = [permuted(bias, (0, y)) for bias in args[2:3]]
    elif is_op(node, BATCH_NORM):
        args[1:5] = [permuted(each, (0, y)) for each in args[1:5]]
    elif is_op(node, SE_SCALE):
        args[1] = permuted(args[1], (1, x))
        args[3:5] = [permuted(each, (0, y)) for each in args[3:5]]
    return tuple(args)


def _permuted_groups(program: fx.GraphModule, conv: Conv, x: Order, y: Order) -> fx.Node:
    """The rows of a grouped weight in the order ``y``, the columns of each in that of its group of ``x``."""
    width = len(x) // conv.groups
    inner = [[k % width for k in x[at : at + width]] for at in range(0, len(x), width)]
    if y == tuple(range(len(y))) and all(each == list(range(width)) for each in inner):
        return conv.weight
    tensor = tensor_of(program, conv.weight)
    groups = tensor.index_select(0, torch.tensor(y, device=tensor.device)).unflatten(0, (conv.groups, -1))
    columns = torch.tensor(inner, device=tensor.device)[:, None, :, None, None].expand_as(groups)
    return add_tensor(program, conv.weight.target, groups.gather(2, columns).flatten(0, 1))
