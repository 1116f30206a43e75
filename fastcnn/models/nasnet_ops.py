# SPDX-License-Identifier: Apache-2.0
"""The operations of searched cells (NASNet-A, arXiv:1707.07012; AmoebaNet-A), and the keys that packages give them."""

from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.nn import Conv2dSame, fused_conv_bn_act
from fastcnn.ops import max_pool2d


class Names(NamedTuple):
    """The keys of a package; dots make levels."""

    stem: str
    order: Callable[[int], list[str]]  # all cells of a net with N normal cells a stage
    x: str
    prev: str
    halves: tuple[str, str, str]  # the two convolutions and the BN that halve the size of ``prev``
    operand: str  # of a step's number and side
    depthwise: str  # of 1 or 2, as the next two
    pointwise: str
    bn: str
    head: str


def put(module: nn.Module, path: str, child: nn.Module) -> None:
    """Register ``child`` under a dotted path."""
    *levels, name = path.split(".")
    for level in levels:
        if level not in module._modules:
            module.add_module(level, nn.Module())
        module = module._modules[level]
    module.add_module(name, child)


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Separable(nn.Module):
    """Depthwise, 1x1, BN, twice, with a ReLU between; the input is activated already."""

    def __init__(self, kernel: int, in_channels: int, channels: int, stride: int, same: bool, names: Names) -> None:
        super().__init__()
        paths = []
        for i in (1, 2):
            conv, padding = (Conv2dSame, "same") if stride > 1 and same else (nn.Conv2d, kernel // 2)
            depthwise = conv(in_channels, in_channels, kernel, stride, padding, groups=in_channels, bias=False)
            pointwise = nn.Conv2d(in_channels, channels, 1, bias=False)
            for path, child in zip(names[6:9], (depthwise, pointwise, norm(channels)), strict=True):
                put(self, path.format(i), child)
                paths.append(path.format(i))
            in_channels, stride = channels, 1
        self.parts = attrgetter(*paths)

    def forward(self, x: Tensor, residual: Tensor | None = None, kind: str = "identity") -> Tensor:
        depthwise, pointwise, bn, depthwise2, pointwise2, bn2 = self.parts(self)
        x = fused_conv_bn_act(pointwise, bn, fused_conv_bn_act(depthwise, None, x), "relu")
        return fused_conv_bn_act(pointwise2, bn2, fused_conv_bn_act(depthwise2, None, x), kind, residual)


class Pool(nn.Module):
    """3x3 mean or maximum. Stride 2 with ``same`` is TensorFlow's SAME; ``divisor`` 9 counts the padding as zeros."""

    def __init__(self, op: str, stride: int, same: bool, divisor: int | None) -> None:
        super().__init__()
        self.op, self.stride, self.same, self.divisor = op, stride, stride > 1 and same, stride > 1 and divisor or None

    def forward(self, x: Tensor) -> Tensor:
        padding = (x.shape[2] % 2, x.shape[3] % 2) if self.same else 1
        if self.op == "max":
            return max_pool2d(x, 3, self.stride, padding, ceil_mode=self.same)
        return F.avg_pool2d(x, 3, self.stride, padding, self.same, False, self.divisor)


POOLS = ("avg", "max")
SEPARABLE = {"sep3": partial(Separable, 3), "sep5": partial(Separable, 5), "sep7": partial(Separable, 7)}
