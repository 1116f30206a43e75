# SPDX-License-Identifier: Apache-2.0
"""EfficientNet, arXiv:1905.11946: inverted residuals with squeeze-excite and SiLU. Keys: torchvision's."""

from typing import Any, NamedTuple

from torch import Tensor, nn

from fastcnn.models.blocks import InvertedResidual, init_weights, pool_flatten
from fastcnn.models.registry import register
from fastcnn.nn import ConvBNAct


class Row(NamedTuple):
    """One line of table 1: expansion, kernel, output channels, repeats, stride of the first."""

    t: int
    k: int
    c: int
    n: int
    s: int


#        t  k    c  n  s
ROWS = [
    Row(1, 3,  16, 1, 1),
    Row(6, 3,  24, 2, 2),
    Row(6, 5,  40, 2, 2),
    Row(6, 3,  80, 3, 2),
    Row(6, 5, 112, 3, 1),
    Row(6, 5, 192, 4, 2),
    Row(6, 3, 320, 1, 1),
]  # fmt: skip


class EfficientNet(nn.Module):
    """Table 1. The squeeze is a quarter of the block's input; the last convolution is 4 times as wide as the last row.

    Args:
        stochastic_depth: probability of dropping the last block of all; it grows linearly from 0 at the first.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        dropout: float = 0.2,
        stochastic_depth: float = 0.2,
    ) -> None:
        super().__init__()
        channels, done, blocks = 32, 0, sum(row.n for row in ROWS)
        layers: list[nn.Module] = [ConvBNAct(in_chans, channels, 3, 2, activation="silu")]
        for t, k, c, n, s in ROWS:
            stage = []
            for i in range(n):
                block = InvertedResidual(
                    channels,
                    channels * t,
                    c,
                    k,
                    s if i == 0 else 1,
                    "silu",
                    squeeze=max(1, channels // 4),
                    gate="sigmoid",
                    squeeze_activation="silu",
                    drop=stochastic_depth * done / blocks,
                )
                stage.append(block)
                channels, done = c, done + 1
            layers.append(nn.Sequential(*stage))
        layers.append(ConvBNAct(channels, 4 * channels, 1, activation="silu"))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(4 * channels, num_classes))
        init_weights(self, uniform_head=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(pool_flatten(self.features(x)))


@register("efficientnet_b0")
def efficientnet_b0(**kwargs: Any) -> EfficientNet:
    """EfficientNet-B0, the baseline of table 1."""
    return EfficientNet(**kwargs)
