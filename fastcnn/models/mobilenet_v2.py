# SPDX-License-Identifier: Apache-2.0
"""MobileNetV2, arXiv:1801.04381: inverted residuals with linear bottlenecks. Keys: torchvision's."""

from typing import Any, NamedTuple

from torch import Tensor, nn

from fastcnn.models.blocks import init_weights, make_divisible, pool_flatten
from fastcnn.models.registry import register
from fastcnn.nn import ConvBNAct, fused_conv_bn_act


class Row(NamedTuple):
    """One line of table 2: expansion, output channels, repeats, stride of the first."""

    t: int
    c: int
    n: int
    s: int


#        t    c  n  s
ROWS = [
    Row(1,  16, 1, 1),
    Row(6,  24, 2, 2),
    Row(6,  32, 3, 2),
    Row(6,  64, 4, 2),
    Row(6,  96, 3, 1),
    Row(6, 160, 3, 2),
    Row(6, 320, 1, 1),
]  # fmt: skip


class LinearBottleneck(nn.Module):
    """Table 1: expand with ReLU6, depthwise with ReLU6, project without; its conv and BN are siblings in ``conv``."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        expand = [ConvBNAct(in_channels, hidden, 1, activation="relu6")] if expansion > 1 else []
        self.conv = nn.Sequential(
            *expand,
            ConvBNAct(hidden, hidden, 3, stride, groups=hidden, activation="relu6"),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.has_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        *body, project, bn = self.conv
        y = x
        for layer in body:
            y = layer(y)
        return fused_conv_bn_act(project, bn, y, residual=x if self.has_residual else None)


class MobileNetV2(nn.Module):
    """Table 2. ``width_mult`` scales every layer; the last convolution is never narrower than 1280."""

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        width_mult: float = 1.0,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        channels = make_divisible(32 * width_mult)
        layers: list[nn.Module] = [ConvBNAct(in_chans, channels, 3, 2, activation="relu6")]
        for t, c, n, s in ROWS:
            for i in range(n):
                out_channels = make_divisible(c * width_mult)
                layers.append(LinearBottleneck(channels, out_channels, s if i == 0 else 1, t))
                channels = out_channels
        last = make_divisible(1280 * max(1.0, width_mult))
        layers.append(ConvBNAct(channels, last, 1, activation="relu6"))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(pool_flatten(self.features(x)))


@register("mobilenet_v2", "mobilenetv2_100", "mobilenet_v2_timm")
def mobilenet_v2(**kwargs: Any) -> MobileNetV2:
    """MobileNetV2, full width."""
    return MobileNetV2(**kwargs)


@register("mobilenet_v2_x0_35", "mobilenetv2_035")
def mobilenet_v2_x0_35(**kwargs: Any) -> MobileNetV2:
    """MobileNetV2 at 0.35 of the width."""
    return MobileNetV2(width_mult=0.35, **kwargs)


@register("mobilenet_v2_x0_5", "mobilenetv2_050")
def mobilenet_v2_x0_5(**kwargs: Any) -> MobileNetV2:
    """MobileNetV2 at half the width."""
    return MobileNetV2(width_mult=0.5, **kwargs)


@register("mobilenet_v2_x0_75", "mobilenetv2_075")
def mobilenet_v2_x0_75(**kwargs: Any) -> MobileNetV2:
    """MobileNetV2 at three quarters of the width."""
    return MobileNetV2(width_mult=0.75, **kwargs)


@register("mobilenet_v2_x1_4", "mobilenetv2_140")
def mobilenet_v2_x1_4(**kwargs: Any) -> MobileNetV2:
    """MobileNetV2 at 1.4 times the width."""
    return MobileNetV2(width_mult=1.4, **kwargs)
