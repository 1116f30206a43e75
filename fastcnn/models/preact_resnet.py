# SPDX-License-Identifier: Apache-2.0
"""Pre-activation ResNet, arXiv:1603.05027: BN and ReLU before each convolution, nothing behind the sum.

Keys: pytorchcv's. A convolution runs with the next one's BN and ReLU, the last with the sum, each as one op.
"""

from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from fastcnn.models.blocks import ConvBN, init_convolutions, numbered, pool_flatten
from fastcnn.models.registry import register
from fastcnn.models.resnet import REPEATS as RESNET_REPEATS
from fastcnn.models.resnet import WIDTHS
from fastcnn.nn import fused_bn_act, fused_conv_bn_act

REPEATS = RESNET_REPEATS | {200: [3, 24, 36, 3]}


class Unit(nn.Module):
    """Figure 4 (e): ``body(x) + shortcut``; where the shape changes the shortcut projects the first activation.

    Args:
        bottleneck: 1x1, 3x3, 1x1 instead of two 3x3.
        stride_in_3x3: of a bottleneck; otherwise in its first 1x1.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, bottleneck: bool, stride_in_3x3: bool = True
    ) -> None:
        super().__init__()
        inner, strides = out_channels, (stride, 1)
        kernels = [3, 3]
        if bottleneck:
            inner, strides, kernels = out_channels // 4, (1, stride) if stride_in_3x3 else strides, [1, 3, 1]
        widths = [in_channels, *[inner] * (len(kernels) - 1), out_channels]
        layers = []
        for (before, after), kernel, step in zip(pairwise(widths), kernels, [*strides, 1], strict=False):
            conv = nn.Conv2d(before, after, kernel, step, kernel // 2, bias=False)
            layers.append(nn.ModuleDict({"bn": nn.BatchNorm2d(before), "conv": conv}))
        self.body = numbered("conv", layers)
        self.identity_conv = None
        if stride != 1 or in_channels != out_channels:
            self.identity_conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        layers = list(self.body)
        y = fused_bn_act(layers[0]["bn"], x, "relu")
        shortcut = x if self.identity_conv is None else fused_conv_bn_act(self.identity_conv, None, y)
        for layer, following in pairwise(layers):
            y = fused_conv_bn_act(layer["conv"], following["bn"], y, "relu")
        return fused_conv_bn_act(layers[-1]["conv"], None, y, residual=shortcut)


class Activation(nn.Module):
    """BN and ReLU, behind the last unit."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return fused_bn_act(self.bn, x, "relu")


class Stem(ConvBN):
    """A 7x7 convolution with BN and ReLU, and the max-pool."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 7, 2)
        self.pool = nn.MaxPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(super().forward(x))


class PreActResNet(nn.Module):
    """ResNet's table with pre-activation units; bottlenecks from 50 ``layers`` on."""

    def __init__(
        self,
        layers: int = 18,
        stride_in_3x3: bool = False,
        num_classes: int = 1000,
        in_chans: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        bottleneck, channels, stages = layers >= 50, WIDTHS[0], []
        for width, repeats in zip(WIDTHS, REPEATS[layers], strict=True):
            units, out_channels = [], width * (4 if bottleneck else 1)
            for i in range(repeats):
                stride = 2 if stages and i == 0 else 1
                units.append(Unit(channels, out_channels, stride, bottleneck, stride_in_3x3))
                channels = out_channels
            stages.append(numbered("unit", units))
        self.features = nn.Sequential()
        self.features.add_module("init_block", Stem(in_chans, WIDTHS[0]))
        for i, stage in enumerate(stages, start=1):
            self.features.add_module(f"stage{i}", stage)
        self.features.add_module("post_activ", Activation(channels))
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(channels, num_classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.dropout(pool_flatten(self.features(x))))


@register("preact_resnet18", "preresnet18")
def preact_resnet18(**kwargs: Any) -> PreActResNet:
    """Pre-activation ResNet-18."""
    return PreActResNet(18, **kwargs)


@register("preact_resnet34", "preresnet34")
def preact_resnet34(**kwargs: Any) -> PreActResNet:
    """Pre-activation ResNet-34."""
    return PreActResNet(34, **kwargs)


@register("preact_resnet50", "preresnet50")
def preact_resnet50(**kwargs: Any) -> PreActResNet:
    """Pre-activation ResNet-50, stride in the first 1x1."""
    return PreActResNet(50, **kwargs)


@register("preact_resnet101", "preresnet101")
def preact_resnet101(**kwargs: Any) -> PreActResNet:
    """Pre-activation ResNet-101, stride in the first 1x1."""
    return PreActResNet(101, **kwargs)


@register("preact_resnet152", "preresnet152")
def preact_resnet152(**kwargs: Any) -> PreActResNet:
    """Pre-activation ResNet-152, stride in the first 1x1."""
    return PreActResNet(152, **kwargs)


@register("preact_resnet200", "preresnet200")
def preact_resnet200(**kwargs: Any) -> PreActResNet:
    """Pre-activation ResNet-200, stride in the first 1x1."""
    return PreActResNet(200, **kwargs)


@register("preact_resnet50b", "preresnet50b")
def preact_resnet50b(**kwargs: Any) -> PreActResNet:
    """Pre-activation ResNet-50, stride in the 3x3."""
    return PreActResNet(50, stride_in_3x3=True, **kwargs)
