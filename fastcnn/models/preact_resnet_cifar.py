# SPDX-License-Identifier: Apache-2.0
"""Pre-activation ResNet for CIFAR, arXiv:1603.05027. Keys: pytorchcv's."""

from functools import partial
from typing import Any

from fastcnn.models.blocks import LoneConv2d
from fastcnn.models.preact_resnet import Activation, Unit
from fastcnn.models.registry import register
from fastcnn.models.resnet_cifar import WIDTHS, CifarNet


def preact_resnet_cifar(layers: int = 20, bottleneck: bool = False, in_chans: int = 3, **kwargs: Any) -> CifarNet:
    """Three stages; ``layers`` is 6n + 2, or 9n + 2 for bottlenecks, which end in 4 times the channels."""
    period, expansion = (9, 4) if bottleneck else (6, 1)
    if layers < period + 2 or layers % period != 2:
        raise ValueError(f"preact_resnet_cifar: layers must be {period}n + 2, got {layers}")
    widths = [WIDTHS[0], *(expansion * width for width in WIDTHS)]
    first = LoneConv2d(in_chans, widths[0], 3, padding=1, bias=False)
    unit = partial(Unit, bottleneck=bottleneck)
    return CifarNet(first, unit, widths, layers // period, post_activ=Activation(widths[-1]), **kwargs)


@register("preact_resnet20_cifar10", "preresnet20_cifar10")
def preact_resnet20_cifar10(**kwargs: Any) -> CifarNet:
    """Pre-activation ResNet-20 for CIFAR-10."""
    return preact_resnet_cifar(20, **kwargs)


@register("preact_resnet56_cifar10", "preresnet56_cifar10")
def preact_resnet56_cifar10(**kwargs: Any) -> CifarNet:
    """Pre-activation ResNet-56 for CIFAR-10."""
    return preact_resnet_cifar(56, **kwargs)


@register("preact_resnet110_cifar10", "preresnet110_cifar10")
def preact_resnet110_cifar10(**kwargs: Any) -> CifarNet:
    """Pre-activation ResNet-110 for CIFAR-10."""
    return preact_resnet_cifar(110, **kwargs)


@register("preact_resnet164_cifar10", "preresnet164bn_cifar10")
def preact_resnet164_cifar10(**kwargs: Any) -> CifarNet:
    """Pre-activation ResNet-164 for CIFAR-10, bottlenecks."""
    return preact_resnet_cifar(164, bottleneck=True, **kwargs)


@register("preact_resnet1001_cifar10", "preresnet1001_cifar10")
def preact_resnet1001_cifar10(**kwargs: Any) -> CifarNet:
    """Pre-activation ResNet-1001 for CIFAR-10, bottlenecks."""
    return preact_resnet_cifar(1001, bottleneck=True, **kwargs)
