# SPDX-License-Identifier: Apache-2.0
"""ShuffleNetV2, arXiv:1807.11164: channel split and shuffle. Keys: torchvision's."""

from typing import Any

from torch import Tensor, nn

from fastcnn.models.blocks import ConvBNChain, pool_flatten
from fastcnn.models.registry import register
from fastcnn.nn import ConvBNAct, MaxPool2d
from fastcnn.ops import channel_shuffle_concat

REPEATS = [4, 8, 4]  # table 5: units of stages 2, 3 and 4, the first of each with stride 2

#          conv1 stage2 stage3 stage4 conv5
CHANNELS = {
    0.5: [24,    48,    96,   192,  1024],
    1.0: [24,   116,   232,   464,  1024],
    1.5: [24,   176,   352,   704,  1024],
    2.0: [24,   244,   488,   976,  2048],
}  # fmt: skip


def _pointwise(in_channels: int, out_channels: int) -> tuple[nn.Conv2d, str]:
    return nn.Conv2d(in_channels, out_channels, 1, bias=False), "relu"


def _depthwise(channels: int, stride: int) -> tuple[nn.Conv2d, str]:
    return nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False), "identity"


class ShuffleUnit(nn.Module):
    """Figure 3 (c): one half of the channels passes by; (d), stride 2: both branches see all of them."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.stride = stride
        if stride > 1:
            self.branch1 = ConvBNChain([_depthwise(in_channels, stride), _pointwise(in_channels, half)])
        self.branch2 = ConvBNChain(
            [_pointwise(in_channels if stride > 1 else half, half), _depthwise(half, stride), _pointwise(half, half)]
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            by, through = self.branch1(x), self.branch2(x)
        else:
            by, through = x.chunk(2, dim=1)
            through = self.branch2(through)
        return channel_shuffle_concat(by, through)


class ShuffleNetV2(nn.Module):
    """Table 5. The widths are those of the table; there is no other."""

    def __init__(self, width: float, num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        stem, *stages, last = CHANNELS[width]
        self.conv1 = ConvBNAct(in_chans, stem, 3, 2)
        self.maxpool = MaxPool2d(3, 2, 1)
        channels = stem
        for i, (repeats, out_channels) in enumerate(zip(REPEATS, stages, strict=True), start=2):
            units = [ShuffleUnit(channels, out_channels, 2)]
            units += [ShuffleUnit(out_channels, out_channels, 1) for _ in range(repeats - 1)]
            self.add_module(f"stage{i}", nn.Sequential(*units))
            channels = out_channels
        self.conv5 = ConvBNAct(channels, last, 1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(last, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage4(self.stage3(self.stage2(self.maxpool(self.conv1(x)))))
        return self.fc(self.dropout(pool_flatten(self.conv5(x))))


@register("shufflenet_v2_x0_5")
def shufflenet_v2_x0_5(**kwargs: Any) -> ShuffleNetV2:
    """ShuffleNetV2 0.5x."""
    return ShuffleNetV2(0.5, **kwargs)


@register("shufflenet_v2_x1_0")
def shufflenet_v2_x1_0(**kwargs: Any) -> ShuffleNetV2:
    """ShuffleNetV2 1x."""
    return ShuffleNetV2(1.0, **kwargs)


@register("shufflenet_v2_x1_5")
def shufflenet_v2_x1_5(**kwargs: Any) -> ShuffleNetV2:
    """ShuffleNetV2 1.5x."""
    return ShuffleNetV2(1.5, **kwargs)


@register("shufflenet_v2_x2_0")
def shufflenet_v2_x2_0(**kwargs: Any) -> ShuffleNetV2:
    """ShuffleNetV2 2x."""
    return ShuffleNetV2(2.0, **kwargs)
