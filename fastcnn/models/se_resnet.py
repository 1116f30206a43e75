# SPDX-License-Identifier: Apache-2.0
"""SE-ResNet with torchvision's ResNet under it, arXiv:1709.01507: squeeze-excite before the sum. Keys: timm's.

The stride is in the 3x3 convolution and the squeeze a multiple of 8; senet.py has the authors' nets.
"""

from typing import Any

from fastcnn.models.registry import register
from fastcnn.models.resnet import ResNet


def se_resnet(layers: int, reduction: int = 16, **kwargs: Any) -> ResNet:
    """A ResNet with a squeeze-excite of ``channels / reduction`` in every block."""
    return ResNet(layers, reduction=reduction, **kwargs)


@register("se_resnet18_tv", "seresnet18")
def se_resnet18_tv(**kwargs: Any) -> ResNet:
    """SE-ResNet-18, stride in the 3x3."""
    return se_resnet(18, **kwargs)


@register("se_resnet34_tv", "seresnet34")
def se_resnet34_tv(**kwargs: Any) -> ResNet:
    """SE-ResNet-34, stride in the 3x3."""
    return se_resnet(34, **kwargs)


@register("se_resnet50_tv", "seresnet50")
def se_resnet50_tv(**kwargs: Any) -> ResNet:
    """SE-ResNet-50, stride in the 3x3."""
    return se_resnet(50, **kwargs)


@register("se_resnet101_tv", "seresnet101")
def se_resnet101_tv(**kwargs: Any) -> ResNet:
    """SE-ResNet-101, stride in the 3x3."""
    return se_resnet(101, **kwargs)


@register("se_resnet152_tv", "seresnet152")
def se_resnet152_tv(**kwargs: Any) -> ResNet:
    """SE-ResNet-152, stride in the 3x3."""
    return se_resnet(152, **kwargs)


@register("se_resnext50_32x4d_tv", "seresnext50_32x4d")
def se_resnext50_32x4d_tv(**kwargs: Any) -> ResNet:
    """SE-ResNeXt-50, 32 groups of 4 channels."""
    return se_resnet(50, groups=32, width_per_group=4, **kwargs)
