# SPDX-License-Identifier: Apache-2.0
"""Network in Network, arXiv:1312.4400: a convolution and two 1x1 convolutions as a stage, the classes' maps averaged.

For CIFAR-10 under pytorchcv's keys and as one flat row, and for ImageNet with the layers of the Caffe model zoo's.
"""

from typing import Any

from torch import Tensor, nn

from fastcnn.models.blocks import Chain, pool_flatten
from fastcnn.models.registry import register
from fastcnn.nn import fused_conv_bn_act

Pool = type[nn.MaxPool2d] | type[nn.AvgPool2d]

# Kernel, stride and padding of a stage's first convolution, widths of all (None: the classes), the pool behind it.
CIFAR10: list[tuple[int, int, int, list[int | None], Pool | None]] = [
    (5, 1, 2, [192, 160, 96], nn.MaxPool2d),
    (5, 1, 2, [192, 192, 192], nn.AvgPool2d),
    (3, 1, 1, [192, 192, None], None),
]
IMAGENET: list[tuple[int, int, int, list[int | None], Pool | None]] = [
    (11, 4, 0, [96, 96, 96], nn.MaxPool2d),
    (5, 1, 2, [256, 256, 256], nn.MaxPool2d),
    (3, 1, 1, [384, 384, 384], nn.MaxPool2d),
    (3, 1, 1, [1024, 1024, None], None),
]


class ConvReLU(nn.Module):
    """Convolution with bias, ReLU."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return fused_conv_bn_act(self.conv, None, x, "relu")


class NiNCifar(nn.Module):
    """Figure 2 of the paper: pytorchcv's stages, in which a pool and a dropout begin the second and the third."""

    def __init__(self, num_classes: int = 10, in_chans: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        self.features, self.output = nn.Sequential(), nn.Sequential()
        channels, pool = in_chans, None
        for i, (kernel, stride, padding, widths, next_pool) in enumerate(CIFAR10, start=1):
            stage = nn.Sequential()
            if pool is not None:
                stage.add_module(f"pool{i}", pool(3, 2, 1))
                stage.add_module(f"dropout{i}", nn.Dropout(dropout))
            for j, width in enumerate(widths, start=1):
                shape = (kernel, stride, padding) if j == 1 else (1,)
                unit = ConvReLU(nn.Conv2d(channels, width or num_classes, *shape))
                if width is None:
                    self.output.add_module("final_conv", unit)
                else:
                    stage.add_module(f"unit{j}", unit)
                    channels = width
            self.features.add_module(f"stage{i}", stage)
            pool = next_pool

    def forward(self, x: Tensor) -> Tensor:
        return pool_flatten(self.output(self.features(x)))


class NiN(nn.Module):
    """All layers in one row, ``classifier``.

    Args:
        rows: of the table.
        pool_padding, ceil_mode: of the 3x3 pools of stride 2.
        all_dropouts: one behind each pool; else behind the last only.
    """

    def __init__(
        self,
        rows: list[tuple[int, int, int, list[int | None], Pool | None]] = IMAGENET,
        num_classes: int = 1000,
        in_chans: int = 3,
        dropout: float = 0.5,
        pool_padding: int = 0,
        ceil_mode: bool = True,
        all_dropouts: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module | str] = []
        channels = in_chans
        for i, (kernel, stride, padding, widths, pool) in enumerate(rows):
            for j, width in enumerate(widths):
                shape = (kernel, stride, padding) if j == 0 else (1,)
                layers += [nn.Conv2d(channels, width or num_classes, *shape), "relu"]
                channels = width or num_classes
            if pool is not None:
                layers.append(pool(3, 2, pool_padding, ceil_mode=ceil_mode))
                if all_dropouts or i == len(rows) - 2:
                    layers.append(nn.Dropout(dropout))
        self.classifier = Chain(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return pool_flatten(self.classifier(x))


@register("nin_cifar10")
def nin_cifar10(**kwargs: Any) -> NiNCifar:
    """Network in Network for CIFAR-10."""
    return NiNCifar(**kwargs)


@register("nin_cifar10_seed")
def nin_cifar10_seed(num_classes: int = 10, **kwargs: Any) -> NiN:
    """The same net for checkpoints whose layers are numbered in one row, ``classifier.0`` to ``classifier.20``."""
    return NiN(CIFAR10, num_classes, pool_padding=1, ceil_mode=False, all_dropouts=True, **kwargs)


@register("nin_imagenet")
def nin_imagenet(**kwargs: Any) -> NiN:
    """Network in Network for ImageNet."""
    return NiN(**kwargs)
