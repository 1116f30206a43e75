# SPDX-License-Identifier: Apache-2.0
"""EfficientNet, arXiv:1905.11946: inverted residuals with squeeze-excite and SiLU. Keys: torchvision's."""

import math
from typing import Any, NamedTuple

from torch import Tensor, nn

from fastcnn.models.blocks import InvertedResidual, init_weights, make_divisible, pool_flatten
from fastcnn.models.registry import register
from fastcnn.models.rows import Row
from fastcnn.nn import ConvBNAct

# Table 1
#        t  k    c  n  s  se
ROWS = [
    Row(1, 3,  16, 1, 1, True),
    Row(6, 3,  24, 2, 2, True),
    Row(6, 5,  40, 2, 2, True),
    Row(6, 3,  80, 3, 2, True),
    Row(6, 5, 112, 3, 1, True),
    Row(6, 5, 192, 4, 2, True),
    Row(6, 3, 320, 1, 1, True),
]  # fmt: skip

PHI = [0.0, 0.5, 1.05, 2.1, 3.8, 5.1, 6.12, 7.05]  # of B0 to B7, for compound_scaling's defaults
DROPOUT = [0.2, 0.2, 0.3, 0.3, 0.4, 0.4, 0.5, 0.5]


class Scale(NamedTuple):
    """Multipliers of width and depth, and the side of the input."""

    width: float
    depth: float
    resolution: int


def compound_scaling(phi: float, alpha: float = 1.172, beta: float = 1.1, gamma: float = 1.15) -> Scale:
    """Equation 3: depth ``alpha ** phi``, width ``beta ** phi``, resolution ``224 * gamma ** phi``.

    The multipliers are rounded to tenths, the resolution to a multiple of 4, as those of the released nets are.

    Args:
        alpha: 1.2 in the paper. With that no ``phi`` gives B3 to B7, which are less deep; with 1.172 ``PHI`` gives all.

    >>> compound_scaling(PHI[7])
    Scale(width=2.0, depth=3.1, resolution=600)
    """
    return Scale(round(beta**phi, 1), round(alpha**phi, 1), 4 * round(224 * gamma**phi / 4))


def scaled_rows(width: float, depth: float) -> list[Row]:
    """Table 1 with the channels to the nearest multiple of 8 and the repeats rounded up."""
    return [row._replace(c=make_divisible(row.c * width), n=math.ceil(row.n * depth)) for row in ROWS]


class EfficientNet(nn.Module):
    """Table 1. The squeeze is a quarter of the block's input; the last convolution is 4 times as wide as the last row.

    Args:
        width_mult, depth_mult: multipliers of channels and repeats; see :func:`compound_scaling`.
        stochastic_depth: probability of dropping the last block of all; it grows linearly from 0 at the first.
        norm: eps and momentum of the batch norms.
    """

    def __init__(
        self,
        width_mult: float = 1.0,
        depth_mult: float = 1.0,
        num_classes: int = 1000,
        in_chans: int = 3,
        dropout: float = 0.2,
        stochastic_depth: float = 0.2,
        **norm: float,
    ) -> None:
        super().__init__()
        rows = scaled_rows(width_mult, depth_mult)
        channels, done, blocks = make_divisible(32 * width_mult), 0, sum(row.n for row in rows)
        layers: list[nn.Module] = [ConvBNAct(in_chans, channels, 3, 2, activation="silu", **norm)]
        for t, k, c, n, s, _ in rows:
            stage = []
            for i in range(n):
                stride, squeeze, drop = s if i == 0 else 1, max(1, channels // 4), stochastic_depth * done / blocks
                block = InvertedResidual(
                    channels, channels * t, c, k, stride, "silu", squeeze, "sigmoid", "silu", drop, **norm
                )
                stage.append(block)
                channels, done = c, done + 1
            layers.append(nn.Sequential(*stage))
        layers.append(ConvBNAct(channels, 4 * channels, 1, activation="silu", **norm))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(4 * channels, num_classes))
        init_weights(self, uniform_head=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(pool_flatten(self.features(x)))


def _scaled(index: int, **kwargs: Any) -> EfficientNet:
    width, depth, _ = compound_scaling(PHI[index])
    norm = {"eps": 1e-3, "momentum": 0.01} if index >= 5 else {}
    return EfficientNet(width, depth, **{"dropout": DROPOUT[index], **norm, **kwargs})


@register("efficientnet_b0")
def efficientnet_b0(**kwargs: Any) -> EfficientNet:
    """EfficientNet-B0, 224 pixels."""
    return _scaled(0, **kwargs)


@register("efficientnet_b1")
def efficientnet_b1(**kwargs: Any) -> EfficientNet:
    """EfficientNet-B1, 240 pixels."""
    return _scaled(1, **kwargs)


@register("efficientnet_b2")
def efficientnet_b2(**kwargs: Any) -> EfficientNet:
    """EfficientNet-B2, 260 pixels."""
    return _scaled(2, **kwargs)


@register("efficientnet_b3")
def efficientnet_b3(**kwargs: Any) -> EfficientNet:
    """EfficientNet-B3, 300 pixels."""
    return _scaled(3, **kwargs)


@register("efficientnet_b4")
def efficientnet_b4(**kwargs: Any) -> EfficientNet:
    """EfficientNet-B4, 380 pixels."""
    return _scaled(4, **kwargs)


@register("efficientnet_b5")
def efficientnet_b5(**kwargs: Any) -> EfficientNet:
    """EfficientNet-B5, 456 pixels."""
    return _scaled(5, **kwargs)


@register("efficientnet_b6")
def efficientnet_b6(**kwargs: Any) -> EfficientNet:
    """EfficientNet-B6, 528 pixels."""
    return _scaled(6, **kwargs)


@register("efficientnet_b7")
def efficientnet_b7(**kwargs: Any) -> EfficientNet:
    """EfficientNet-B7, 600 pixels."""
    return _scaled(7, **kwargs)
