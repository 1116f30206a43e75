# SPDX-License-Identifier: Apache-2.0
"""GoogLeNet, arXiv:1409.4842, for 32x32 images: batch norm, two 3x3 for each 5x5, one convolution as the stem.

Keys: those of the widespread CIFAR nets (pre_layers, a3 to b5, linear).
"""

from typing import Any

import torch
from torch import Tensor, nn

from fastcnn.models.blocks import ConvBNChain, init_weights, pool_flatten
from fastcnn.models.googlenet import ROWS, Row
from fastcnn.models.registry import register
from fastcnn.nn import fused_conv_bn_act


def _convs(in_channels: int, *steps: tuple[int, int]) -> ConvBNChain:
    """``steps``: channels and kernel of each; the convolutions have a bias in spite of their batch norm."""
    chain = []
    for channels, kernel in steps:
        chain.append((nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2), "relu"))
        in_channels = channels
    return ConvBNChain(chain)


class Inception(nn.Module):
    """Figure 2 (b), with two 3x3 in place of the 5x5."""

    def __init__(self, in_channels: int, row: Row) -> None:
        super().__init__()
        self.b1 = _convs(in_channels, (row.c1, 1))
        self.b2 = _convs(in_channels, (row.r3, 1), (row.c3, 3))
        self.b3 = _convs(in_channels, (row.r5, 1), (row.c5, 3), (row.c5, 3))
        self.b4 = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(in_channels, row.cp, 1), nn.BatchNorm2d(row.cp))

    def forward(self, x: Tensor) -> Tensor:
        pool, conv, bn = self.b4
        return torch.cat([self.b1(x), self.b2(x), self.b3(x), fused_conv_bn_act(conv, bn, pool(x), "relu")], dim=1)


class GoogLeNetCifar(nn.Module):
    """The nine modules of table 1 at 32x32, 16x16 and 8x8."""

    def __init__(self, num_classes: int = 10, in_chans: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        channels = 192
        self.pre_layers = _convs(in_chans, (channels, 3))
        for name, row in ROWS.items():
            self.add_module(name[::-1], Inception(channels, row))
            channels = row.c1 + row.c3 + row.c5 + row.cp
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre_layers(x)
        for name in ROWS:
            if name in ("4a", "5a"):
                x = self.maxpool(x)
            x = self._modules[name[::-1]](x)
        return self.linear(self.dropout(pool_flatten(x)))


@register("googlenet_cifar")
def googlenet_cifar(**kwargs: Any) -> GoogLeNetCifar:
    """GoogLeNet for CIFAR-10."""
    return GoogLeNetCifar(**kwargs)
