# SPDX-License-Identifier: Apache-2.0
"""VGG, arXiv:1409.1556: 3x3 convolutions, stages of equal width with a max pool behind each. Keys: torchvision's.

With a batch norm behind each convolution too, and with squeeze-excite (arXiv:1709.01507) besides.
"""

from typing import Any

from torch import Tensor, nn

from fastcnn.models.blocks import Chain, init_weights
from fastcnn.models.registry import register
from fastcnn.nn import SqueezeExcite

WIDTHS = [64, 128, 256, 512, 512]

# Convolutions of each stage (table 1).
DEPTHS = {11: [1, 1, 2, 2, 2], 13: [2, 2, 2, 2, 2], 16: [2, 2, 3, 3, 3], 19: [2, 2, 4, 4, 4]}


def vgg_features(depth: int, in_chans: int, batch_norm: bool, reduction: int = 0) -> Chain:
    """The five stages. ``reduction``: of a squeeze-excite behind each activation; 0 for none."""
    layers: list[nn.Module | str] = []
    channels = in_chans
    for width, depth_of_stage in zip(WIDTHS, DEPTHS[depth], strict=True):
        for _ in range(depth_of_stage):
            layers.append(nn.Conv2d(channels, width, 3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append("relu")
            if reduction:
                layers.append(SqueezeExcite(width, width // reduction, "relu", "sigmoid"))
            channels = width
        layers.append(nn.MaxPool2d(2))
    return Chain(*layers)


class VGG(nn.Module):
    """Table 1. ``depth`` counts the convolutions and the three linear layers.

    Args:
        reduction: squeeze-excite behind the activation of each convolution, its width over ``reduction`` inside; 0
            for none.
    """

    def __init__(
        self,
        depth: int = 16,
        num_classes: int = 1000,
        in_chans: int = 3,
        dropout: float = 0.5,
        batch_norm: bool = False,
        reduction: int = 0,
    ) -> None:
        super().__init__()
        self.features = vgg_features(depth, in_chans, batch_norm, reduction)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = Chain(
            nn.Linear(WIDTHS[-1] * 7 * 7, 4096),
            "relu",
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            "relu",
            nn.Dropout(dropout),
            nn.Linear(4096, num_classes),
        )
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


@register("vgg11")
def vgg11(**kwargs: Any) -> VGG:
    """VGG-11."""
    return VGG(11, **kwargs)


@register("vgg11_bn", "bn_vgg11b")
def vgg11_bn(**kwargs: Any) -> VGG:
    """VGG-11 with batch norm."""
    return VGG(11, batch_norm=True, **kwargs)


@register("vgg13")
def vgg13(**kwargs: Any) -> VGG:
    """VGG-13."""
    return VGG(13, **kwargs)


@register("vgg13_bn", "bn_vgg13b")
def vgg13_bn(**kwargs: Any) -> VGG:
    """VGG-13 with batch norm."""
    return VGG(13, batch_norm=True, **kwargs)


@register("vgg16")
def vgg16(**kwargs: Any) -> VGG:
    """VGG-16."""
    return VGG(16, **kwargs)


@register("vgg16_bn", "bn_vgg16b")
def vgg16_bn(**kwargs: Any) -> VGG:
    """VGG-16 with batch norm."""
    return VGG(16, batch_norm=True, **kwargs)


@register("vgg19")
def vgg19(**kwargs: Any) -> VGG:
    """VGG-19."""
    return VGG(19, **kwargs)


@register("vgg19_bn", "bn_vgg19b")
def vgg19_bn(**kwargs: Any) -> VGG:
    """VGG-19 with batch norm."""
    return VGG(19, batch_norm=True, **kwargs)


@register("se_vgg16")
def se_vgg16(reduction: int = 16, **kwargs: Any) -> VGG:
    """VGG-16 with batch norm and a squeeze-excite behind each activation, as the paper inserts it into VGG nets."""
    return VGG(16, batch_norm=True, reduction=reduction, **kwargs)
