# SPDX-License-Identifier: Apache-2.0
"""Convolutional highway network, arXiv:1505.00387 and 1507.06228: a gate in each layer decides what passes by.

The papers print no table of layers; the widths are those of FitNet 1 (arXiv:1412.6550), which their small CIFAR-10 net
follows, with a 1x1 convolution and a global average in place of the linear layers.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fastcnn.models.blocks import pool_flatten
from fastcnn.models.registry import register
from fastcnn.nn import fused_conv_bn_act

# 3x3 layers; a max pool halves the map between the rows.
WIDTHS = [[16, 16, 16], [32, 32, 32], [48, 48, 64]]


class Plain(nn.Module):
    """Convolution and ReLU: where the width changes, nothing can pass by."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.transform = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return fused_conv_bn_act(self.transform, None, x, "relu")


class Highway(Plain):
    """``H(x) T(x) + x (1 - T(x))`` with H a ReLU layer and T a sigmoid layer (equation 3).

    Args:
        gate_bias: start of T's bias; below 0, so that a fresh net passes most of ``x`` by (section 2.2).
    """

    def __init__(self, channels: int, gate_bias: float) -> None:
        super().__init__(channels, channels)
        self.gate = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.constant_(self.gate.bias, gate_bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(x, super().forward(x), fused_conv_bn_act(self.gate, None, x, "sigmoid"))


class HighwayCNN(nn.Module):
    """Highway layers in stages; a layer is a plain one where its width is not that before it."""

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        widths: list[list[int]] = WIDTHS,
        gate_bias: float = -2.0,
    ) -> None:
        super().__init__()
        self.features = nn.Sequential()
        channels = in_chans
        for i, row in enumerate(widths, start=1):
            if i > 1:
                self.features.add_module(f"pool{i}", nn.MaxPool2d(2))
            stage = nn.Sequential()
            for width in row:
                stage.append(Highway(width, gate_bias) if width == channels else Plain(channels, width))
                channels = width
            self.features.add_module(f"stage{i}", stage)
        self.head = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return pool_flatten(fused_conv_bn_act(self.head, None, self.features(x)))


@register("highway_cnn")
def highway_cnn(**kwargs: Any) -> HighwayCNN:
    """Nine 3x3 layers, five of them highway layers."""
    return HighwayCNN(**kwargs)
