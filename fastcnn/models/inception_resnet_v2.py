# SPDX-License-Identifier: Apache-2.0
"""Inception-ResNet-v2, arXiv:1602.07261: Inception modules as scaled residuals. Keys: timm's.

The published net, not quite the figures': the stem is Inception-v3's and one module stands before the residual ones.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fastcnn.models.blocks import init_weights, pool_flatten
from fastcnn.models.inception_blocks import Branches, InceptionConv, inception_branch, scaled_residual
from fastcnn.models.registry import register

REPEATS = (10, 20, 9)  # of the residual modules at 35x35, 17x17, 8x8
SCALES = (0.17, 0.10, 0.20)


class ResidualModule(nn.Module):
    """``activation(x + scale * conv(branches(x)))``, figures 16, 17 and 19.

    Args:
        inside: channels of all branches together.
    """

    def __init__(
        self, channels: int, inside: int, scale: float, branches: dict[str, nn.Module], activation: str = "relu"
    ) -> None:
        super().__init__()
        for name, branch in branches.items():
            self.add_module(name, branch)
        self.conv2d = nn.Conv2d(inside, channels, 1)
        self.scale, self.activation = scale, activation

    def forward(self, x: Tensor) -> Tensor:
        *branches, conv = self.children()
        inside = torch.cat([branch(x) for branch in branches], dim=1)
        return scaled_residual(conv, inside, x, self.scale, self.activation)


def module_a(scale: float) -> ResidualModule:
    """Figure 16, at 35x35."""
    branches = {
        "branch0": inception_branch(320, (32, 1)),
        "branch1": inception_branch(320, (32, 1), (32, 3)),
        "branch2": inception_branch(320, (32, 1), (48, 3), (64, 3)),
    }
    return ResidualModule(320, 128, scale, branches)


def module_b(scale: float) -> ResidualModule:
    """Figure 17, at 17x17."""
    branches = {
        "branch0": inception_branch(1088, (192, 1)),
        "branch1": inception_branch(1088, (128, 1), (160, (1, 7)), (192, (7, 1))),
    }
    return ResidualModule(1088, 384, scale, branches)


def module_c(scale: float, activation: str = "relu") -> ResidualModule:
    """Figure 19, at 8x8."""
    branches = {
        "branch0": inception_branch(2080, (192, 1)),
        "branch1": inception_branch(2080, (192, 1), (224, (1, 3)), (256, (3, 1))),
    }
    return ResidualModule(2080, 448, scale, branches, activation)


class InceptionResNetV2(nn.Module):
    """Figure 15, and one more module C, without a scale and an activation. The paper has dropout 0.2; timm's default, and so ours, is none."""

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv2d_1a = InceptionConv(in_chans, 32, 3, 2, padding=0)
        self.conv2d_2a = InceptionConv(32, 32, 3, padding=0)
        self.conv2d_2b = InceptionConv(32, 64, 3)
        self.maxpool_3a = nn.MaxPool2d(3, 2)
        self.conv2d_3b = InceptionConv(64, 80, 1)
        self.conv2d_4a = InceptionConv(80, 192, 3, padding=0)
        self.maxpool_5a = nn.MaxPool2d(3, 2)
        self.mixed_5b = Branches(
            branch0=inception_branch(192, (96, 1)),
            branch1=inception_branch(192, (48, 1), (64, 5)),
            branch2=inception_branch(192, (64, 1), (96, 3), (96, 3)),
            branch3=inception_branch(192, (64, 1), pool=nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
        )
        self.repeat = nn.Sequential(*(module_a(SCALES[0]) for _ in range(REPEATS[0])))
        self.mixed_6a = Branches(  # figure 7
            branch0=inception_branch(320, (384, 3, 2, 0)),
            branch1=inception_branch(320, (256, 1), (256, 3), (384, 3, 2, 0)),
            branch2=nn.MaxPool2d(3, 2),
        )
        self.repeat_1 = nn.Sequential(*(module_b(SCALES[1]) for _ in range(REPEATS[1])))
        self.mixed_7a = Branches(  # figure 18
            branch0=inception_branch(1088, (256, 1), (384, 3, 2, 0)),
            branch1=inception_branch(1088, (256, 1), (288, 3, 2, 0)),
            branch2=inception_branch(1088, (256, 1), (288, 3), (320, 3, 2, 0)),
            branch3=nn.MaxPool2d(3, 2),
        )
        self.repeat_2 = nn.Sequential(*(module_c(SCALES[2]) for _ in range(REPEATS[2])))
        self.block8 = module_c(1.0, activation="identity")
        self.conv2d_7b = InceptionConv(2080, 1536, 1)
        self.head_drop = nn.Dropout(dropout)
        self.classif = nn.Linear(1536, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool_3a(self.conv2d_2b(self.conv2d_2a(self.conv2d_1a(x))))
        x = self.maxpool_5a(self.conv2d_4a(self.conv2d_3b(x)))
        x = self.repeat(self.mixed_5b(x))
        x = self.repeat_1(self.mixed_6a(x))
        x = self.conv2d_7b(self.block8(self.repeat_2(self.mixed_7a(x))))
        return self.classif(self.head_drop(pool_flatten(x)))


@register("inception_resnet_v2", "inceptionresnetv2")
def inception_resnet_v2(**kwargs: Any) -> InceptionResNetV2:
    """Inception-ResNet-v2."""
    return InceptionResNetV2(**kwargs)
