# SPDX-License-Identifier: Apache-2.0
"""Pre-activation ResNet in timm's layout, arXiv:1603.05027: no BN behind the stem, stride in the 3x3, a 1x1 head.

Keys: timm's. BiT (bit.py) is the same net of other layers.
"""

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from fastcnn.models.blocks import LoneConv2d, init_convolutions
from fastcnn.models.preact_resnet import REPEATS
from fastcnn.models.registry import register
from fastcnn.models.resnet import WIDTHS
from fastcnn.nn import GlobalAvgPool2d, fused_bn_act, fused_conv_bn_act


class BatchNormLayers:
    """What the net is made of, and how two layers in a row run."""

    @staticmethod
    def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
        return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)

    @staticmethod
    def norm(channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels)

    @staticmethod
    def stem_pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, 1)

    @staticmethod
    def norm_act(norm: nn.Module, x: Tensor) -> Tensor:
        return fused_bn_act(norm, x, "relu")

    @staticmethod
    def conv_norm_act(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
        return fused_conv_bn_act(conv, norm, x, "relu")

    @staticmethod
    def conv_add(conv: nn.Conv2d, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return fused_conv_bn_act(conv, None, x, residual=residual)


class Stem(nn.Module):
    """A 7x7 convolution and the max-pool."""

    def __init__(self, layers: type[BatchNormLayers], in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layers = layers
        self.conv = layers.conv(in_channels, out_channels, 7, 2)
        self.pool = layers.stem_pool()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.layers.conv_add(self.conv, x))


class Bottleneck(nn.Module):
    """Norm, ReLU and convolution: 1x1, 3x3, 1x1; the sum. A projection reads the first activation."""

    def __init__(self, layers: type[BatchNormLayers], in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.layers, inner = layers, out_channels // 4
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.ModuleDict({"conv": layers.conv(in_channels, out_channels, 1, stride)})
        self.norm1 = layers.norm(in_channels)
        self.conv1 = layers.conv(in_channels, inner, 1)
        self.norm2 = layers.norm(inner)
        self.conv2 = layers.conv(inner, inner, 3, stride)
        self.norm3 = layers.norm(inner)
        self.conv3 = layers.conv(inner, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        run = self.layers
        y = run.norm_act(self.norm1, x)
        shortcut = x if self.downsample is None else run.conv_add(self.downsample["conv"], y)
        y = run.conv_norm_act(self.conv1, self.norm2, y)
        y = run.conv_norm_act(self.conv2, self.norm3, y)
        return run.conv_add(self.conv3, y, shortcut)


class ResNetV2(nn.Module):
    """ResNet's table from 50 ``layers`` on, ``width`` times as wide."""

    made_of = BatchNormLayers

    def __init__(
        self, layers: int = 50, width: int = 1, num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if layers < 50:
            raise ValueError(f"ResNetV2: layers must be one of {[n for n in REPEATS if n >= 50]}, got {layers}")
        channels, stages = WIDTHS[0] * width, []
        self.stem = Stem(self.made_of, in_chans, channels)
        for inner, repeats in zip(WIDTHS, REPEATS[layers], strict=True):
            blocks = []
            for i in range(repeats):
                blocks.append(Bottleneck(self.made_of, channels, 4 * inner * width, 2 if stages and i == 0 else 1))
                channels = 4 * inner * width
            stages.append(nn.Sequential(OrderedDict(blocks=nn.Sequential(*blocks))))
        self.stages = nn.Sequential(*stages)
        self.norm = self.made_of.norm(channels)
        fc = LoneConv2d(channels, num_classes, 1)
        head = OrderedDict(pool=GlobalAvgPool2d(), drop=nn.Dropout(dropout), fc=fc, flatten=nn.Flatten())
        self.head = nn.Sequential(head)
        init_convolutions(self)
        nn.init.normal_(fc.weight, 0.0, 0.01)
        nn.init.zeros_(fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.made_of.norm_act(self.norm, self.stages(self.stem(x))))


@register("preact_resnet50_timm", "resnetv2_50")
def preact_resnet50_timm(**kwargs: Any) -> ResNetV2:
    """Pre-activation ResNet-50 as timm has it."""
    return ResNetV2(50, **kwargs)


@register("preact_resnet101_timm", "resnetv2_101")
def preact_resnet101_timm(**kwargs: Any) -> ResNetV2:
    """Pre-activation ResNet-101 as timm has it."""
    return ResNetV2(101, **kwargs)
