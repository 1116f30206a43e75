# SPDX-License-Identifier: Apache-2.0
"""Growing concatenations (DenseNet) share one buffer: each map is copied once, and a shorter list is a slice of it.

``cat(a, b)``, ``cat(a, b, c)``, ``cat(a, b, c, d)`` copy ``a`` three times, 58 layers of a DenseNet-121 84 MB an image in
half precision. Here the longest list is a buffer that its operands are copied into as they come; the others are ranges of
its channels, which the 1x1 convolutions behind them read where they lie. Part of how a program runs, not of the program:
the result has operators that write, in an order that must stay.
"""

from __future__ import annotations

import itertools

from torch import fx

from .program import aten, calls, is_map, shape


def grow(program: fx.GraphModule) -> int:
    """Returns: the number of concatenations that are slices now."""
    operands = {
        node: _operands(node) for node in calls(program, aten.cat.default) if is_map(node) and node.args[1] == 1
    }
    count = 0
    for longest in sorted(operands, key=lambda node: -len(operands[node])):
        if longest._erased:
            continue
        parts = operands[longest]
        prefixes = [
            n for n in operands if n is not longest and not n._erased and operands[n] == parts[: len(operands[n])]
        ]
        if prefixes and all(isinstance(extent, int) for part in parts for extent in shape(part)[1:]):
            count += _share(program, longest, parts, [*prefixes, longest], operands)
    return count


def _operands(cat: fx.Node) -> list[fx.Node]:
    """Those of a concatenation, with those of an operand that is one itself."""
    found = []
    for part in cat.args[0]:
        nested = part.target is aten.cat.default and part.args[1] == 1 and is_map(part)
        found += _operands(part) if nested else [part]
    return found


def _share(program: fx.GraphModule, longest: fx.Node, parts: list[fx.Node], cats: list[fx.Node], operands: dict) -> int:
    graph = program.graph
    place = {node: i for i, node in enumerate(graph.nodes)}
    first = max(parts[: min(len(operands[cat]) for cat in cats)], key=place.__getitem__)
    _, _, height, width = shape(parts[0])
    ends = list(itertools.accumulate(shape(part)[1] for part in parts))
    total = ends[-1]
    with graph.inserting_after(first):
        batch = graph.call_function(aten.sym_size.int, (parts[0], 0))
    with graph.inserting_after(batch):
        strides = [height * width * total, 1, width * total, total]
        buffer = last = graph.call_function(
            aten.new_empty_strided.default, (parts[0], [batch, total, height, width], strides)
        )
    batch.meta = {"val": shape(parts[0])[0]}
    buffer.meta = {"val": longest.meta["val"], "layer": longest.meta.get("layer", "")}
    for i, part in enumerate(parts):
        anchor = last if place.get(part, 0) <= place[first] else part
        with graph.inserting_after(anchor):
            into = graph.call_function(aten.slice.Tensor, (buffer, 1, ends[i] - shape(part)[1], ends[i]))
        with graph.inserting_after(into):
            copied = graph.call_function(aten.copy_.default, (into, part))
        into.meta = copied.meta = dict(part.meta)
        last = copied if anchor is last else last
    for cat in cats:
        with graph.inserting_before(cat):
            view = graph.call_function(aten.slice.Tensor, (buffer, 1, 0, ends[len(operands[cat]) - 1]))
        view.meta = dict(cat.meta)
        cat.replace_all_uses_with(view)
        for other, parts_of in operands.items():
            operands[other] = [view if each is cat else each for each in parts_of]
    for cat in sorted(cats, key=place.__getitem__, reverse=True):
        graph.erase_node(cat)
    return len(cats)
