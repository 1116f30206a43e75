# SPDX-License-Identifier: Apache-2.0
"""ResNets of the user's documents, arXiv:1512.03385. Keys: the documents' (``conv1.0``, ``shortcut.0``).

Document 001 has a net for CIFAR. Document 002 has the pieces of ResNet-50: bottleneck, first layer and stages; the head
is ResNet's. Its max-pool is commented out; both readings are here.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fastcnn.models.blocks import conv_bn, init_convolutions, pool_flatten
from fastcnn.models.registry import register
from fastcnn.models.resnet import REPEATS, WIDTHS, BasicBlock, Bottleneck, make_stages
from fastcnn.nn import ConvBNAct, fused_conv_bn_act

CIFAR_WIDTHS = [16, 32, 64]


class SeedBasicBlock(BasicBlock):
    """The basic block of document 001: a 3x3 convolution in the shortcut, too."""

    shortcut_kernel = 3


class SeedCifarResNet(nn.Module):
    """The net of document 001 with its names; ``repeats`` blocks in the three stages."""

    def __init__(
        self, repeats: Sequence[int] = (2, 2, 2), num_classes: int = 10, in_chans: int = 3, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.conv, self.bn = conv_bn(in_chans, CIFAR_WIDTHS[0], 3)
        self.layer1, self.layer2, self.layer3 = make_stages(SeedBasicBlock, CIFAR_WIDTHS[0], CIFAR_WIDTHS, repeats)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(CIFAR_WIDTHS[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = fused_conv_bn_act(self.conv, self.bn, x, "relu")
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.dropout(pool_flatten(x)))


class ShortcutBottleneck(Bottleneck):
    """The bottleneck with stride in the 3x3; its projection is called ``shortcut``."""

    shortcut_key = "shortcut"


class SeedResNet(nn.Module):
    """Four stages of bottlenecks behind a 7x7 convolution.

    Args:
        maxpool: whether a 3x3 max-pool of stride 2 stands before the stages; without it they see 4 times the pixels.
    """

    def __init__(
        self,
        maxpool: bool = True,
        repeats: Sequence[int] = REPEATS[50],
        num_classes: int = 1000,
        in_chans: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.conv1 = ConvBNAct(in_chans, 64, 7, 2)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if maxpool else nn.Identity()
        self.stage1, self.stage2, self.stage3, self.stage4 = make_stages(ShortcutBottleneck, 64, WIDTHS, repeats)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(ShortcutBottleneck.expansion * WIDTHS[-1], num_classes)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        x = self.stage4(self.stage3(self.stage2(self.stage1(x))))
        return self.fc(self.dropout(pool_flatten(x)))


@register("resnet50_seed002")
def resnet50_seed002(**kwargs: Any) -> SeedResNet:
    """The document's ResNet-50 with the max-pool on."""
    return SeedResNet(maxpool=True, **kwargs)


@register("resnet50_seed002_nomaxpool")
def resnet50_seed002_nomaxpool(**kwargs: Any) -> SeedResNet:
    """The document's ResNet-50 as written, without the max-pool."""
    return SeedResNet(maxpool=False, **kwargs)


@register("resnet_cifar_seed")
def resnet_cifar_seed(**kwargs: Any) -> SeedCifarResNet:
    """The CIFAR ResNet of document 001, two blocks a stage."""
    return SeedCifarResNet(**kwargs)
