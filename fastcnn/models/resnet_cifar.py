# SPDX-License-Identifier: Apache-2.0
"""ResNet for CIFAR, arXiv:1512.03385, section 4.2: stages at 32, 16 and 8 pixels. Keys: pytorchcv's."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fastcnn.models.blocks import ConvBN, init_convolutions, numbered, pool_flatten
from fastcnn.models.registry import register

WIDTHS = [16, 32, 64]


class Unit(nn.Module):
    """``relu(body(x) + shortcut(x))``, the sum and its ReLU part of the body's last convolution.

    Args:
        body: the convolutions, each with a ReLU.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, body: Sequence[ConvBN]) -> None:
        super().__init__()
        self.body = numbered("conv", body)
        self.identity_conv = None
        if stride != 1 or in_channels != out_channels:
            self.identity_conv = ConvBN(in_channels, out_channels, 1, stride, activation="identity")

    def forward(self, x: Tensor) -> Tensor:
        *first, last = self.body
        shortcut = x if self.identity_conv is None else self.identity_conv(x)
        for layer in first:
            x = layer(x)
        return last(x, shortcut)


def basic_unit(in_channels: int, out_channels: int, stride: int) -> Unit:
    """Two 3x3 convolutions."""
    body = [ConvBN(in_channels, out_channels, 3, stride), ConvBN(out_channels, out_channels, 3)]
    return Unit(in_channels, out_channels, stride, body)


class CifarNet(nn.Module):
    """A first layer, stages of equal length, a last layer, the mean, a linear layer; pytorchcv's frame for CIFAR.

    Args:
        first: makes ``widths[0]`` channels.
        unit: ``unit(in_channels, out_channels, stride)``; all stages but the first begin with stride 2.
        widths: channels behind ``first`` and behind each stage.
        repeats: units of a stage.
        last: by its key, behind the stages.
    """

    def __init__(
        self,
        first: nn.Module,
        unit: Any,
        widths: Sequence[int],
        repeats: int,
        num_classes: int = 10,
        dropout: float = 0.0,
        **last: nn.Module,
    ) -> None:
        super().__init__()
        channels, stages = widths[0], []
        for width in widths[1:]:
            units = []
            for i in range(repeats):
                units.append(unit(channels, width, 2 if stages and i == 0 else 1))
                channels = width
            stages.append(numbered("unit", units))
        named = OrderedDict(init_block=first, **numbered("stage", stages)._modules, **last)
        self.features = nn.Sequential(named)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(channels, num_classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.dropout(pool_flatten(self.features(x))))


def resnet_cifar(layers: int = 20, in_chans: int = 3, **kwargs: Any) -> CifarNet:
    """Table 6: ResNet of ``layers = 6n + 2``, with 1x1 projections (option B)."""
    if layers < 8 or layers % 6 != 2:
        raise ValueError(f"resnet_cifar: layers must be 6n + 2, got {layers}")
    return CifarNet(ConvBN(in_chans, WIDTHS[0], 3), basic_unit, [WIDTHS[0], *WIDTHS], layers // 6, **kwargs)


@register("resnet20_cifar10")
def resnet20_cifar10(**kwargs: Any) -> CifarNet:
    """ResNet-20 for CIFAR-10."""
    return resnet_cifar(20, **kwargs)


@register("resnet32_cifar10")
def resnet32_cifar10(**kwargs: Any) -> CifarNet:
    """ResNet-32 for CIFAR-10."""
    return resnet_cifar(32, **kwargs)


@register("resnet44_cifar10")
def resnet44_cifar10(**kwargs: Any) -> CifarNet:
    """ResNet-44 for CIFAR-10."""
    return resnet_cifar(44, **kwargs)


@register("resnet56_cifar10")
def resnet56_cifar10(**kwargs: Any) -> CifarNet:
    """ResNet-56 for CIFAR-10."""
    return resnet_cifar(56, **kwargs)


@register("resnet110_cifar10")
def resnet110_cifar10(**kwargs: Any) -> CifarNet:
    """ResNet-110 for CIFAR-10."""
    return resnet_cifar(110, **kwargs)


@register("resnet1202_cifar10")
def resnet1202_cifar10(**kwargs: Any) -> CifarNet:
    """ResNet-1202 for CIFAR-10."""
    return resnet_cifar(1202, **kwargs)
