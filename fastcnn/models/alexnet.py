# SPDX-License-Identifier: Apache-2.0
"""AlexNet: five convolutions and three linear layers.

The net of 2012 (Krizhevsky et al., NIPS) in its two towers, which are grouped convolutions, with local response
normalisation; its one-tower form (arXiv:1404.5997, keys: torchvision's); and the small-kernel form for CIFAR-10.
"""

from typing import Any

from torch import Tensor, nn

from fastcnn.models.blocks import Chain
from fastcnn.models.registry import register

# A row is a convolution (channels, kernel, stride, padding, groups); a 0 closes a stage with its max pool.
ONE_TOWER = [(64, 11, 4, 2, 1), 0, (192, 5, 1, 2, 1), 0, (384, 3, 1, 1, 1), (256, 3, 1, 1, 1), (256, 3, 1, 1, 1), 0]
TWO_TOWERS = [(96, 11, 4, 0, 1), 0, (256, 5, 1, 2, 2), 0, (384, 3, 1, 1, 1), (384, 3, 1, 1, 2), (256, 3, 1, 1, 2), 0]
CIFAR = [(64, 3, 2, 1, 1), 0, (192, 3, 1, 1, 1), 0, (384, 3, 1, 1, 1), (256, 3, 1, 1, 1), (256, 3, 1, 1, 1), 0]

Rows = list[tuple[int, int, int, int, int] | int]


class AlexNet(nn.Module):
    """``features``, ``classifier``.

    Args:
        pool: kernel of the max pools, of stride 2.
        size: the last map is averaged to ``size`` x ``size`` unless it has that size.
        lrn: local response normalisation behind the first two activations. ``lrn_k`` is its constant, 2 in the paper
            and 1 in Caffe; alpha, 1e-4, weighs the mean over the 5 channels as in Caffe and cuda-convnet.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        dropout: float = 0.5,
        rows: Rows = ONE_TOWER,
        pool: int = 3,
        size: int = 6,
        lrn: bool = False,
        lrn_k: float = 2.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module | str] = []
        channels, stage = in_chans, 0
        for row in rows:
            if row:
                width, kernel, stride, padding, groups = row
                layers += [nn.Conv2d(channels, width, kernel, stride, padding, groups=groups), "relu"]
                channels = width
                continue
            stage += 1
            if lrn and stage <= 2:
                layers.append(nn.LocalResponseNorm(5, k=lrn_k))
            layers.append(nn.MaxPool2d(pool, 2))
        self.features = Chain(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(size)
        self.classifier = Chain(
            nn.Dropout(dropout),
            nn.Linear(channels * size**2, 4096),
            "relu",
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            "relu",
            nn.Linear(4096, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


@register("alexnet")
def alexnet(**kwargs: Any) -> AlexNet:
    """AlexNet in one tower, without response normalisation."""
    return AlexNet(**kwargs)


@register("alexnet_2gpu")
def alexnet_2gpu(**kwargs: Any) -> AlexNet:
    """AlexNet as published: two towers that meet in the third convolution, response normalisation."""
    return AlexNet(rows=TWO_TOWERS, lrn=True, **kwargs)


@register("alexnet_cifar")
def alexnet_cifar(num_classes: int = 10, **kwargs: Any) -> AlexNet:
    """AlexNet for CIFAR-10: 3x3 kernels, 2x2 pools."""
    return AlexNet(num_classes, rows=CIFAR, pool=2, size=2, **kwargs)
