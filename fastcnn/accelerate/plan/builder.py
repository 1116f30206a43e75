# SPDX-License-Identifier: Apache-2.0
"""A plan under construction: buffers, the views of them that steps name, the steps, the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from .arena import Lifetime, place
from .weights import Blob
from .words import MAGIC, NONE, READS, VERSION, WRITES, Binary, Elementwise, Header, Place, Value, encode, values_of

CACHE = 1 << 20  # bytes of L2 that maps may take
MOST_IMAGES = 8


@dataclass
class Buffer:
    """Memory of one map: a range of the arena, an input or an output."""

    place: Place
    index: int
    size: int


@dataclass(frozen=True)
class View:
    """Channels ``[channel, channel + C)`` of a buffer whose pixels hold ``pixel``; a vector is a map of one pixel."""

    buffer: int
    channel: int
    C: int
    H: int
    W: int
    pixel: int

    @property
    def whole(self) -> bool:
        return self.channel == 0 and self.C == self.pixel

    def reaches(self, other: View) -> bool:
        """Whether ``other`` begins where this ends, in the same pixels."""
        return other.buffer == self.buffer and other.pixel == self.pixel and other.channel == self.channel + self.C

    def slice(self, start: int, end: int) -> View:
        return replace(self, channel=self.channel + start, C=end - start)


class StepNote(NamedTuple):
    """What the profile says about a step: multiply-adds and bytes of maps of one image, and bytes of weights."""

    name: str
    layer: str
    macs: int
    bytes: int  # of maps and weights
    weights: int  # bytes


class Plan(NamedTuple):
    """What ``run_plan`` takes, and a note for each step."""

    program: Tensor
    weights: Tensor
    output_shapes: list[int]
    notes: list[StepNote]
    arena: int


class Builder:
    def __init__(self, blob: Blob) -> None:
        self.blob = blob
        self.buffers: list[Buffer] = []
        self.values: list[View] = []
        self.steps: list = []
        self.notes: list[StepNote] = []
        self.inputs = 0
        self.output_shapes: list[list[int]] = []
        self._numbers: dict[View, int] = {}

    def map(self, C: int, H: int = 1, W: int = 1) -> View:
        """A new buffer in the arena."""
        self.buffers.append(Buffer(Place.ARENA, 0, C * H * W))
        return View(len(self.buffers) - 1, 0, C, H, W, C)

    def input(self, shape: Sequence[int], picture: bool) -> View:
        """The next input, of this shape without the batch."""
        channels, height, width = (*shape, 1, 1)[:3]
        self.buffers.append(Buffer(Place.PICTURE if picture else Place.INPUT, self.inputs, math.prod(shape)))
        self.inputs += 1
        return View(len(self.buffers) - 1, 0, channels, height, width, channels)

    def make_output(self, view: View, shape: Sequence[int]) -> None:
        """The next output is ``view``: its buffer becomes the output where it is all of one, else it is copied."""
        buffer = self.buffers[view.buffer]
        if buffer.place is Place.ARENA and view.whole and buffer.size == view.C * view.H * view.W:
            buffer.place, buffer.index = Place.OUTPUT, len(self.output_shapes)
        else:
            self.buffers.append(Buffer(Place.OUTPUT, len(self.output_shapes), view.C * view.H * view.W))
            copied = View(len(self.buffers) - 1, 0, view.C, view.H, view.W, view.C)
            self.copy(view, copied, "output")
        self.output_shapes.append([len(shape), *shape])

    def copy(self, source: View, to: View, layer: str) -> None:
        step = Elementwise(self.number(source), NONE, self.number(to), Binary.NONE, NONE, NONE, 0)
        self.add(step, StepNote("copy", layer, 0, 8 * to.C * to.H * to.W, 0))

    def number(self, view: View | None) -> int:
        """The value of the program that stands for ``view``."""
        if view is None:
            return NONE
        if view not in self._numbers:
            self._numbers[view] = len(self.values)
            self.values.append(view)
        return self._numbers[view]

    def add(self, step: object, note: StepNote) -> None:
        self.steps.append(step)
        self.notes.append(note)

    def finish(self) -> Plan:
        """To be called when all plans on this blob have all their steps."""
        lives: dict[int, list[int]] = {}
        for i, step in enumerate(self.steps):
            for value in values_of(step, READS) + values_of(step, WRITES):
                lives.setdefault(self.values[value].buffer, []).append(i)
        early, group = split(self.notes)
        shared = self._written_over(lives, early)
        for b, steps in lives.items():
            if self.buffers[b].place is Place.ARENA and max(steps) >= early:
                self.buffers[b].place = Place.KEPT
        offset_of: dict[int, int] = {}
        sizes = {}
        for memory in (Place.ARENA, Place.KEPT):
            inside = [b for b in lives if self.buffers[b].place is memory]
            offsets, sizes[memory] = place(
                [Lifetime(self.buffers[b].size, min(lives[b]), max(lives[b])) for b in inside]
            )
            offset_of |= zip(inside, offsets, strict=True)
        values = []
        for view in self.values:
            memory = shared.get(view.buffer, view.buffer)
            buffer = self.buffers[memory]
            values.append(Value(buffer.place, buffer.index, offset_of.get(memory, 0), view.channel, view.C, view.H,
                                view.W, view.pixel))  # fmt: skip
        header = Header(MAGIC, VERSION, self.blob.lanes, self.inputs, len(self.output_shapes), len(values),
                        len(self.steps), sizes[Place.ARENA], sizes[Place.KEPT], self.blob.size, early, group)  # fmt: skip
        shapes = [extent for shape in self.output_shapes for extent in shape]
        arena = sizes[Place.ARENA] + sizes[Place.KEPT]
        return Plan(encode(header, values, self.steps), self.blob.tensor(), shapes, self.notes, arena)

    def _written_over(self, lives: dict[int, list[int]], early: int) -> dict[int, int]:
        """Results of elementwise steps that take the place of an operand which nothing reads afterwards: the buffer of each.

        Not a result of late steps that of early ones, which would then take memory for several images.
        ``lives``: the steps that use each buffer, in order; those of a result go over to the operand.
        """
        shared: dict[int, int] = {}
        for i, step in enumerate(self.steps):
            if not isinstance(step, Elementwise):
                continue
            y = self.values[step.y]
            for value in values_of(step, READS):
                x = self.values[value]
                memory = shared.get(x.buffer, x.buffer)
                fits = x.whole and y.whole and (x.C, x.H, x.W) == (y.C, y.H, y.W)
                free = all(self.buffers[b].place is Place.ARENA for b in (memory, y.buffer))
                late = lives.get(y.buffer, [0])[-1] >= early > lives[memory][-1]
                if fits and free and not late and y.buffer in lives and lives[memory][-1] == lives[y.buffer][0] == i:
                    lives[memory] += lives.pop(y.buffer)
                    shared[y.buffer] = memory
                    break
        return shared


def split(notes: list[StepNote]) -> tuple[int, int]:
    """How many steps a thread takes image by image, and how many images it takes through the others at once.

    The weights of a late layer come from far for every image, so several images share them, as long as their maps stay
    in the L2 cache. Of all places to begin with that, the one that saves most weights.
    """
    best, most, largest, later = (len(notes), 1), 0.0, 1, 0
    for i in reversed(range(len(notes))):
        largest = max(largest, notes[i].bytes - notes[i].weights)
        later += notes[i].weights
        group = min(MOST_IMAGES, CACHE // largest)
        saved = later * (1 - 1 / group) if group > 1 else 0.0
        if saved > most:
            best, most = (i, group), saved
    return best
