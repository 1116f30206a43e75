# SPDX-License-Identifier: Apache-2.0
"""Chains of shuffles, slices and concats in which a channel is moved once, when something computes with it.

A ShuffleNetV2 unit shuffles all its channels, though the next computes with half of them: the others only pass by, to be
shuffled again. Here each unit's half is put together from where its channels were made, in the order in which they lie there,
which the weights of its readers follow; a channel that passes by is not touched.

Off on a CPU: fewer bytes move in as many launches, but ``aten.cat`` takes longer over narrow slices of channels_last maps
than the shuffled concat over all channels.
"""

from __future__ import annotations

from collections import Counter

from torch import fx

from ..channel_orders import Orders, Stuck
from ..channels import channels, emit_cat, emit_slice, is_cat, permutation, slice_of
from ..program import SHUFFLE_CONCAT, Notes, is_map, is_op

MOST_PARTS = 32  # of a concat: beyond, its pieces are too narrow to be copied fast

Channel = tuple[fx.Node, int]
Run = tuple[fx.Node, int, int]


def channel_gather(program: fx.GraphModule, notes: Notes) -> int:
    """Replace each connected chain in which less moves that way, if all that reads its shuffled values can follow.

    Returns: how many shuffles are gone.
    """
    return sum(_gather(program, region, notes) for region in _regions(program))


def _regions(program: fx.GraphModule) -> list[list[fx.Node]]:
    """Connected operators that only move channels, each region in the order of the program."""
    owner: dict[fx.Node, list[fx.Node]] = {}
    regions: dict[int, list[fx.Node]] = {}
    for node in program.graph.nodes:
        if not _moves(program, node):
            continue
        region = [node]
        for x in node.all_input_nodes:
            if x in owner and owner[x] is not region:
                other = owner[x]
                regions.pop(id(other), None)
                region = other + region
                owner.update(dict.fromkeys(region, region))
        regions[id(region)] = region
        owner[node] = region
    position = {node: i for i, node in enumerate(program.graph.nodes)}
    return [sorted(region, key=position.__getitem__) for region in regions.values()]


def _moves(program: fx.GraphModule, node: fx.Node) -> bool:
    if not is_map(node) or not channels(node):
        return False
    if is_cat(node):
        return all(is_map(part) and channels(part) for part in node.args[0])
    return is_op(node, SHUFFLE_CONCAT) or slice_of(node) is not None or permutation(program, node) is not None


def _origins(program: fx.GraphModule, region: list[fx.Node]) -> dict[fx.Node, list[Channel]]:
    """Where each channel of each value of ``region`` was made."""
    found: dict[fx.Node, list[Channel]] = {}

    def of(x: fx.Node) -> list[Channel]:
        return found[x] if x in found else [(x, k) for k in range(channels(x))]

    for node in region:
        if is_cat(node):
            found[node] = [each for part in node.args[0] for each in of(part)]
        elif is_op(node, SHUFFLE_CONCAT):
            found[node] = [each for pair in zip(*map(of, node.args), strict=True) for each in pair]
        elif slice_of(node) is not None:
            x, start, stop = slice_of(node)
            found[node] = of(x)[start:stop]
        else:
            found[node] = [of(node.args[0])[k] for k in permutation(program, node)]
    return found


def _runs(origin: list[Channel]) -> list[Run]:
    runs: list[Run] = []
    for x, k in origin:
        if runs and runs[-1][0] is x and runs[-1][2] == k:
            runs[-1] = (x, runs[-1][1], k + 1)
        else:
            runs.append((x, k, k + 1))
    return runs


def _places(origin: list[Channel], position: dict[fx.Node, int]) -> list[tuple[int, int, int]]:
    """What to sort the channels by: their sources in order, a channel's second copy behind all first ones."""
    copies: Counter[Channel] = Counter()
    places = []
    for x, k in origin:
        places.append((copies[x, k], position[x], k))
        copies[x, k] += 1
    return places


def _gather(program: fx.GraphModule, region: list[fx.Node], notes: Notes) -> int:
    shuffles = [node for node in region if not is_cat(node) and slice_of(node) is None]
    inside = set(region)
    read = [node for node in region if any(user not in inside for user in node.users)]
    if not shuffles or not read or len(region) == 1:
        return 0
    origins = _origins(program, region)
    position = {node: i for i, node in enumerate(program.graph.nodes)}
    orders, runs = {}, {}
    for node in read:
        origin, order = origins[node], list(range(channels(node)))
        if len(_runs(origin)) > 1:
            order.sort(key=_places(origin, position).__getitem__)
        orders[node], runs[node] = order, _runs([origin[k] for k in order])
    moved = sum(channels(node) for node in region if slice_of(node) is None)
    still = sum(channels(node) for node in read if len(runs[node]) > 1)
    if still >= moved or max(map(len, runs.values())) > MOST_PARTS:
        return 0
    sources = {x for origin in origins.values() for x, _ in origin}
    kept = [node for node, order in orders.items() if order == list(range(len(order)))]
    stored = Orders(program, inside, {*sources, *kept})
    try:
        for node, order in orders.items():
            stored.store(node, order)
        if stored.moves:
            raise Stuck(stored.moves[0], "would be another order")
    except Stuck as stuck:
        for node in shuffles:
            notes.leave(node, f"moves also what only passes by: {stuck}")
        return 0
    stored.apply()
    for node in read:
        new = emit_cat(program, node, [emit_slice(program, node, *run) for run in runs[node]])
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user not in inside)
    for node in reversed(region):
        program.graph.erase_node(node)
    return len(shuffles)
