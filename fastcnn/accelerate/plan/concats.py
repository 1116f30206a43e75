# SPDX-License-Identifier: Apache-2.0
"""Concatenations without copies: their operands are written where the concatenation has them."""

from __future__ import annotations

from torch import fx

from ..program import aten, is_op
from .lowering import FREE
from .state import Lowering


def assign(nodes: list[fx.Node], low: Lowering) -> None:
    """Gives every concatenation a place, and every operand its slice of one where it can be written there.

    The longest list comes first: a growing list (DenseNet) is a slice of it. An operand that another concatenation has
    placed, that is a view, or comes from outside, is copied.
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
            view = is_op(part, *FREE) or not is_op(part) and part.op != "call_function"
            getitem = part.op == "call_function" and getattr(part.target, "__name__", "") == "getitem"
            if part in inside and part not in low.places and not view and not getitem:
                low.places[part] = wanted


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
