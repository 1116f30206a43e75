# SPDX-License-Identifier: Apache-2.0
"""MnasNet-B1, arXiv:1807.11626: searched inverted residuals without squeeze-excite. Keys: torchvision's."""

from typing import Any

from torch import Tensor, nn

from fastcnn.models.blocks import ConvBNChain, init_weights, make_divisible, pool_flatten
from fastcnn.models.registry import register
from fastcnn.models.rows import Row
from fastcnn.nn import fused_conv_bn_act

STEM, FIRST, LAST = 32, 16, 1280
#        t  k    c  n  s
ROWS = [
    Row(3, 3,  24, 3, 2),
    Row(3, 5,  40, 3, 2),
    Row(6, 5,  80, 3, 2),
    Row(6, 3,  96, 2, 1),
    Row(6, 5, 192, 4, 2),
    Row(6, 3, 320, 1, 1),
]  # fmt: skip


def _conv(in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)


class InvertedResidual(nn.Module):
    """Expand with ReLU, depthwise with ReLU, project without activation; a residual where the shape allows."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.layers = ConvBNChain(
            [
                (_conv(in_channels, hidden), "relu"),
                (_conv(hidden, hidden, kernel, stride, hidden), "relu"),
                (_conv(hidden, out_channels), "identity"),
            ]
        )
        self.has_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y, layers = x, self.layers._modules
        for conv, bn, activation in self.layers.steps:
            last = activation == "identity" and self.has_residual
            y = fused_conv_bn_act(layers[conv], layers[bn], y, activation, x if last else None)
        return y


class MNASNet(nn.Module):
    """Figure 7's skeleton; ``width_mult`` scales every layer but the last convolution.

    Args:
        momentum: of the batch norms; the paper's decay of 0.9997.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        width_mult: float = 1.0,
        dropout: float = 0.2,
        momentum: float = 1 - 0.9997,
    ) -> None:
        super().__init__()
        stem, channels = (make_divisible(c * width_mult) for c in (STEM, FIRST))
        # All children are numbered in one row: the stem's steps, a stack of blocks a row, the last convolution and BN.
        self.layers = ConvBNChain(
            [
                (_conv(in_chans, stem, 3, 2), "relu"),
                (_conv(stem, stem, 3, groups=stem), "relu"),
                (_conv(stem, channels), "identity"),
            ]
        )
        self.stacks = [str(i) for i in range(8, 8 + len(ROWS))]
        for key, (t, k, c, n, s, _) in zip(self.stacks, ROWS, strict=True):
            stack, out_channels = nn.Sequential(), make_divisible(c * width_mult)
            for i in range(n):
                stack.append(InvertedResidual(channels, out_channels, k, s if i == 0 else 1, t))
                channels = out_channels
            self.layers.add_module(key, stack)
        self.layers.add_module("14", _conv(channels, LAST))
        self.layers.add_module("15", nn.BatchNorm2d(LAST))
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(LAST, num_classes))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = momentum
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        children = self.layers._modules
        x = self.layers(x)
        for key in self.stacks:
            x = children[key](x)
        x = fused_conv_bn_act(children["14"], children["15"], x, "relu")
        return self.classifier(pool_flatten(x))


@register("mnasnet0_5", "mnasnet_050")
def mnasnet0_5(**kwargs: Any) -> MNASNet:
    """MnasNet-B1 at half the width."""
    return MNASNet(width_mult=0.5, **kwargs)


@register("mnasnet0_75", "mnasnet_075")
def mnasnet0_75(**kwargs: Any) -> MNASNet:
    """MnasNet-B1 at three quarters of the width."""
    return MNASNet(width_mult=0.75, **kwargs)


@register("mnasnet1_0", "mnasnet_100", "mnasnet_b1")
def mnasnet1_0(**kwargs: Any) -> MNASNet:
    """MnasNet-B1, full width."""
    return MNASNet(**kwargs)


@register("mnasnet1_3")
def mnasnet1_3(**kwargs: Any) -> MNASNet:
    """MnasNet-B1 at 1.3 times the width."""
    return MNASNet(width_mult=1.3, **kwargs)
