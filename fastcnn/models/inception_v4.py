# SPDX-License-Identifier: Apache-2.0
"""Inception-v4, arXiv:1602.07261: more of the same modules behind a branched stem, no residuals. Keys: timm's."""

from typing import Any

import torch
from torch import Tensor, nn

from fastcnn.models.blocks import init_weights, pool_flatten
from fastcnn.models.inception_blocks import Branches, InceptionConv, inception_branch
from fastcnn.models.registry import register

REPEATS = (4, 7, 3)  # of the modules A, B, C


def _average() -> nn.Module:
    return nn.AvgPool2d(3, 1, 1, count_include_pad=False)


def stem(in_chans: int) -> list[nn.Module]:
    """Figure 3: to 35x35 in three steps that each concatenate."""
    return [
        InceptionConv(in_chans, 32, 3, 2, padding=0),
        InceptionConv(32, 32, 3, padding=0),
        InceptionConv(32, 64, 3),
        Branches(maxpool=nn.MaxPool2d(3, 2), conv=InceptionConv(64, 96, 3, 2, padding=0)),
        Branches(
            branch0=inception_branch(160, (64, 1), (96, 3, 1, 0)),
            branch1=inception_branch(160, (64, 1), (64, (1, 7)), (64, (7, 1)), (96, 3, 1, 0)),
        ),
        Branches(conv=InceptionConv(192, 192, 3, 2, padding=0), maxpool=nn.MaxPool2d(3, 2)),
    ]


def inception_a() -> Branches:
    """Figure 4, at 35x35."""
    return Branches(
        branch0=inception_branch(384, (96, 1)),
        branch1=inception_branch(384, (64, 1), (96, 3)),
        branch2=inception_branch(384, (64, 1), (96, 3), (96, 3)),
        branch3=inception_branch(384, (96, 1), pool=_average()),
    )


def reduction_a() -> Branches:
    """Figure 7, to 17x17."""
    return Branches(
        branch0=inception_branch(384, (384, 3, 2, 0)),
        branch1=inception_branch(384, (192, 1), (224, 3), (256, 3, 2, 0)),
        branch2=nn.MaxPool2d(3, 2),
    )


def inception_b() -> Branches:
    """Figure 5, at 17x17."""
    return Branches(
        branch0=inception_branch(1024, (384, 1)),
        branch1=inception_branch(1024, (192, 1), (224, (1, 7)), (256, (7, 1))),
        branch2=inception_branch(1024, (192, 1), (192, (7, 1)), (224, (1, 7)), (224, (7, 1)), (256, (1, 7))),
        branch3=inception_branch(1024, (128, 1), pool=_average()),
    )


def reduction_b() -> Branches:
    """Figure 8, to 8x8."""
    return Branches(
        branch0=inception_branch(1024, (192, 1), (192, 3, 2, 0)),
        branch1=inception_branch(1024, (256, 1), (256, (1, 7)), (320, (7, 1)), (320, 3, 2, 0)),
        branch2=nn.MaxPool2d(3, 2),
    )


class InceptionC(nn.Module):
    """Figure 6, at 8x8: two of the branches end in 1x3 and 3x1 side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.branch0 = InceptionConv(1536, 256, 1)
        self.branch1_0 = InceptionConv(1536, 384, 1)
        self.branch1_1a = InceptionConv(384, 256, (1, 3))
        self.branch1_1b = InceptionConv(384, 256, (3, 1))
        self.branch2_0 = InceptionConv(1536, 384, 1)
        self.branch2_1 = InceptionConv(384, 448, (3, 1))
        self.branch2_2 = InceptionConv(448, 512, (1, 3))
        self.branch2_3a = InceptionConv(512, 256, (1, 3))
        self.branch2_3b = InceptionConv(512, 256, (3, 1))
        self.branch3 = inception_branch(1536, (256, 1), pool=_average())

    def forward(self, x: Tensor) -> Tensor:
        one = self.branch1_0(x)
        two = self.branch2_2(self.branch2_1(self.branch2_0(x)))
        sides = [self.branch1_1a(one), self.branch1_1b(one), self.branch2_3a(two), self.branch2_3b(two)]
        return torch.cat([self.branch0(x), *sides, self.branch3(x)], dim=1)


class InceptionV4(nn.Module):
    """Figure 9. The paper has dropout 0.2; timm's default, and so ours, is none."""

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        a, b, c = REPEATS
        self.features = nn.Sequential(
            *stem(in_chans),
            *(inception_a() for _ in range(a)),
            reduction_a(),
            *(inception_b() for _ in range(b)),
            reduction_b(),
            *(InceptionC() for _ in range(c)),
        )
        self.head_drop = nn.Dropout(dropout)
        self.last_linear = nn.Linear(1536, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_linear(self.head_drop(pool_flatten(self.features(x))))


@register("inception_v4", "inceptionv4")
def inception_v4(**kwargs: Any) -> InceptionV4:
    """Inception-v4."""
    return InceptionV4(**kwargs)
