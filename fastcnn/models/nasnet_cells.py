# SPDX-License-Identifier: Apache-2.0
"""The cell that a genotype describes, as in NASNet (arXiv:1707.07012) and what followed it.

A cell reads the outputs of the two cells before it. Every reader of a cell's output, and every convolution inside,
begins with a ReLU: so a cell's output is activated once, where it is made, and so is each state inside.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.models.nasnet_ops import POOLS, SEPARABLE, Names, Pool, norm, put
from fastcnn.nn import fused_bn_act, fused_conv_bn_act
from fastcnn.ops import activation


class Genotype(NamedTuple):
    """Steps: two operands each, an operation and the state it reads (0: prev, 1: x, 2: the first step's); the output."""

    steps: tuple[tuple[tuple[str, int], tuple[str, int]], ...]
    output: tuple[int, ...]


class Style(NamedTuple):
    """What the packages do differently: keys, padding at stride 2, the divisor of its means, operations."""

    names: Names
    same: bool = True
    divisor: int | None = None
    convolutions: dict[str, Callable[..., nn.Module]] = SEPARABLE


class Cell(nn.Module):
    """A genotype: its two inputs brought to ``channels``, its steps, and the output states side by side, activated.

    Args:
        prev_channels: None in the first cell of a net, whose ``prev`` is ``x``: as it is where only convolutions read it.
        stride: of the operations that read an input.
        halve: whether ``prev`` is twice as large as ``x``.
    """

    def __init__(
        self, genotype: Genotype, style: Style, x_channels: int, prev_channels: int | None, channels: int, stride: int,
        halve: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.names, self.genotype, self.halve, names = style.names, genotype, halve, style.names
        reads = [read for step in genotype.steps for read in step]
        # What is read before its ReLU, and after; a state that nothing reads before is made with it.
        self.raw = {source for op, source in reads if op in (*POOLS, "none")}
        self.activated = {source for op, source in reads if op not in (*POOLS, "none")} | {*genotype.output}
        if prev_channels is None and 0 in self.raw:
            prev_channels = x_channels
        if prev_channels and not halve:
            put(self, f"{names.prev}.conv", nn.Conv2d(prev_channels, channels, 1, bias=False))
            put(self, f"{names.prev}.bn", norm(channels))
        put(self, f"{names.x}.conv", nn.Conv2d(x_channels, channels, 1, bias=False))
        put(self, f"{names.x}.bn", norm(channels))
        if halve:
            for path, width in zip(names.halves, (channels // 2, channels - channels // 2), strict=False):
                put(self, path, nn.Conv2d(prev_channels, width, 1, 2, bias=False))
            put(self, names.halves[2], norm(channels))
        for i, (op, source) in enumerate(reads):
            key, pace = names.operand.format(i // 2, ("left", "right")[i % 2]), stride if source < 2 else 1
            if op in POOLS:
                put(self, key, Pool(op, pace, style.same, style.divisor))
            elif op != "none":
                width = channels if source or prev_channels else x_channels
                put(self, key, style.convolutions[op](width, channels, pace, style.same, names))

    def forward(self, x: Tensor, prev: Tensor | None) -> Tensor:
        raw: list[Tensor] = []
        active: list[Tensor | None] = []

        def keep(state: Tensor) -> None:
            both = len(raw) in self.raw and len(raw) in self.activated
            active.append(activation(state, "relu") if both else state)
            raw.append(state)

        def kind() -> str:
            return "identity" if len(raw) in self.raw else "relu"

        def read(operand: nn.Module | None, source: int) -> Tensor:
            return raw[source] if operand is None else operand(raw[source])

        prev = x if prev is None else prev
        if self.halve:
            keep(self._halved(prev, kind()))
        else:
            keep(self._joined("prev", prev, kind()) if self.names.prev in self._modules else prev)
        keep(self._joined("x", x, kind()))
        for i, ((_, a), (_, b)) in enumerate(self.genotype.steps):
            left, right = (self._modules.get(self.names.operand.format(i, side)) for side in ("left", "right"))
            if left is not None and not isinstance(left, Pool):
                other = read(right, b) if right is None or isinstance(right, Pool) else right(active[b])
                keep(left(active[a], other, kind()))
            elif right is not None and not isinstance(right, Pool):
                keep(right(active[b], read(left, a), kind()))
            else:
                state = read(left, a) + read(right, b)
                keep(state if kind() == "identity" else activation(state, "relu"))
        return torch.cat([active[i] for i in self.genotype.output], 1)

    def _joined(self, which: str, x: Tensor, kind: str) -> Tensor:
        block = self._modules[getattr(self.names, which)]
        return fused_conv_bn_act(block.conv, block.bn, x, kind)

    def _halved(self, x: Tensor, kind: str) -> Tensor:
        """The even pixels and the odd ones, each by a 1x1 of stride 2 to half of the channels."""
        even, odd, bn = (self.get_submodule(path) for path in self.names.halves)
        shifted = F.pad(x, (-1, 1, -1, 1))
        halves = fused_conv_bn_act(even, None, x), fused_conv_bn_act(odd, None, shifted)
        return fused_bn_act(bn, torch.cat(halves, 1), kind)
