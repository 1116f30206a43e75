# SPDX-License-Identifier: Apache-2.0
"""ShuffleNetV1, arXiv:1707.01083: grouped 1x1 convolutions, channel shuffle, a depthwise convolution. Keys: pytorchcv's.

The channels are shuffled group first, as in the paper; the stem's width is scaled unless given.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fastcnn import ops
from fastcnn.models.blocks import ConvBN, init_weights, pool_flatten
from fastcnn.models.registry import register
from fastcnn.nn import SqueezeExcite, fused_conv_bn_act

REPEATS = [4, 8, 4]  # table 1: units of stages 2, 3 and 4, the first of each with stride 2

#   groups: stage2 stage3 stage4
CHANNELS = {
    1: [144, 288,  576],
    2: [200, 400,  800],
    3: [240, 480,  960],
    4: [272, 544, 1088],
    8: [384, 768, 1536],
}  # fmt: skip


class ShuffleUnit(nn.Module):
    """Figure 2 (b): compress, shuffle, depthwise, expand, add; (c), stride 2: beside a 3x3 average pool.

    Args:
        first_groups: of the compressing convolution, 1 in the first unit of all.
        reduction: of a squeeze-excite behind the expanding convolution; 0 for none.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, groups: int, first_groups: int, reduction: int
    ) -> None:
        super().__init__()
        # A quarter of the output; in the table's narrow rows the nearest multiple of the groups, the larger of two.
        mid = groups * int(out_channels / (4 * groups) + 0.5)
        self.groups, self.stride = groups, stride
        if stride > 1:
            out_channels -= in_channels
        self.compress_conv1 = nn.Conv2d(in_channels, mid, 1, groups=first_groups, bias=False)
        self.compress_bn1 = nn.BatchNorm2d(mid)
        self.dw_conv2 = nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False)
        self.dw_bn2 = nn.BatchNorm2d(mid)
        self.expand_conv3 = nn.Conv2d(mid, out_channels, 1, groups=groups, bias=False)
        self.expand_bn3 = nn.BatchNorm2d(out_channels)
        if reduction:
            self.se = SqueezeExcite(out_channels, out_channels // reduction, gate="sigmoid")

    def forward(self, x: Tensor) -> Tensor:
        y = fused_conv_bn_act(self.compress_conv1, self.compress_bn1, x, "relu")
        if self.groups > 1:
            y = ops.channel_shuffle(y, self.groups)
        y = fused_conv_bn_act(self.dw_conv2, self.dw_bn2, y)
        if "se" in self._modules:
            y = self.se(fused_conv_bn_act(self.expand_conv3, self.expand_bn3, y))
            y = ops.activation(y if self.stride > 1 else y + x, "relu")
        else:
            y = fused_conv_bn_act(self.expand_conv3, self.expand_bn3, y, "relu", None if self.stride > 1 else x)
        if self.stride == 1:
            return y
        # The unit's last ReLU does nothing to the pooled half: a ReLU was before it.
        return torch.cat((y, nn.functional.avg_pool2d(x, 3, 2, 1)), dim=1)


class ShuffleNetV1(nn.Module):
    """Table 1; ``scale`` multiplies the channels of all stages."""

    def __init__(
        self,
        groups: int = 3,
        num_classes: int = 1000,
        in_chans: int = 3,
        scale: float = 1.0,
        stem: int | None = None,
        reduction: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels = stem or int(24 * scale)
        self.features = nn.Sequential()
        self.features.add_module("init_block", ConvBN(in_chans, channels, 3, 2))
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for i, (repeats, width) in enumerate(zip(REPEATS, CHANNELS[groups], strict=True), start=1):
            stage, out_channels = nn.Sequential(), int(width * scale)
            for j in range(1, repeats + 1):
                first_groups = 1 if i == j == 1 else groups
                unit = ShuffleUnit(channels, out_channels, 2 if j == 1 else 1, groups, first_groups, reduction)
                stage.add_module(f"unit{j}", unit)
                channels = out_channels
            self.features.add_module(f"stage{i}", stage)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        stem, *stages = self.features
        x = self.maxpool(stem(x))
        for stage in stages:
            x = stage(x)
        return self.output(self.dropout(pool_flatten(x)))


@register("shufflenet_v1_x1_0_g1", "shufflenet_g1_w1")
def shufflenet_v1_x1_0_g1(**kwargs: Any) -> ShuffleNetV1:
    """ShuffleNet 1x, without groups."""
    return ShuffleNetV1(1, **kwargs)


@register("shufflenet_v1_x1_0_g2", "shufflenet_g2_w1")
def shufflenet_v1_x1_0_g2(**kwargs: Any) -> ShuffleNetV1:
    """ShuffleNet 1x, 2 groups."""
    return ShuffleNetV1(2, **kwargs)


@register("shufflenet_v1_x1_0_g3", "shufflenet_g3_w1")
def shufflenet_v1_x1_0_g3(**kwargs: Any) -> ShuffleNetV1:
    """ShuffleNet 1x, 3 groups."""
    return ShuffleNetV1(3, **kwargs)


@register("shufflenet_v1_x1_0_g4", "shufflenet_g4_w1")
def shufflenet_v1_x1_0_g4(**kwargs: Any) -> ShuffleNetV1:
    """ShuffleNet 1x, 4 groups."""
    return ShuffleNetV1(4, **kwargs)


@register("shufflenet_v1_x1_0_g8", "shufflenet_g8_w1")
def shufflenet_v1_x1_0_g8(**kwargs: Any) -> ShuffleNetV1:
    """ShuffleNet 1x, 8 groups."""
    return ShuffleNetV1(8, **kwargs)
