# SPDX-License-Identifier: Apache-2.0
"""MobileNetV3, arXiv:1905.02244: searched inverted residuals, squeeze-excite, h-swish. Keys: torchvision's."""

from typing import Any, NamedTuple

from torch import Tensor, nn

from fastcnn.models.blocks import InvertedResidual, init_weights, make_divisible, pool_flatten
from fastcnn.models.registry import register
from fastcnn.nn import ConvBNAct, HardSwish

NORM = {"eps": 1e-3, "momentum": 0.01}


class Row(NamedTuple):
    """One line of tables 1 and 2: kernel, expanded and output channels, squeeze-excite, non-linearity, stride."""

    k: int
    exp: int
    out: int
    se: bool
    nl: str
    s: int


RE, HS = "relu", "hardswish"

#        k  exp  out   se    nl  s
LARGE = [
    Row(3,  16,  16, False, RE, 1),
    Row(3,  64,  24, False, RE, 2),
    Row(3,  72,  24, False, RE, 1),
    Row(5,  72,  40, True,  RE, 2),
    Row(5, 120,  40, True,  RE, 1),
    Row(5, 120,  40, True,  RE, 1),
    Row(3, 240,  80, False, HS, 2),
    Row(3, 200,  80, False, HS, 1),
    Row(3, 184,  80, False, HS, 1),
    Row(3, 184,  80, False, HS, 1),
    Row(3, 480, 112, True,  HS, 1),
    Row(3, 672, 112, True,  HS, 1),
    Row(5, 672, 160, True,  HS, 2),
    Row(5, 960, 160, True,  HS, 1),
    Row(5, 960, 160, True,  HS, 1),
]  # fmt: skip

SMALL = [
    Row(3,  16,  16, True,  RE, 2),
    Row(3,  72,  24, False, RE, 2),
    Row(3,  88,  24, False, RE, 1),
    Row(5,  96,  40, True,  HS, 2),
    Row(5, 240,  40, True,  HS, 1),
    Row(5, 240,  40, True,  HS, 1),
    Row(5, 120,  48, True,  HS, 1),
    Row(5, 144,  48, True,  HS, 1),
    Row(5, 288,  96, True,  HS, 2),
    Row(5, 576,  96, True,  HS, 1),
    Row(5, 576,  96, True,  HS, 1),
]  # fmt: skip


class MobileNetV3(nn.Module):
    """A stem, the rows, the efficient last stage of figure 5: the classifier's hidden layer comes after the pool."""

    def __init__(
        self,
        rows: list[Row],
        hidden: int,
        num_classes: int = 1000,
        in_chans: int = 3,
        width_mult: float = 1.0,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        channels = make_divisible(16 * width_mult)
        layers: list[nn.Module] = [ConvBNAct(in_chans, channels, 3, 2, activation=HS, **NORM)]
        for k, exp, out, se, nl, s in rows:
            expanded, out_channels = make_divisible(exp * width_mult), make_divisible(out * width_mult)
            squeeze = make_divisible(expanded // 4) if se else 0
            layers.append(InvertedResidual(channels, expanded, out_channels, k, s, nl, squeeze, **NORM))
            channels = out_channels
        layers.append(ConvBNAct(channels, 6 * channels, 1, activation=HS, **NORM))
        self.features = nn.Sequential(*layers)
        hidden = make_divisible(hidden * width_mult)
        self.classifier = nn.Sequential(
            nn.Linear(6 * channels, hidden), HardSwish(), nn.Dropout(dropout), nn.Linear(hidden, num_classes)
        )
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(pool_flatten(self.features(x)))


@register("mobilenet_v3_large")
def mobilenet_v3_large(**kwargs: Any) -> MobileNetV3:
    """MobileNetV3-Large, table 1."""
    return MobileNetV3(LARGE, 1280, **kwargs)


@register("mobilenet_v3_small")
def mobilenet_v3_small(**kwargs: Any) -> MobileNetV3:
    """MobileNetV3-Small, table 2."""
    return MobileNetV3(SMALL, 1024, **kwargs)
