# SPDX-License-Identifier: Apache-2.0
"""Channel shuffles that disappear into the weights next to them.

Instead of moving channels, their readers expect them in another order, or their producer writes them so: a permutation of
weights, exact. Orders spread from the shuffle over what only passes channels on (activations, pools, depthwise convolutions,
sums), as far as convolutions and linear layers that absorb them; one operator that cannot is enough to undo the attempt.
"""

from __future__ import annotations

import math

from torch import fx

from ..channel_orders import Orders, Stuck, check_weights, permute_weights
from ..channels import channels, inverse, permutation, shuffle_groups
from ..program import CHANNEL_SHUFFLE, CONV, Conv, Notes, aten, calls, emit, is_map, is_op, only_user, replace, shape


def shuffle_order(program: fx.GraphModule, notes: Notes) -> int:
    """Remove shuffles and constant orders of channels; where that fails, move them behind what makes the map smaller.

    Returns: how many are gone or moved.
    """
    count = 0
    again = True
    while again:
        again = False
        for node in calls(program, CHANNEL_SHUFFLE, aten.index_select.default, aten.index.Tensor):
            order = permutation(program, node) if is_map(node) else None
            if order is None:
                continue
            gone = _absorb(program, node, order, notes) or _sink(program, node, order)
            count += gone
            again = again or gone > 0
    return count


def _absorb(program: fx.GraphModule, node: fx.Node, order: tuple[int, ...], notes: Notes) -> int:
    """``node`` hands on its argument as it is: either its readers take that order, or the argument is written in its own.

    Returns: how many shuffles are gone; the order may meet others, and undo them.
    """
    x = node.args[0]
    reasons = []
    for stored, new in ((node, inverse(order)), (x, order)):
        orders = Orders(program)
        try:
            orders.store(stored, new)
            moves = _remaining_moves(program, orders)
        except Stuck as stuck:
            reasons.append(str(stuck))
            continue
        if moves.get(node) != 1:
            reasons.append("its argument and its result would change their order together")
            continue
        orders.apply()
        for move, groups in moves.items():
            if groups == 1:
                replace(program, move, move.args[0])
            else:
                replace(program, move, emit(program, move, CHANNEL_SHUFFLE, (move.args[0], groups)))
        return sum(groups == 1 for groups in moves.values())
    notes.leave(node, "; ".join(dict.fromkeys(reasons)))
    return 0


def _remaining_moves(program: fx.GraphModule, orders: Orders) -> dict[fx.Node, int]:
    """The shuffles next to what is stored otherwise, and the groups that each has then: 1 where it is gone."""
    found = {}
    for move in orders.moves:
        x, order = move.args[0], permutation(program, move)
        before, after = orders.of(x), orders.of(move)
        place = inverse(before)
        groups = shuffle_groups([place[order[channel]] for channel in after])
        if groups is None:
            raise Stuck(move, "would no longer be a shuffle")
        found[move] = groups
    return found


def _sink(program: fx.GraphModule, node: fx.Node, order: tuple[int, ...]) -> bool:
    """Shuffle what a strided depthwise convolution or a pool leaves, not what it reads."""
    user = only_user(node)
    if user is None or not is_map(user) or channels(user) != len(order) or not _is_smaller(user, node):
        return False
    if is_op(user, CONV):
        conv = Conv.of(user)
        if conv.x is not node or conv.groups != len(order) or conv.residual is not None:
            return False
        try:
            check_weights(program, user)
        except Stuck:
            return False
    elif not Orders.passes_on(user):
        return False
    user.args = (node.args[0], *permute_weights(program, user, inverse(order), inverse(order))[1:])
    groups = shuffle_groups(order)
    args = (user, groups) if groups else (user, *node.args[1:])
    after = emit(program, user.next, CHANNEL_SHUFFLE if groups else node.target, args, like=node)
    user.replace_all_uses_with(after, delete_user_cb=lambda reader: reader is not after)
    program.graph.erase_node(node)
    return True


def _is_smaller(node: fx.Node, other: fx.Node) -> bool:
    sizes, others = shape(node)[2:], shape(other)[2:]
    if all(isinstance(size, int) for size in (*sizes, *others)):
        return math.prod(sizes) < math.prod(others)
    return is_op(node, CONV) and math.prod(Conv.of(node).stride) > 1
