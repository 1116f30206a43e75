# SPDX-License-Identifier: Apache-2.0
"""ResNeXt, arXiv:1611.05431: bottlenecks with a grouped 3x3. Keys: torchvision's, for CIFAR pytorchcv's."""

from typing import Any

from fastcnn.models.blocks import ConvBN
from fastcnn.models.registry import register
from fastcnn.models.resnet import ResNet
from fastcnn.models.resnet_cifar import CifarNet, Unit

CIFAR_WIDTHS = [64, 256, 512, 1024]


def resnext_cifar(
    layers: int = 29, cardinality: int = 16, width_per_group: int = 64, in_chans: int = 3, **kwargs: Any
) -> CifarNet:
    """ResNeXt for CIFAR, section 5.3: ``layers = 9n + 2``; the inner width doubles with each stage."""
    if layers < 11 or layers % 9 != 2:
        raise ValueError(f"resnext_cifar: layers must be 9n + 2, got {layers}")

    def unit(in_channels: int, out_channels: int, stride: int) -> Unit:
        inner = cardinality * width_per_group * out_channels // CIFAR_WIDTHS[1]
        grouped = ConvBN(inner, inner, 3, stride, groups=cardinality)
        body = [ConvBN(in_channels, inner, 1), grouped, ConvBN(inner, out_channels, 1)]
        return Unit(in_channels, out_channels, stride, body)

    return CifarNet(ConvBN(in_chans, CIFAR_WIDTHS[0], 3), unit, CIFAR_WIDTHS, layers // 9, **kwargs)


@register("resnext50_32x4d")
def resnext50_32x4d(**kwargs: Any) -> ResNet:
    """ResNeXt-50, 32 groups of 4 channels."""
    return ResNet(50, groups=32, width_per_group=4, **kwargs)


@register("resnext101_32x4d")
def resnext101_32x4d(**kwargs: Any) -> ResNet:
    """ResNeXt-101, 32 groups of 4 channels."""
    return ResNet(101, groups=32, width_per_group=4, **kwargs)


@register("resnext101_32x8d")
def resnext101_32x8d(**kwargs: Any) -> ResNet:
    """ResNeXt-101, 32 groups of 8 channels."""
    return ResNet(101, groups=32, width_per_group=8, **kwargs)


@register("resnext101_64x4d")
def resnext101_64x4d(**kwargs: Any) -> ResNet:
    """ResNeXt-101, 64 groups of 4 channels."""
    return ResNet(101, groups=64, width_per_group=4, **kwargs)


@register("resnext29_16x64d_cifar10")
def resnext29_16x64d_cifar10(**kwargs: Any) -> CifarNet:
    """ResNeXt-29 for CIFAR-10, 16 groups of 64 channels."""
    return resnext_cifar(29, 16, 64, **kwargs)


@register("resnext29_32x4d_cifar10")
def resnext29_32x4d_cifar10(**kwargs: Any) -> CifarNet:
    """ResNeXt-29 for CIFAR-10, 32 groups of 4 channels."""
    return resnext_cifar(29, 32, 4, **kwargs)
