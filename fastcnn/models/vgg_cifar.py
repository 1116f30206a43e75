# SPDX-License-Identifier: Apache-2.0
"""VGG for 32 x 32 pictures: the stages of arXiv:1409.1556, small linear layers. Keys: torchvision's VGG's."""

from typing import Any

from torch import Tensor, nn

from fastcnn.models.blocks import Chain, init_weights
from fastcnn.models.registry import register
from fastcnn.models.vgg import WIDTHS, vgg_features


class VGGCifar(nn.Module):
    """The stages leave 512 numbers, and the linear layers have that width, each but the last behind a dropout.

    Args:
        depth: 11, 13, 16 or 19, as in :class:`~fastcnn.models.vgg.VGG`.
        batch_norm: behind each convolution.
    """

    def __init__(
        self,
        depth: int = 16,
        num_classes: int = 10,
        in_chans: int = 3,
        dropout: float = 0.5,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.features = vgg_features(depth, in_chans, batch_norm)
        self.classifier = Chain(
            nn.Dropout(dropout),
            nn.Linear(WIDTHS[-1], 512),
            "relu",
            nn.Dropout(dropout),
            nn.Linear(512, 512),
            "relu",
            nn.Linear(512, num_classes),
        )
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


@register("vgg11_cifar")
def vgg11_cifar(**kwargs: Any) -> VGGCifar:
    """VGG-11 for CIFAR-10."""
    return VGGCifar(11, **kwargs)


@register("vgg13_cifar")
def vgg13_cifar(**kwargs: Any) -> VGGCifar:
    """VGG-13 for CIFAR-10."""
    return VGGCifar(13, **kwargs)


@register("vgg16_cifar")
def vgg16_cifar(**kwargs: Any) -> VGGCifar:
    """VGG-16 for CIFAR-10."""
    return VGGCifar(16, **kwargs)


@register("vgg19_cifar")
def vgg19_cifar(**kwargs: Any) -> VGGCifar:
    """VGG-19 for CIFAR-10."""
    return VGGCifar(19, **kwargs)
