# SPDX-License-Identifier: Apache-2.0
"""AmoebaNet-A, arXiv:1802.01548 figure 5, in NASNet's frame (arXiv:1707.07012 figure 2), equation by equation."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def bn(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def relu_conv_bn(in_channels: int, channels: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, 1, bias=False)
    return nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=conv, bn=bn(channels)))


def separable(channels: int, kernel: int, stride: int) -> nn.Sequential:
    """ReLU, depthwise, 1x1, BN; all of it twice, the stride in the first."""

    def depthwise_pointwise(stride: int) -> nn.Sequential:
        depthwise = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)
        pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        return nn.Sequential(OrderedDict(depthwise_conv2d=depthwise, pointwise_conv2d=pointwise))

    first = OrderedDict(relu_1=nn.ReLU(), separable_1=depthwise_pointwise(stride), bn_sep_1=bn(channels))
    second = OrderedDict(relu_2=nn.ReLU(), separable_2=depthwise_pointwise(1), bn_sep_2=bn(channels))
    return nn.Sequential(OrderedDict(**first, **second))


def conv_1x7_7x1(channels: int) -> nn.Sequential:
    wide = nn.Conv2d(channels, channels, (1, 7), (1, 2), (0, 3), bias=False)
    tall = nn.Conv2d(channels, channels, (7, 1), (2, 1), (3, 0), bias=False)
    return nn.Sequential(OrderedDict(relu=nn.ReLU(), conv_1x7=wide, conv_7x1=tall, bn=bn(channels)))


def avg(x: Tensor, stride: int = 1) -> Tensor:
    return F.avg_pool2d(x, 3, stride, 1, count_include_pad=False)


def largest(x: Tensor, stride: int = 1) -> Tensor:
    return F.max_pool2d(x, 3, stride, 1)


class Cell(nn.Module):
    """Both inputs brought to ``channels`` maps of the size of ``x``."""

    def __init__(self, x_channels: int, prev_channels: int, channels: int, halve: bool) -> None:
        super().__init__()
        self.halve = halve
        if not halve:
            self.conv_prev_1x1 = relu_conv_bn(prev_channels, channels)
        self.conv_1x1 = relu_conv_bn(x_channels, channels)
        if halve:
            one, other = channels // 2, channels - channels // 2
            self.path_1 = nn.Sequential(OrderedDict(conv=nn.Conv2d(prev_channels, one, 1, 2, bias=False)))
            self.path_2 = nn.Sequential(OrderedDict(conv=nn.Conv2d(prev_channels, other, 1, 2, bias=False)))
            self.final_path_bn = bn(channels)

    def inputs(self, x: Tensor, prev: Tensor) -> tuple[Tensor, Tensor]:
        if not self.halve:
            return self.conv_prev_1x1(prev), self.conv_1x1(x)
        prev = torch.relu(prev)
        shifted = F.pad(prev[:, :, 1:, 1:], (0, 1, 0, 1))
        return self.final_path_bn(torch.cat([self.path_1(prev), self.path_2(shifted)], 1)), self.conv_1x1(x)


class Normal(Cell):
    def __init__(self, x_channels: int, prev_channels: int, channels: int, halve: bool) -> None:
        super().__init__(x_channels, prev_channels, channels, halve)
        self.comb_iter_1_left = separable(channels, 3, 1)
        self.comb_iter_1_right = separable(channels, 5, 1)
        self.comb_iter_2_left = separable(channels, 3, 1)
        self.comb_iter_3_left = separable(channels, 3, 1)

    def forward(self, x: Tensor, prev: Tensor) -> Tensor:
        h0, h1 = self.inputs(x, prev)
        h2 = avg(h0) + largest(h1)
        h3 = self.comb_iter_1_left(h0) + self.comb_iter_1_right(h2)
        h4 = self.comb_iter_2_left(h0) + avg(h3)
        h5 = self.comb_iter_3_left(h1) + h1
        h6 = h0 + avg(h1)
        return torch.cat([h4, h5, h6], 1)


class Reduction(Cell):
    def __init__(self, x_channels: int, prev_channels: int, channels: int, halve: bool) -> None:
        super().__init__(x_channels, prev_channels, channels, halve)
        self.comb_iter_0_right = separable(channels, 3, 2)
        self.comb_iter_1_right = separable(channels, 7, 1)
        self.comb_iter_2_left = separable(channels, 7, 2)
        self.comb_iter_4_left = conv_1x7_7x1(channels)
        self.comb_iter_4_right = separable(channels, 3, 1)

    def forward(self, x: Tensor, prev: Tensor) -> Tensor:
        h0, h1 = self.inputs(x, prev)
        h2 = avg(h0, 2) + self.comb_iter_0_right(h1)
        h3 = largest(h0, 2) + self.comb_iter_1_right(h2)
        h4 = self.comb_iter_2_left(h0) + avg(h1, 2)
        h5 = largest(h0, 2) + largest(h1, 2)
        h6 = self.comb_iter_4_left(h0) + self.comb_iter_4_right(h5)
        return torch.cat([h3, h4, h6], 1)


class AmoebaNetA(nn.Module):
    """A stem, two reduction cells, then ``n`` normal cells three times with a reduction cell between."""

    def __init__(self, n: int = 4, f: int = 50, num_classes: int = 1000) -> None:
        super().__init__()
        stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self.conv0 = nn.Sequential(OrderedDict(conv=stem, bn=bn(32)))
        self.cell_stem_0 = Reduction(32, 32, f // 4, halve=False)
        self.cell_stem_1 = Reduction(3 * (f // 4), 32, f // 2, halve=True)
        x, prev = 3 * (f // 2), 3 * (f // 4)
        for i in range(3 * n):
            stage, place = divmod(i, n)
            channels = f * 2**stage
            if stage > 0 and place == 0:
                self.add_module(f"reduction_cell_{stage - 1}", Reduction(x, prev, channels, halve=False))
                x, prev = 3 * channels, x
            self.add_module(f"cell_{i}", Normal(x, prev, channels, halve=place == 0))
            x, prev = 3 * channels, x
        self.last_linear = nn.Linear(x, num_classes)

    def forward(self, pixels: Tensor) -> Tensor:
        prev = x = self.conv0(pixels)
        for cell in self.children():
            if isinstance(cell, Cell):
                x, prev = cell(x, prev), x
        return self.last_linear(torch.relu(x).mean((2, 3)))


NETS = {"amoebanet_a": AmoebaNetA}
