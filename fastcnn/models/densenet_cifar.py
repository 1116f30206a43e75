# SPDX-License-Identifier: Apache-2.0
"""DenseNet for CIFAR, arXiv:1608.06993 section 3: three dense blocks at 32, 16 and 8 pixels. Keys: pytorchcv's.

pytorchcv's plain nets halve the channels in the transitions and start with 2k of them, which the paper does in
DenseNet-BC only. ``densenet40_k12_paper_cifar10`` is the paper's: 16 channels to start with, and all of them kept.
"""

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.models.blocks import pool_flatten
from fastcnn.models.registry import register
from fastcnn.nn import BatchNormAct2d, fused_bn_act, fused_conv_bn_act


def _bn_conv(in_channels: int, out_channels: int, kernel: int) -> nn.ModuleDict:
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    return nn.ModuleDict({"bn": nn.BatchNorm2d(in_channels), "conv": conv})


class DenseUnit(nn.Module):
    """The input, and behind it ``growth`` maps of BN-ReLU-3x3; of BN-ReLU-1x1 to 4 times as many first in DenseNet-B."""

    def __init__(self, in_channels: int, growth: int, bottleneck: bool, dropout: float) -> None:
        super().__init__()
        if bottleneck:
            self.conv1 = _bn_conv(in_channels, 4 * growth, 1)
            self.conv2 = _bn_conv(4 * growth, growth, 3)
        else:
            self.conv = _bn_conv(in_channels, growth, 3)
        self.bottleneck, self.dropout = bottleneck, dropout

    def forward(self, x: Tensor) -> Tensor:
        first, last = (self.conv1, self.conv2) if self.bottleneck else (self.conv, self.conv)
        y = fused_bn_act(first["bn"], x, "relu")
        if self.bottleneck:
            y = fused_conv_bn_act(first["conv"], last["bn"], y, "relu")
        y = fused_conv_bn_act(last["conv"], None, y)
        return torch.cat([x, F.dropout(y, self.dropout, self.training and self.dropout > 0)], 1)


class Transition(nn.Module):
    """BN-ReLU-1x1, then a 2x2 mean."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = _bn_conv(in_channels, out_channels, 1)
        self.pool = nn.AvgPool2d(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(fused_conv_bn_act(self.conv["conv"], None, fused_bn_act(self.conv["bn"], x, "relu")))


class CIFARDenseNet(nn.Module):
    """A 3x3 convolution, three stages of units with transitions between them, BN, ReLU and the head.

    Args:
        depth: layers with weights; n units a stage are ``6n + 4`` with ``bottleneck``, else ``3n + 4``.
        growth_rate: k, the maps that a unit adds.
        bottleneck: DenseNet-B.
        compression: theta, the share of its channels that a transition keeps.
        stem: channels of the first convolution; None for 2k.
        dropout: of the maps that a unit adds.
    Raises: ValueError for a depth that gives no whole n.
    """

    def __init__(
        self,
        depth: int = 100,
        growth_rate: int = 12,
        bottleneck: bool = True,
        compression: float = 0.5,
        stem: int | None = None,
        num_classes: int = 10,
        in_chans: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        units, rest = divmod(depth - 4, 6 if bottleneck else 3)
        if units < 1 or rest:
            raise ValueError(f"CIFARDenseNet: depth must be {6 if bottleneck else 3}n + 4, got {depth}")
        channels = stem or 2 * growth_rate
        self.features = nn.Sequential()
        self.features.add_module("init_block", nn.Conv2d(in_chans, channels, 3, padding=1, bias=False))
        for i in (1, 2, 3):
            stage = nn.Sequential()
            if i > 1:
                stage.add_module(f"trans{i}", Transition(channels, int(channels * compression)))
                channels = int(channels * compression)
            for j in range(1, units + 1):
                stage.add_module(f"unit{j}", DenseUnit(channels, growth_rate, bottleneck, dropout))
                channels += growth_rate
            self.features.add_module(f"stage{i}", stage)
        self.features.add_module("post_activ", nn.Sequential(OrderedDict(bn=BatchNormAct2d(channels))))
        self.output = nn.Linear(channels, num_classes)
        for module in (module for module in self.modules() if isinstance(module, nn.Conv2d)):
            nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = fused_conv_bn_act(self.features[0], None, x)
        for module in self.features[1:]:
            x = module(x)
        return self.output(pool_flatten(x))


@register("densenet40_k12_cifar10")
def densenet40_k12_cifar10(**kwargs: Any) -> CIFARDenseNet:
    """DenseNet, 40 layers, k = 12."""
    return CIFARDenseNet(40, 12, bottleneck=False, **kwargs)


@register("densenet100_k12_cifar10")
def densenet100_k12_cifar10(**kwargs: Any) -> CIFARDenseNet:
    """DenseNet, 100 layers, k = 12."""
    return CIFARDenseNet(100, 12, bottleneck=False, **kwargs)


@register("densenet100_k24_cifar10")
def densenet100_k24_cifar10(**kwargs: Any) -> CIFARDenseNet:
    """DenseNet, 100 layers, k = 24."""
    return CIFARDenseNet(100, 24, bottleneck=False, **kwargs)


@register("densenet40_k12_paper_cifar10")
def densenet40_k12_paper_cifar10(**kwargs: Any) -> CIFARDenseNet:
    """DenseNet, 40 layers, k = 12, without compression: table 2's net of 1.0 M parameters."""
    return CIFARDenseNet(40, 12, bottleneck=False, compression=1.0, stem=16, **kwargs)


@register("densenet100_k12_bc_cifar10")
def densenet100_k12_bc_cifar10(**kwargs: Any) -> CIFARDenseNet:
    """DenseNet-BC, 100 layers, k = 12."""
    return CIFARDenseNet(100, 12, **kwargs)


@register("densenet250_k24_bc_cifar10")
def densenet250_k24_bc_cifar10(**kwargs: Any) -> CIFARDenseNet:
    """DenseNet-BC, 250 layers, k = 24."""
    return CIFARDenseNet(250, 24, **kwargs)


@register("densenet190_k40_bc_cifar10")
def densenet190_k40_bc_cifar10(**kwargs: Any) -> CIFARDenseNet:
    """DenseNet-BC, 190 layers, k = 40."""
    return CIFARDenseNet(190, 40, **kwargs)
