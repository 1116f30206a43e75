# SPDX-License-Identifier: Apache-2.0
"""MobileNetV3, arXiv:1905.02244, with timm's keys: the nets trained in TensorFlow, narrower ones, and the minimal one."""

from itertools import groupby
from typing import Any

from torch import Tensor, nn

from fastcnn import ops
from fastcnn.models.blocks import init_weights, make_divisible
from fastcnn.models.blocks_timm import Block, Style, strided
from fastcnn.models.mobilenet_v3 import LARGE, SMALL, Row
from fastcnn.models.registry import register
from fastcnn.nn import fused_conv_bn_act

TF = Style("hardswish", "hardsigmoid", padding="same", eps=1e-3)
TORCH = Style("hardswish", "hardsigmoid")
# Section 6.1.1: no squeeze-excite, no h-swish, no 5x5.
MINIMAL = [row._replace(k=3, se=False, nl="relu") for row in LARGE]


class ConvBN(nn.Module):
    """The last stage, a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, style: Style) -> None:
        super().__init__()
        self.conv, self.bn1 = style.conv(in_channels, out_channels, 1), style.norm(out_channels)
        self.activation = style.activation

    def forward(self, x: Tensor) -> Tensor:
        return fused_conv_bn_act(self.conv, self.bn1, x, self.activation)


class MobileNetV3Timm(nn.Module):
    """Tables 1 and 2; rows with the same channels are a stage.

    Args:
        hidden: width of the layer between the pool and the classifier, which ``width_mult`` leaves.
        style: its activation is that of the stem and the head, its padding, eps and momentum are those of all layers.
        head_bias: whether the hidden layer has one; without, as in pytorchcv, the classifier is a convolution too.
    """

    def __init__(
        self,
        rows: list[Row],
        hidden: int,
        style: Style,
        num_classes: int = 1000,
        in_chans: int = 3,
        width_mult: float = 1.0,
        dropout: float = 0.0,
        head_bias: bool = True,
    ) -> None:
        super().__init__()
        self.activation = style.activation
        channels = max(16, make_divisible(16 * width_mult))
        self.conv_stem, self.bn1 = style.conv(in_chans, channels, 3, 2), style.norm(channels)
        self.blocks = nn.Sequential()
        unscaled = 16
        for _, stage in groupby(rows, key=lambda row: row.out):
            blocks = nn.Sequential()
            for k, exp, out, se, nl, s in stage:
                # The expansion is a factor on the scaled input; of 1 it is no layer.
                expanded = make_divisible(channels * exp / unscaled) if exp != unscaled else None
                squeeze = make_divisible((expanded or channels) / 4) if se else 0
                out_channels = make_divisible(out * width_mult)
                block = Block(channels, expanded, out_channels, k, s, style._replace(activation=nl), squeeze)
                blocks.append(block)
                channels, unscaled = out_channels, out
            self.blocks.append(blocks)
        last = make_divisible(6 * unscaled * width_mult)
        self.blocks.append(nn.Sequential(ConvBN(channels, last, style)))
        self.conv_head = nn.Conv2d(last, hidden, 1, bias=head_bias)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden, num_classes) if head_bias else nn.Conv2d(hidden, num_classes, 1)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(strided(self.conv_stem, self.bn1, x, self.activation))
        x = self.dropout(fused_conv_bn_act(self.conv_head, None, ops.global_avg_pool(x), self.activation))
        if isinstance(self.classifier, nn.Linear):
            return self.classifier(x.flatten(1))
        return fused_conv_bn_act(self.classifier, None, x).flatten(1)


@register("tf_mobilenetv3_large_100")
def tf_mobilenetv3_large_100(**kwargs: Any) -> MobileNetV3Timm:
    """MobileNetV3-Large with SAME padding."""
    return MobileNetV3Timm(LARGE, 1280, TF, **kwargs)


@register("tf_mobilenetv3_large_075")
def tf_mobilenetv3_large_075(**kwargs: Any) -> MobileNetV3Timm:
    """MobileNetV3-Large with SAME padding, three quarters of the width."""
    return MobileNetV3Timm(LARGE, 1280, TF, **{"width_mult": 0.75, **kwargs})


@register("tf_mobilenetv3_large_minimal_100")
def tf_mobilenetv3_large_minimal_100(**kwargs: Any) -> MobileNetV3Timm:
    """MobileNetV3-Large minimalistic, with SAME padding."""
    return MobileNetV3Timm(MINIMAL, 1280, TF._replace(activation="relu"), **kwargs)


@register("tf_mobilenetv3_small_100")
def tf_mobilenetv3_small_100(**kwargs: Any) -> MobileNetV3Timm:
    """MobileNetV3-Small with SAME padding."""
    return MobileNetV3Timm(SMALL, 1024, TF, **kwargs)


@register("tf_mobilenetv3_small_075")
def tf_mobilenetv3_small_075(**kwargs: Any) -> MobileNetV3Timm:
    """MobileNetV3-Small with SAME padding, three quarters of the width."""
    return MobileNetV3Timm(SMALL, 1024, TF, **{"width_mult": 0.75, **kwargs})


@register("mobilenetv3_large_100")
def mobilenetv3_large_100(**kwargs: Any) -> MobileNetV3Timm:
    """MobileNetV3-Large with symmetric padding and torch's eps."""
    return MobileNetV3Timm(LARGE, 1280, TORCH, **kwargs)


@register("mobilenetv3_small_050")
def mobilenetv3_small_050(**kwargs: Any) -> MobileNetV3Timm:
    """MobileNetV3-Small with symmetric padding, half the width."""
    return MobileNetV3Timm(SMALL, 1024, TORCH, **{"width_mult": 0.5, **kwargs})


@register("mobilenetv3_large_w1_cv", "mobilenetv3_large_w1")
def mobilenetv3_large_w1_cv(**kwargs: Any) -> MobileNetV3Timm:
    """MobileNetV3-Large with pytorchcv's head."""
    return MobileNetV3Timm(LARGE, 1280, TORCH, **{"dropout": 0.2, "head_bias": False, **kwargs})


@register("mobilenetv3_small_w1_cv", "mobilenetv3_small_w1")
def mobilenetv3_small_w1_cv(**kwargs: Any) -> MobileNetV3Timm:
    """MobileNetV3-Small with pytorchcv's head, which is as wide as Large's."""
    return MobileNetV3Timm(SMALL, 1280, TORCH, **{"dropout": 0.2, "head_bias": False, **kwargs})
