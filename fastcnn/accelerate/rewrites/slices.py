# SPDX-License-Identifier: Apache-2.0
"""Slices and concats along the channels: no more of them than the program needs.

A slice is a view, a concat a copy. Nothing here adds a copy: what others read besides is left as it is.
"""

from __future__ import annotations

from torch import fx

from ..channels import channels, emit_cat, emit_slice, is_cat, slice_of
from ..program import CHANNEL_SHUFFLE, SHUFFLE_CONCAT, Notes, emit, is_map, is_op, only_user, replace


def slices(program: fx.GraphModule, notes: Notes) -> int:
    """Replace slices of slices, concats and shuffles, and concats of slices and concats, until none is left.

    Returns: how many nodes were replaced.
    """
    count = 0
    waiting = list(program.graph.nodes)
    while waiting:
        changed = 0
        for node in waiting:
            if not node._erased:
                changed += _slice(program, node) or _cat(program, node, notes)
        count += changed
        waiting = list(program.graph.nodes) if changed else []
    return count


def _slice(program: fx.GraphModule, node: fx.Node) -> bool:
    found = slice_of(node)
    if found is None:
        return False
    x, start, stop = found
    alone = only_user(x) is node
    inner = slice_of(x)
    new = None
    if inner is not None:
        new = emit_slice(program, node, inner[0], inner[1] + start, inner[1] + stop)
    elif is_cat(x):
        new = _slice_of_cat(program, node, x, start, stop, alone)
    elif alone and start % 2 == stop % 2 == 0 and is_op(x, SHUFFLE_CONCAT):
        halves = [emit_slice(program, node, half, start // 2, stop // 2) for half in x.args]
        new = emit(program, node, SHUFFLE_CONCAT, halves)
    elif alone and start % 2 == stop % 2 == 0 and is_op(x, CHANNEL_SHUFFLE) and x.args[1] == 2 and is_map(x):
        source, half = x.args[0], channels(x) // 2
        halves = [emit_slice(program, node, source, at + start // 2, at + stop // 2) for at in (0, half)]
        new = emit(program, node, SHUFFLE_CONCAT, halves)
    if new is None:
        return False
    replace(program, node, new)
    return True


def _slice_of_cat(
    program: fx.GraphModule, node: fx.Node, x: fx.Node, start: int, stop: int, alone: bool
) -> fx.Node | None:
    parts: list[tuple[fx.Node, int, int]] = []
    at = 0
    for part in x.args[0]:
        count = channels(part)
        if count is None:
            return None
        low, high = max(start - at, 0), min(stop - at, count)
        if low < high:
            parts.append((part, low, high))
        at += count
    if len(parts) > 1 and not alone:
        return None
    return emit_cat(program, node, [emit_slice(program, node, *part) for part in parts])


def _cat(program: fx.GraphModule, node: fx.Node, notes: Notes) -> bool:
    if not is_cat(node) or not all(isinstance(part, fx.Node) and channels(part) for part in node.args[0]):
        return False
    parts: list[fx.Node] = []
    for part in node.args[0]:
        inner_parts_alone = is_cat(part) and only_user(part) is node
        if is_cat(part) and not inner_parts_alone:
            notes.leave(part, "a concat inside another, with more readers")
        parts += part.args[0] if inner_parts_alone else [part]
    runs: list[tuple[fx.Node, int, int]] = []
    for part in parts:
        x, start, stop = slice_of(part) or (part, 0, channels(part))
        if runs and runs[-1][0] is x and runs[-1][2] == start:
            runs[-1] = (x, runs[-1][1], stop)
        else:
            runs.append((x, start, stop))
    if len(runs) == len(node.args[0]) > 1:
        return False
    if len(runs) == len(parts):
        joined = emit_cat(program, node, parts)
    else:
        joined = emit_cat(program, node, [_piece(program, node, run, parts) for run in runs])
    replace(program, node, joined)
    return True


def _piece(program: fx.GraphModule, node: fx.Node, run: tuple[fx.Node, int, int], parts: list[fx.Node]) -> fx.Node:
    """The part that is ``run`` already, else a new slice."""
    for part in parts:
        if slice_of(part) == run:
            return part
    return emit_slice(program, node, *run)
