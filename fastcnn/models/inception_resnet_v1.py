# SPDX-License-Identifier: Apache-2.0
"""Inception-ResNet-v1, arXiv:1602.07261: Inception modules as scaled residuals. Keys: pytorchcv's.

Its head is FaceNet's, with 512 features between the pool and the classes; the paper's is one linear layer.
"""

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from fastcnn.models.blocks import init_weights, pool_flatten
from fastcnn.models.inception_blocks import Branches, InceptionConv, scaled_residual
from fastcnn.models.registry import register
from fastcnn.nn import fused_bn_act

REPEATS = (5, 10, 5)  # of the residual modules A, B, C
SCALES = (0.17, 0.10, 0.20)

Steps = list[tuple[Any, ...]]  # (channels, kernel[, stride, padding]) of each convolution

MODULE_A: list[Steps] = [[(32, 1)], [(32, 1), (32, 3)], [(32, 1), (32, 3), (32, 3)]]  # figure 10
MODULE_B: list[Steps] = [[(128, 1)], [(128, 1), (128, (1, 7)), (128, (7, 1))]]  # figure 11
MODULE_C: list[Steps] = [[(192, 1)], [(192, 1), (192, (1, 3)), (192, (3, 1))]]  # figure 13
REDUCTION_A: list[Steps] = [[(384, 3, 2, 0)], [(192, 1), (192, 3), (256, 3, 2, 0)]]  # figure 7
REDUCTION_B: list[Steps] = [  # figure 12
    [(256, 1), (384, 3, 2, 0)],
    [(256, 1), (256, 3, 2, 0)],
    [(256, 1), (256, 3), (256, 3, 2, 0)],
]


def _branch(in_channels: int, steps: Steps) -> nn.Sequential:
    layers = OrderedDict[str, nn.Module]()
    for i, step in enumerate(steps, start=1):
        layers[f"conv{i}"] = InceptionConv(in_channels, *step)
        in_channels = step[0]
    if len(steps) == 1 and steps[0][1] == 1:
        return nn.Sequential(OrderedDict(conv=layers["conv1"]))
    return nn.Sequential(OrderedDict(conv_list=nn.Sequential(layers)))


def _branches(in_channels: int, table: list[Steps]) -> dict[str, nn.Module]:
    return {f"branch{i}": _branch(in_channels, steps) for i, steps in enumerate(table, start=1)}


class ResidualModule(nn.Module):
    """``activation(x + scale * conv(branches(x)))``."""

    def __init__(self, channels: int, table: list[Steps], scale: float, activation: str = "relu") -> None:
        super().__init__()
        self.branches = Branches(**_branches(channels, table))
        self.conv = nn.Conv2d(sum(steps[-1][0] for steps in table), channels, 1)
        self.scale, self.activation = scale, activation

    def forward(self, x: Tensor) -> Tensor:
        return scaled_residual(self.conv, self.branches(x), x, self.scale, self.activation)


class Reduction(nn.Module):
    """Branches of stride 2 and a max pool; the channels of all are concatenated."""

    def __init__(self, in_channels: int, table: list[Steps]) -> None:
        super().__init__()
        pool = {f"branch{len(table) + 1}": nn.MaxPool2d(3, 2)}
        self.branches = Branches(**_branches(in_channels, table), **pool)

    def forward(self, x: Tensor) -> Tensor:
        return self.branches(x)


class Head(nn.Module):
    """FaceNet's: dropout, 512 features with batch norm, classes."""

    def __init__(self, in_channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc1 = nn.Linear(in_channels, 512, bias=False)
        self.bn = nn.BatchNorm1d(512, eps=1e-3)
        self.fc2 = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(fused_bn_act(self.bn, self.fc1(self.dropout(x))))


def stem(in_chans: int) -> nn.Sequential:
    """Figure 14, to 35x35."""
    return nn.Sequential(
        OrderedDict(
            conv1=InceptionConv(in_chans, 32, 3, 2, padding=0),
            conv2=InceptionConv(32, 32, 3, padding=0),
            conv3=InceptionConv(32, 64, 3),
            pool=nn.MaxPool2d(3, 2),
            conv4=InceptionConv(64, 80, 1),
            conv5=InceptionConv(80, 192, 3, padding=0),
            conv6=InceptionConv(192, 256, 3, 2, padding=0),
        )
    )


class InceptionResNetV1(nn.Module):
    """Figure 15, and one more module C, without a scale and an activation."""

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.6) -> None:
        super().__init__()
        a, b, c = REPEATS
        stages: list[list[nn.Module]] = [
            [ResidualModule(256, MODULE_A, SCALES[0]) for _ in range(a)],
            [Reduction(256, REDUCTION_A), *(ResidualModule(896, MODULE_B, SCALES[1]) for _ in range(b))],
            [Reduction(896, REDUCTION_B), *(ResidualModule(1792, MODULE_C, SCALES[2]) for _ in range(c))],
        ]
        stages[2].append(ResidualModule(1792, MODULE_C, 1.0, activation="identity"))
        self.features = nn.Sequential(OrderedDict(init_block=stem(in_chans)))
        for i, units in enumerate(stages, start=1):
            named = OrderedDict((f"unit{j}", unit) for j, unit in enumerate(units, start=1))
            self.features.add_module(f"stage{i}", nn.Sequential(named))
        self.output = Head(1792, num_classes, dropout)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(pool_flatten(self.features(x)))


@register("inception_resnet_v1", "inceptionresnetv1")
def inception_resnet_v1(**kwargs: Any) -> InceptionResNetV1:
    """Inception-ResNet-v1."""
    return InceptionResNetV1(**kwargs)
