# SPDX-License-Identifier: Apache-2.0
"""SE-ResNet, SE-ResNeXt and SENet-154 as their authors trained them, arXiv:1709.01507. Keys: timm's legacy."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fastcnn.models.blocks import conv_bn, init_convolutions, pool_flatten
from fastcnn.models.registry import register
from fastcnn.models.resnet import REPEATS, WIDTHS
from fastcnn.nn import ConvBNAct, SqueezeExcite, fused_conv_bn_act
from fastcnn.ops import activation

STEM, DEEP_STEM = [(64, 7, 2, 1)], [(64, 3, 2, 1), (64, 3, 1, 1), (128, 3, 1, 1)]


class Siblings(nn.Module):
    """``conv1``, ``bn1``, ``conv2``...: rows of output channels, kernel, stride, groups; a ReLU after each."""

    def __init__(self, channels: int, rows: Sequence[tuple[int, int, int, int]]) -> None:
        super().__init__()
        self.depth = len(rows)
        for i, (out_channels, kernel, stride, groups) in enumerate(rows, start=1):
            conv, bn = conv_bn(channels, out_channels, kernel, stride, groups)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", bn)
            channels = out_channels

    def forward(self, x: Tensor, last: str = "relu") -> Tensor:
        for i in range(1, self.depth):
            x = fused_conv_bn_act(self._modules[f"conv{i}"], self._modules[f"bn{i}"], x, "relu")
        return fused_conv_bn_act(self._modules[f"conv{self.depth}"], self._modules[f"bn{self.depth}"], x, last)


def block_rows(kind: str, width: int, stride: int, groups: int) -> list[tuple[int, int, int, int]]:
    """The convolutions of a "basic" block, a "bottleneck" strided in its first 1x1, a "resnext" and a "senet" one."""
    return {
        "basic": [(width, 3, stride, 1), (width, 3, 1, groups)],
        "bottleneck": [(width, 1, stride, 1), (width, 3, 1, groups), (4 * width, 1, 1, 1)],
        "resnext": [(width // 16 * groups, 1, 1, 1), (width // 16 * groups, 3, stride, groups), (4 * width, 1, 1, 1)],
        "senet": [(2 * width, 1, 1, 1), (4 * width, 3, stride, groups), (4 * width, 1, 1, 1)],
    }[kind]


class SEBlock(Siblings):
    """``relu(squeeze_excite(convolutions(x)) + shortcut(x))``; the basic block has a ReLU before the squeeze, too."""

    def __init__(
        self, kind: str, channels: int, width: int, stride: int, groups: int, reduction: int, kernel: int
    ) -> None:
        rows = block_rows(kind, width, stride, groups)
        super().__init__(channels, rows)
        out_channels = rows[-1][0]
        self.last = "relu" if kind == "basic" else "identity"
        self.se_module = SqueezeExcite(out_channels, out_channels // reduction, gate="sigmoid")
        self.downsample = None
        if stride != 1 or channels != out_channels:
            self.downsample = ConvBNAct(channels, out_channels, kernel, stride, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        y = self.se_module(super().forward(x, self.last))
        return activation(y + (x if self.downsample is None else self.downsample(x)), "relu")


class SENet(nn.Module):
    """Four stages behind a stem and a max-pool that keeps its last, partial windows.

    ``kind`` as in ``block_rows``; ``deep``: 3x3 convolutions in the stem and the strided shortcuts.
    """

    def __init__(
        self,
        kind: str = "bottleneck",
        repeats: Sequence[int] = REPEATS[50],
        groups: int = 1,
        reduction: int = 16,
        deep: bool = False,
        num_classes: int = 1000,
        in_chans: int = 3,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.layer0 = Siblings(in_chans, DEEP_STEM if deep else STEM)
        self.pool0 = nn.MaxPool2d(3, 2, ceil_mode=True)
        channels = 128 if deep else 64
        for i, (width, n) in enumerate(zip(WIDTHS, repeats, strict=True), start=1):
            blocks = []
            for j in range(n):
                stride, kernel = 2 if i > 1 and j == 0 else 1, 3 if deep and i > 1 else 1
                blocks.append(SEBlock(kind, channels, width, stride, groups, reduction, kernel))
                channels = width if kind == "basic" else 4 * width
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
        self.dropout = nn.Dropout(dropout)
        self.last_linear = nn.Linear(channels, num_classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool0(self.layer0(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.last_linear(self.dropout(pool_flatten(x)))


@register("se_resnet18", "legacy_seresnet18")
def se_resnet18(**kwargs: Any) -> SENet:
    """SE-ResNet-18."""
    return SENet("basic", REPEATS[18], **kwargs)


@register("se_resnet34", "legacy_seresnet34")
def se_resnet34(**kwargs: Any) -> SENet:
    """SE-ResNet-34."""
    return SENet("basic", REPEATS[34], **kwargs)


@register("se_resnet50", "legacy_seresnet50", "se_resnet50_pm")
def se_resnet50(**kwargs: Any) -> SENet:
    """SE-ResNet-50, stride in the first 1x1."""
    return SENet("bottleneck", REPEATS[50], **kwargs)


@register("se_resnet101", "legacy_seresnet101")
def se_resnet101(**kwargs: Any) -> SENet:
    """SE-ResNet-101."""
    return SENet("bottleneck", REPEATS[101], **kwargs)


@register("se_resnet152", "legacy_seresnet152")
def se_resnet152(**kwargs: Any) -> SENet:
    """SE-ResNet-152."""
    return SENet("bottleneck", REPEATS[152], **kwargs)


@register("se_resnext50_32x4d", "legacy_seresnext50_32x4d")
def se_resnext50_32x4d(**kwargs: Any) -> SENet:
    """SE-ResNeXt-50, 32 groups of 4 channels."""
    return SENet("resnext", REPEATS[50], groups=32, **kwargs)


@register("se_resnext101_32x4d", "legacy_seresnext101_32x4d")
def se_resnext101_32x4d(**kwargs: Any) -> SENet:
    """SE-ResNeXt-101, 32 groups of 4 channels."""
    return SENet("resnext", REPEATS[101], groups=32, **kwargs)


@register("senet154", "legacy_senet154")
def senet154(**kwargs: Any) -> SENet:
    """SENet-154."""
    return SENet("senet", REPEATS[152], groups=64, deep=True, **kwargs)
