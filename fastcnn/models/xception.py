# SPDX-License-Identifier: Apache-2.0
"""Xception, arXiv:1610.02357: blocks of depthwise separable convolutions with residuals. Keys: timm's legacy_xception.

A ReLU stands before most separable convolutions and a BN behind each, so the BN of one applies the ReLU of the next.
The first ReLU of a block acts on a sum that the residual needs as it was.
"""

from typing import Any

from torch import Tensor, nn

from fastcnn.models.blocks import init_weights, pool_flatten
from fastcnn.models.registry import register
from fastcnn.nn import MaxPool2d, fused_conv_bn_act
from fastcnn.ops import activation

# Figure 5, a block a line: channels of its separable convolutions, stride of the pool that ends it.
ENTRY = [
    ((128, 128), 2),
    ((256, 256), 2),
    ((728, 728), 2),
]
MIDDLE = (728, 728, 728), 1
EXIT = (728, 1024), 2


class SeparableConv2d(nn.Module):
    """3x3 depthwise, then 1x1 with the BN that the caller holds under keys of its own."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor, bn: nn.BatchNorm2d, kind: str = "identity", residual: Tensor | None = None) -> Tensor:
        return fused_conv_bn_act(self.pointwise, bn, fused_conv_bn_act(self.conv1, None, x), kind, residual)


class Block(nn.Module):
    """Separable convolutions, and the residual: the input, or a strided 1x1 of it beside a pool.

    Args:
        widths: output channels of the separable convolutions.
        first: whether a ReLU stands before the first of them; the keys count it.
    """

    def __init__(self, in_channels: int, widths: tuple[int, ...], stride: int, first: bool = True) -> None:
        super().__init__()
        self.first, self.has_skip = first, stride > 1
        if self.has_skip:
            self.skip = nn.Conv2d(in_channels, widths[-1], 1, stride, bias=False)
            self.skipbn = nn.BatchNorm2d(widths[-1])
        self.rep = nn.Sequential()
        for i, width in enumerate(widths):
            self.rep.add_module(f"{3 * i + first}", SeparableConv2d(in_channels, width))
            self.rep.add_module(f"{3 * i + first + 1}", nn.BatchNorm2d(width))
            in_channels = width
        self.pool = MaxPool2d(3, stride, 1)

    def forward(self, x: Tensor) -> Tensor:
        *inner, last, last_bn = self.rep
        y = activation(x, "relu") if self.first else x
        for separable, bn in zip(inner[::2], inner[1::2], strict=True):
            y = separable(y, bn, "relu")
        if not self.has_skip:
            return last(y, last_bn, residual=x)
        return fused_conv_bn_act(self.skip, self.skipbn, x, residual=self.pool(last(y, last_bn)))


class Xception(nn.Module):
    """Figure 5.

    Args:
        middle: blocks of the middle flow.
    """

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.0, middle: int = 8) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(in_chans, 32, 3, 2, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 64, 3, bias=False), nn.BatchNorm2d(64)
        channels = 64
        self.blocks = []
        for i, (widths, stride) in enumerate([*ENTRY, *[MIDDLE] * middle, EXIT], start=1):
            self.add_module(f"block{i}", Block(channels, widths, stride, first=i > 1))
            self.blocks.append(f"block{i}")
            channels = widths[-1]
        self.conv3, self.bn3 = SeparableConv2d(channels, 1536), nn.BatchNorm2d(1536)
        self.conv4, self.bn4 = SeparableConv2d(1536, 2048), nn.BatchNorm2d(2048)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2048, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        x = fused_conv_bn_act(self.conv1, self.bn1, x, "relu")
        x = fused_conv_bn_act(self.conv2, self.bn2, x, "relu")
        for name in self.blocks:
            x = self._modules[name](x)
        x = self.conv4(self.conv3(x, self.bn3, "relu"), self.bn4, "relu")
        return self.fc(self.dropout(pool_flatten(x)))


@register("xception", "legacy_xception", "xception_cv")
def xception(**kwargs: Any) -> Xception:
    """Xception for 299 pixels."""
    return Xception(**kwargs)
