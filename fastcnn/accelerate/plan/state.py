# SPDX-License-Identifier: Apache-2.0
"""What the lowerings of a plan's nodes share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, fx

from ..program import aten, is_op, tensor_of
from .builder import Builder, StepNote, View
from .words import NONE

if TYPE_CHECKING:
    from .formulas import Formula

PICTURE_CHANNELS = 4  # up to as many, the first convolution reads an input as it lies


def channel_range(node: fx.Node, shapes: dict[fx.Node, tuple[int, ...]]) -> tuple[int, int]:
    """The channels of its operand that a slice takes."""
    start = node.args[2] or 0
    start += shapes[node.args[0]][0] if start < 0 else 0
    return start, start + shapes[node][0]


class Lowering:
    """The state of one lowering: where the result of every node is."""

    def __init__(self, program: fx.GraphModule, shapes: dict[fx.Node, tuple[int, ...]], builder: Builder,
                 bf16: bool = False) -> None:  # fmt: skip
        self.program = program
        self.bf16 = bf16  # products take operands rounded to bfloat16
        self.shapes = shapes  # of one image
        self.builder = builder
        self.views: dict[fx.Node, View] = {}
        self.waiting: dict[fx.Node, Formula] = {}  # what one node alone reads, and may take into its own step
        self.places: dict[fx.Node, View] = {}  # slices of concatenations that nodes are to write into
        self.sums: dict[fx.Node, int | None] = {}  # the values that hold the sums of maps over their pixels
        self.flattened: dict[fx.Node, tuple[int, ...]] = {}  # the map's shape behind a flattened one

    def view(self, node: fx.Node | None) -> View | None:
        if node in self.waiting:
            self.waiting.pop(node).emit(self, node)
        return None if node is None else self.views[node]

    def number(self, node: fx.Node | None) -> int:
        return self.builder.number(self.view(node))

    def result(self, node: fx.Node) -> View:
        """Where ``node`` writes its map."""
        shape = self.shapes[node]
        channels, height, width = (*shape, 1, 1)[:3]
        if node not in self.views:
            self.views[node] = self.places.get(node) or self.builder.map(channels, height, width)
        return self.views[node]

    def pieces(self, node: fx.Node) -> list[tuple[int, int, View]]:
        """The ranges of channels that the steps of ``node`` write, and where: all in one place, as a rule.

        Where ``concats`` has placed a slice of it, it is written slice by slice; ranges that lie side by side are one.
        """
        if not any(user in self.places and is_op(user, aten.slice.Tensor) for user in node.users):
            return [(0, self.shapes[node][0], self.result(node))]
        slices = sorted((channel_range(user, self.shapes), user) for user in node.users)
        others = sum(end - start for (start, end), user in slices if user not in self.places)
        rest = self.builder.map(others, *self.shapes[node][1:]) if others else None
        found: list[tuple[int, int, View]] = []
        used = 0
        for (start, end), user in slices:
            if user in self.places:
                view = self.places[user]
            else:
                view = rest.slice(used, used + end - start)
                used += end - start
            self.views[user] = view
            if found and found[-1][1] == start and found[-1][2].reaches(view):
                start, _, before = found.pop()
                view = before.slice(0, end - start)
            found.append((start, end, view))
        return found

    def tensor(self, node: fx.Node | None) -> Tensor | None:
        return tensor_of(self.program, node)

    def vector(self, tensor: Tensor | None, groups: int = 1) -> int:
        return NONE if tensor is None else self.builder.blob.vector(tensor, groups)

    def add(self, node: fx.Node, step: object, macs: int = 0, reads: tuple[View | None, ...] = (), weights: int = 0,
            name: str = "") -> None:  # fmt: skip
        views = {each for each in (*reads, self.views.get(node)) if each is not None}
        floats = weights + sum(each.C * each.H * each.W for each in views)
        layer = node.meta.get("layer", "") or node.name
        self.builder.add(step, StepNote(name or type(step).__name__.lower(), layer, macs, 4 * floats, 4 * weights))
