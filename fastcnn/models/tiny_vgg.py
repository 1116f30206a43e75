# SPDX-License-Identifier: Apache-2.0
"""Tiny VGG, the net that CNN Explainer (arXiv:2004.15004) draws: two pairs of unpadded 3x3 convolutions of 10 channels."""

from typing import Any

from torch import nn

from fastcnn.models.blocks import Chain
from fastcnn.models.registry import register


class TinyVGG(Chain):
    """(conv, ReLU, conv, ReLU, max pool) twice, one linear layer. ``image_size`` gives the width of the last."""

    def __init__(self, num_classes: int = 10, in_chans: int = 3, image_size: int = 64, width: int = 10) -> None:
        layers: list[nn.Module | str] = []
        for channels in (in_chans, width):
            layers += [nn.Conv2d(channels, width, 3), "relu", nn.Conv2d(width, width, 3), "relu", nn.MaxPool2d(2)]
        side = ((image_size - 4) // 2 - 4) // 2
        super().__init__(*layers, nn.Flatten(), nn.Linear(width * side**2, num_classes))


@register("tiny_vgg")
def tiny_vgg(**kwargs: Any) -> TinyVGG:
    """10 channels, 64 x 64 input."""
    return TinyVGG(**kwargs)
