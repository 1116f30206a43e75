# SPDX-License-Identifier: Apache-2.0
"""ShuffleNetV2, arXiv:1807.11164, in pytorchcv's two readings and under its keys.

``shufflenetv2`` is torchvision's net but for its pool, which covers the whole of the input. In ``shufflenetv2b`` a unit
of stride 2 keeps all its input's channels in the shortcut, and the other branch makes the rest.
"""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from fastcnn.models.blocks import ConvBN, init_weights, pool_flatten
from fastcnn.models.registry import register
from fastcnn.models.shufflenet_v2 import CHANNELS, REPEATS
from fastcnn.nn import fused_conv_bn_act
from fastcnn.ops import channel_shuffle, channel_shuffle_concat


class Unit(nn.Module):
    """Figure 3 (c) and (d) with convolutions and batch norms as siblings."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.stride = stride
        self._add("compress", 1, in_channels if stride > 1 else half, half)
        self._add("dw", 2, half, half, 3, stride, half)
        self._add("expand", 3, half, half)
        if stride > 1:
            self._add("dw", 4, in_channels, in_channels, 3, stride, in_channels)
            self._add("expand", 5, in_channels, half)

    def _add(
        self, name: str, number: int, cin: int, cout: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.add_module(f"{name}_conv{number}", conv)
        self.add_module(f"{name}_bn{number}", nn.BatchNorm2d(cout))

    def forward(self, x: Tensor) -> Tensor:
        by, y = (x, x) if self.stride > 1 else x.chunk(2, dim=1)
        if self.stride > 1:
            by = fused_conv_bn_act(self.dw_conv4, self.dw_bn4, by)
            by = fused_conv_bn_act(self.expand_conv5, self.expand_bn5, by, "relu")
        y = fused_conv_bn_act(self.compress_conv1, self.compress_bn1, y, "relu")
        y = fused_conv_bn_act(self.dw_conv2, self.dw_bn2, y)
        y = fused_conv_bn_act(self.expand_conv3, self.expand_bn3, y, "relu")
        return channel_shuffle_concat(by, y)


class UnitB(nn.Module):
    """The unit of ``shufflenetv2b``."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        half, cin = out_channels // 2, in_channels if stride > 1 else in_channels // 2
        self.stride = stride
        self.conv1 = ConvBN(cin, half, 1)
        self.dconv = ConvBN(half, half, 3, stride, half, "identity")
        self.conv2 = ConvBN(half, out_channels - cin, 1)
        if stride > 1:
            self.shortcut_dconv = ConvBN(in_channels, in_channels, 3, stride, in_channels, "identity")
            self.shortcut_conv = ConvBN(in_channels, in_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        by, y = (self.shortcut_conv(self.shortcut_dconv(x)), x) if self.stride > 1 else x.chunk(2, dim=1)
        y = self.conv2(self.dconv(self.conv1(y)))
        if by.shape == y.shape:
            return channel_shuffle_concat(by, y)
        return channel_shuffle(torch.cat((by, y), dim=1), 2)


class ShuffleNetV2CV(nn.Module):
    """Table 5 out of either kind of unit."""

    def __init__(
        self,
        unit: type[nn.Module] = UnitB,
        num_classes: int = 1000,
        in_chans: int = 3,
        width: float = 1.0,
        ceil_mode: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels, *stages, last = CHANNELS[width]
        pool = nn.MaxPool2d(3, 2, 0 if ceil_mode else 1, ceil_mode=ceil_mode)
        self.features = nn.Sequential()
        init_block = OrderedDict(conv=ConvBN(in_chans, channels, 3, 2), pool=pool)
        self.features.add_module("init_block", nn.Sequential(init_block))
        for i, (repeats, out_channels) in enumerate(zip(REPEATS, stages, strict=True), start=1):
            stage = nn.Sequential()
            for j in range(1, repeats + 1):
                stage.add_module(f"unit{j}", unit(channels, out_channels, 2 if j == 1 else 1))
                channels = out_channels
            self.features.add_module(f"stage{i}", stage)
        self.features.add_module("final_block", ConvBN(channels, last, 1))
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(last, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.dropout(pool_flatten(self.features(x))))


@register("shufflenetv2_w1_cv", "shufflenetv2_w1")
def shufflenetv2_w1_cv(**kwargs: Any) -> ShuffleNetV2CV:
    """ShuffleNetV2 1x with pytorchcv's pool."""
    return ShuffleNetV2CV(Unit, **{"ceil_mode": True, **kwargs})


@register("shufflenetv2b_w1")
def shufflenetv2b_w1(**kwargs: Any) -> ShuffleNetV2CV:
    """ShuffleNetV2b 1x."""
    return ShuffleNetV2CV(UnitB, **kwargs)
