# SPDX-License-Identifier: Apache-2.0
"""The multilayer perceptron that convolutional nets are introduced with: 3072, 4096, 4096, 10 on CIFAR-10."""

from typing import Any

from torch import nn

from fastcnn.models.blocks import Chain
from fastcnn.models.registry import register


class MLP(Chain):
    """Every pixel into two hidden layers with ReLU. ``image_size`` and ``in_chans`` give the width of the input."""

    def __init__(self, num_classes: int = 10, in_chans: int = 3, image_size: int = 32, hidden: int = 4096) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(in_chans * image_size**2, hidden),
            "relu",
            nn.Linear(hidden, hidden),
            "relu",
            nn.Linear(hidden, num_classes),
        )


@register("mlp_cifar")
def mlp_cifar(**kwargs: Any) -> MLP:
    """3072-4096-4096-10."""
    return MLP(**kwargs)
