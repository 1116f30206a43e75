# SPDX-License-Identifier: Apache-2.0
"""Concatenations without copies: their operands are written where the concatenation has them."""

from __future__ import annotations

import itertools

from torch import fx

from ..program import CONV, Conv, aten, is_op
from .lowering import FREE
from .state import Lowering, channel_range


def assign(nodes: list[fx.Node], low: Lowering) -> None:
    """Gives every concatenation a place, and every operand its slice of one where it can be written there.

    The longest list comes first: a growing list (DenseNet) is a slice of it. A slice of a convolution has its place where
    the convolution can be written slice by slice. What another concatenation has placed, what is a view otherwise, and
    what comes from outside, is copied.
    """
    inside = set(nodes)
    cats = [node for node in nodes if is_op(node, aten.cat.default)]
    for cat in sorted(cats, key=lambda node: -low.shapes[node][0]):
        parts = list(cat.args[0])
        if cat not in low.places and not _within(cat, parts, low):
            low.places[cat] = low.builder.map(*low.shapes[cat])
        start = 0
        for part in parts:
            wanted = low.places[cat].slice(start, start + low.shapes[part][0])
            start += low.shapes[part][0]
            writer = _writer(part, inside, low)
            if writer is not None and writer not in low.places:
                low.places[writer] = wanted


def _writer(part: fx.Node, inside: set[fx.Node], low: Lowering) -> fx.Node | None:
    """The node whose step can write ``part`` at any place."""
    if part.op == "call_function" and getattr(part.target, "__name__", "") == "getitem":
        part = part.args[0]  # the map of the pair that squeeze-and-excitation gives
    if part not in inside:
        return None
    if is_op(part, aten.slice.Tensor):
        return part if _in_pieces(part.args[0], inside, low) else None
    return None if is_op(part, *FREE) else part


def _in_pieces(node: fx.Node, inside: set[fx.Node], low: Lowering) -> bool:
    """Whether only slices read ``node``, none of them what another does, and its steps can write them one by one."""
    if node not in inside or node in low.places or not is_op(node, CONV):
        return False
    conv = Conv.of(node)
    if conv.groups != 1 or conv.residual is not None:
        return False
    if not all(user in inside and is_op(user, aten.slice.Tensor) for user in node.users):
        return False
    ranges = sorted(channel_range(user, low.shapes) for user in node.users)
    return all(before[1] <= after[0] for before, after in itertools.pairwise(ranges))


def _within(cat: fx.Node, parts: list[fx.Node], low: Lowering) -> bool:
    """Whether the operands lie side by side already; then the concatenation is that range."""
    found = [low.places.get(part) for part in parts]
    if any(each is None for each in found):
        return False
    end = found[0].channel
    for each in found:
        if each.buffer != found[0].buffer or each.channel != end:
            return False
        end += each.C
    low.places[cat] = found[0].slice(0, end - found[0].channel)
    return True
