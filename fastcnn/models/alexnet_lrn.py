# SPDX-License-Identifier: Apache-2.0
"""AlexNet in stages: no towers, pools that round their size up. Keys: pytorchcv's. ZFNet is built from it."""

from typing import Any

from torch import Tensor, nn

from fastcnn.models.registry import register
from fastcnn.nn import fused_conv_bn_act
from fastcnn.ops import activation

Row = tuple[int, int, int, int]  # channels, kernel, stride, padding

WIDTHS_2012 = [[(96, 11, 4, 0)], [(256, 5, 1, 2)], [(384, 3, 1, 1), (384, 3, 1, 1), (256, 3, 1, 1)]]
WIDTHS_2014 = [[(64, 11, 4, 2)], [(192, 5, 1, 2)], [(384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1)]]


class ConvLRN(nn.Module):
    """Convolution, ReLU, and where ``lrn`` the local response normalisation of the paper."""

    def __init__(self, in_channels: int, row: Row, lrn: bool) -> None:
        super().__init__()
        width, kernel, stride, padding = row
        self.conv = nn.Conv2d(in_channels, width, kernel, stride, padding)
        self.norm = nn.LocalResponseNorm(5, k=2.0) if lrn else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(fused_conv_bn_act(self.conv, None, x, "relu"))


class Dense(nn.Module):
    """Linear, ReLU, dropout."""

    def __init__(self, in_features: int, out_features: int, dropout: float) -> None:
        super().__init__()
        self.fc = nn.Linear(in_features, out_features)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(activation(self.fc(x), "relu"))


class StagedAlexNet(nn.Module):
    """Three stages with a max pool each, three linear layers.

    Args:
        lrn: local response normalisation in the first two stages.
    """

    def __init__(
        self,
        stages: list[list[Row]] = WIDTHS_2012,
        num_classes: int = 1000,
        in_chans: int = 3,
        dropout: float = 0.5,
        lrn: bool = True,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential()
        channels = in_chans
        for i, rows in enumerate(stages, start=1):
            stage = nn.Sequential()
            for j, row in enumerate(rows, start=1):
                stage.add_module(f"unit{j}", ConvLRN(channels, row, lrn and i <= 2))
                channels = row[0]
            stage.add_module(f"pool{i}", nn.MaxPool2d(3, 2, ceil_mode=True))
            self.features.add_module(f"stage{i}", stage)
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.output = nn.Sequential()
        self.output.add_module("fc1", Dense(channels * 6 * 6, 4096, dropout))
        self.output.add_module("fc2", Dense(4096, 4096, dropout))
        self.output.add_module("fc3", nn.Linear(4096, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.avgpool(self.features(x)).flatten(1))


@register("alexnet_lrn")
def alexnet_lrn(**kwargs: Any) -> StagedAlexNet:
    """AlexNet with the widths of 2012 and response normalisation (pytorchcv's ``alexnet``)."""
    return StagedAlexNet(**kwargs)


@register("alexnet_b_cv", "alexnetb")
def alexnet_b_cv(**kwargs: Any) -> StagedAlexNet:
    """AlexNet with torchvision's widths; the pools that round up give other maps at most sizes but 224."""
    return StagedAlexNet(WIDTHS_2014, lrn=False, **kwargs)
