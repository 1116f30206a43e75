# SPDX-License-Identifier: Apache-2.0
"""Which 1x1 and depthwise convolutions of a segment become one step, and with it the maps between them disappear."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import fx

from ..program import CONV, DEPTHWISE, POINTWISE, Conv, arguments, is_op, only_user
from .lower_convs import padding_of
from .supports import Shapes

KERNELS = (3, 5, 7)
LEAST_BYTES = 2 << 20
LEAST_ROWS = 28


class Block(NamedTuple):
    """A depthwise convolution with the 1x1 convolutions in front of it and behind it, one of them at least."""

    expand: fx.Node | None
    depthwise: fx.Node
    project: fx.Node | None

    @property
    def last(self) -> fx.Node:
        return self.project or self.depthwise


def blocks(nodes: list[fx.Node], program: fx.GraphModule, shapes: Shapes) -> dict[fx.Node, Block]:
    """For every node of a fused step that step; of two that want one 1x1 convolution, the first has it."""
    inside = set(nodes)
    found: dict[fx.Node, Block] = {}
    for node in nodes:
        if not is_op(node, DEPTHWISE) or not _window(program, node, shapes):
            continue
        expand, project = arguments(node)["x"], only_user(node)
        before = (
            expand in inside and expand not in found and only_user(expand) is node and _plain(program, expand, True)
        )
        behind = project in inside and _plain(program, project, False) and _source(project) is node
        block = chosen(shapes, expand if before else None, node, project if behind else None)
        if block is not None:
            found |= {each: block for each in block if each is not None}
    return found


def chosen(shapes: Shapes, expand: fx.Node | None, depthwise: fx.Node, project: fx.Node | None) -> Block | None:
    """The block of these parts, where one step for all beats a step for each.

    A step for each writes the expanded map and reads every row of it once per row of the window, and writes and reads the
    depthwise map; a fused step has both in the nearest cache, at the price of a copy where nothing is expanded. On 15 to
    150 GB/s of the caches behind that the difference pays from 2 MB on: 1.2 to 2 times as fast on maps of 112 and
    56 rows, 1.05 to 1.25 on 28. On lower maps the rows that two threads' windows share cost what it saves, and each thread
    reads all weights where separate steps give it a part of them: 0.8 to 1.05.
    """
    if expand is None and project is None:
        return None
    a = arguments(depthwise)
    again = a["weight"].meta["val"].shape[2] / a["stride"][0]
    read, written = _bytes(shapes[a["x"]]), _bytes(shapes[depthwise])
    spared = read * (again + 1 if expand else again - 1) + (2 * written if project else 0)
    pays = spared >= LEAST_BYTES and shapes[depthwise][1] >= LEAST_ROWS
    return Block(expand, depthwise, project) if pays else None


def _bytes(shape: tuple[int, ...]) -> int:
    return 4 * math.prod(shape)


def _window(program: fx.GraphModule, node: fx.Node, shapes: Shapes) -> bool:
    """Whether the kernel has this depthwise convolution."""
    a = arguments(node)
    kernel = tuple(a["weight"].meta["val"].shape[2:])
    left, _, top, _ = padding_of(a["padding"], shapes[a["x"]][1:], kernel, a["stride"], a["dilation"])
    square = kernel[0] == kernel[1] and a["stride"][0] == a["stride"][1] and tuple(a["dilation"]) == (1, 1)
    return square and kernel[0] in KERNELS and max(left, top, a["stride"][0]) <= kernel[0] - 1 and a["residual"] is None


def _source(node: fx.Node) -> fx.Node:
    return node.args[0]


def _plain(program: fx.GraphModule, node: fx.Node, first: bool) -> bool:
    """Whether ``node`` is a 1x1 convolution of nothing but its input, weight and bias, and as the last one a residual."""
    a = arguments(node)
    if is_op(node, CONV):
        conv = Conv.of(node)
        window = (*conv.weight.meta["val"].shape[2:], *conv.stride, *conv.padding, conv.groups)
        plain = window == (1, 1, 1, 1, 0, 0, 0, 0, 1)
    elif is_op(node, POINTWISE):
        plain = all(a[name] is None for name in ("gate", "scale", "shift")) and a["prologue"] == "identity"
    else:
        return False
    return plain and not (first and a["residual"] is not None)
