# SPDX-License-Identifier: Apache-2.0
"""DenseNet-BC, arXiv:1608.06993: each layer reads the maps of all layers before it. Keys: torchvision's."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.models.blocks import pool_flatten
from fastcnn.models.registry import register
from fastcnn.nn import BatchNormAct2d, MaxPool2d, fused_conv_bn_act

# Table 1: layers of the dense blocks.
D121 = 6, 12, 24, 16
D161 = 6, 12, 36, 24
D169 = 6, 12, 32, 32
D201 = 6, 12, 48, 32
D264 = 6, 12, 64, 48


class DenseLayer(nn.Module):
    """BN-ReLU-1x1, BN-ReLU-3x3 (section 3, DenseNet-B); returns the ``growth`` new maps alone."""

    def __init__(self, in_channels: int, growth: int, bottleneck: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = BatchNormAct2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, bottleneck * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(bottleneck * growth)
        self.conv2 = nn.Conv2d(bottleneck * growth, growth, 3, padding=1, bias=False)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        y = fused_conv_bn_act(self.conv1, self.norm2, self.norm1(x), "relu")
        y = fused_conv_bn_act(self.conv2, None, y)
        return F.dropout(y, self.dropout, self.training and self.dropout > 0)


class DenseBlock(nn.Sequential):
    """``layers`` dense layers; their maps stand behind those of the input."""

    def __init__(self, layers: int, in_channels: int, growth: int, bottleneck: int, dropout: float) -> None:
        super().__init__()
        for i in range(layers):
            self.add_module(f"denselayer{i + 1}", DenseLayer(in_channels + i * growth, growth, bottleneck, dropout))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = torch.cat([x, layer(x)], 1)
        return x


class Transition(nn.Module):
    """BN-ReLU-1x1 to fewer channels, then a 2x2 mean."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = BatchNormAct2d(in_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.pool = nn.AvgPool2d(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(fused_conv_bn_act(self.conv, None, self.norm(x)))


class Features(nn.Sequential):
    """The first convolution with its BN and ReLU as one op, then module by module."""

    def forward(self, x: Tensor) -> Tensor:
        conv, norm, *others = self
        x = fused_conv_bn_act(conv, norm, x, "relu")
        for module in others:
            x = module(x)
        return x


class DenseNet(nn.Module):
    """Table 1.

    Args:
        growth_rate: k, the maps that a layer adds.
        block_config: layers of each dense block.
        num_init_features: channels of the first convolution, 2k in the paper.
        bn_size: channels of a layer's 1x1 convolution, in multiples of k.
        compression: theta, the share of its channels that a transition keeps.
        dropout: of the maps that a layer adds.
    """

    def __init__(
        self,
        growth_rate: int = 32,
        block_config: Sequence[int] = D121,
        num_init_features: int = 64,
        bn_size: int = 4,
        compression: float = 0.5,
        num_classes: int = 1000,
        in_chans: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels = num_init_features
        self.features = Features()
        self.features.add_module("conv0", nn.Conv2d(in_chans, channels, 7, 2, 3, bias=False))
        self.features.add_module("norm0", nn.BatchNorm2d(channels))
        self.features.add_module("pool0", MaxPool2d(3, 2, 1))
        for i, layers in enumerate(block_config, start=1):
            if i > 1:
                self.features.add_module(f"transition{i - 1}", Transition(channels, int(channels * compression)))
                channels = int(channels * compression)
            self.features.add_module(f"denseblock{i}", DenseBlock(layers, channels, growth_rate, bn_size, dropout))
            channels += layers * growth_rate
        self.features.add_module("norm5", BatchNormAct2d(channels))
        self.classifier = nn.Linear(channels, num_classes)
        for module in (module for module in self.modules() if isinstance(module, nn.Conv2d)):
            nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(pool_flatten(self.features(x)))


@register("densenet121")
def densenet121(**kwargs: Any) -> DenseNet:
    """DenseNet-121, k = 32."""
    return DenseNet(32, D121, 64, **kwargs)


@register("densenet161")
def densenet161(**kwargs: Any) -> DenseNet:
    """DenseNet-161, k = 48."""
    return DenseNet(48, D161, 96, **kwargs)


@register("densenet169")
def densenet169(**kwargs: Any) -> DenseNet:
    """DenseNet-169, k = 32."""
    return DenseNet(32, D169, 64, **kwargs)


@register("densenet201")
def densenet201(**kwargs: Any) -> DenseNet:
    """DenseNet-201, k = 32."""
    return DenseNet(32, D201, 64, **kwargs)


@register("densenet264")
def densenet264(**kwargs: Any) -> DenseNet:
    """DenseNet-264, k = 32."""
    return DenseNet(32, D264, 64, **kwargs)
