# SPDX-License-Identifier: Apache-2.0
"""ResNet, arXiv:1512.03385: residual blocks. Keys: torchvision's."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fastcnn.models.blocks import conv_bn, init_convolutions, make_divisible, pool_flatten
from fastcnn.models.registry import register
from fastcnn.nn import ConvBNAct, SqueezeExcite, fused_conv_bn_act
from fastcnn.ops import activation

REPEATS = {
    18: [2, 2, 2, 2],
    34: [3, 4, 6, 3],
    50: [3, 4, 6, 3],
    101: [3, 4, 23, 3],
    152: [3, 8, 36, 3],
}  # table 1: blocks in conv2_x to conv5_x; bottlenecks from 50 on
WIDTHS = [64, 128, 256, 512]  # table 1: of the 3x3 convolutions in conv2_x to conv5_x


class Residual(nn.Module):
    """What the blocks share: ``relu(last(y) + shortcut(x))``; with ``reduction`` a squeeze-excite behind the last."""

    shortcut_key, shortcut_kernel = "downsample", 1

    def add_end(self, in_channels: int, out_channels: int, stride: int, reduction: int | None) -> None:
        squeezed = make_divisible(out_channels / reduction) if reduction else 0
        self.se = SqueezeExcite(out_channels, squeezed, gate="sigmoid") if reduction else None
        if stride != 1 or in_channels != out_channels:
            project = ConvBNAct(in_channels, out_channels, self.shortcut_kernel, stride, activation=None)
            self.add_module(self.shortcut_key, project)

    def end(self, conv: nn.Conv2d, bn: nn.BatchNorm2d, y: Tensor, x: Tensor) -> Tensor:
        project = self._modules.get(self.shortcut_key)
        shortcut = x if project is None else project(x)
        if self.se is None:
            return fused_conv_bn_act(conv, bn, y, "relu", shortcut)
        return activation(self.se(fused_conv_bn_act(conv, bn, y)) + shortcut, "relu")


class BasicBlock(Residual):
    """Figure 5, left: two 3x3 convolutions."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int = 1, reduction: int | None = None) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(in_channels, width, 3, stride)
        self.conv2, self.bn2 = conv_bn(width, width, 3)
        self.add_end(in_channels, width, stride, reduction)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.conv2, self.bn2, fused_conv_bn_act(self.conv1, self.bn1, x, "relu"), x)


class Bottleneck(Residual):
    """Figure 5, right; the paper strides in the first 1x1. ``groups`` of ``width_per_group`` channels are ResNeXt's."""

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int = 1,
        reduction: int | None = None,
        groups: int = 1,
        width_per_group: int = 64,
        stride_in_3x3: bool = True,
    ) -> None:
        super().__init__()
        inner, out_channels = width * width_per_group // 64 * groups, self.expansion * width
        strides = (1, stride) if stride_in_3x3 else (stride, 1)
        self.conv1, self.bn1 = conv_bn(in_channels, inner, 1, strides[0])
        self.conv2, self.bn2 = conv_bn(inner, inner, 3, strides[1], groups)
        self.conv3, self.bn3 = conv_bn(inner, out_channels, 1)
        self.add_end(in_channels, out_channels, stride, reduction)

    def forward(self, x: Tensor) -> Tensor:
        y = fused_conv_bn_act(self.conv1, self.bn1, x, "relu")
        y = fused_conv_bn_act(self.conv2, self.bn2, y, "relu")
        return self.end(self.conv3, self.bn3, y, x)


def make_stages(
    block: type[nn.Module], channels: int, widths: Sequence[int], repeats: Sequence[int], **kwargs: Any
) -> list[nn.Sequential]:
    """One Sequential of blocks for each width; all but the first begin with stride 2. ``kwargs`` are the block's."""
    stages = []
    for width, n in zip(widths, repeats, strict=True):
        blocks = []
        for i in range(n):
            blocks.append(block(channels, width, 2 if stages and i == 0 else 1, **kwargs))
            channels = block.expansion * width
        stages.append(nn.Sequential(*blocks))
    return stages


class ResNet(nn.Module):
    """Table 1 with these ``layers``. ``block_kwargs`` are the block's: ``stride_in_3x3``, ``groups``, ``reduction``."""

    def __init__(
        self, layers: int = 18, num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.0, **block_kwargs: Any
    ) -> None:
        super().__init__()
        block, repeats = BasicBlock if layers < 50 else Bottleneck, REPEATS[layers]
        self.conv1, self.bn1 = conv_bn(in_chans, 64, 7, 2)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1, self.layer2, self.layer3, self.layer4 = make_stages(block, 64, WIDTHS, repeats, **block_kwargs)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(block.expansion * WIDTHS[-1], num_classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(fused_conv_bn_act(self.conv1, self.bn1, x, "relu"))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.dropout(pool_flatten(x)))


@register("resnet18")
def resnet18(**kwargs: Any) -> ResNet:
    """ResNet-18."""
    return ResNet(18, **kwargs)


@register("resnet34")
def resnet34(**kwargs: Any) -> ResNet:
    """ResNet-34."""
    return ResNet(34, **kwargs)


@register("resnet50")
def resnet50(**kwargs: Any) -> ResNet:
    """ResNet-50."""
    return ResNet(50, **kwargs)


@register("resnet101")
def resnet101(**kwargs: Any) -> ResNet:
    """ResNet-101."""
    return ResNet(101, **kwargs)


@register("resnet152")
def resnet152(**kwargs: Any) -> ResNet:
    """ResNet-152."""
    return ResNet(152, **kwargs)
