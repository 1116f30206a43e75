# SPDX-License-Identifier: Apache-2.0
"""Network in Network for CIFAR-10 in one row of layers, and for ImageNet."""

from torch import nn


class Net(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.classifier = nn.Sequential(*layers)

    def forward(self, x):
        return self.classifier(x).mean((2, 3))


def _mlpconv(inputs: int, widths: tuple[int, int, int], kernel: int, stride: int, padding: int) -> list[nn.Module]:
    first, second, third = widths
    return [
        nn.Conv2d(inputs, first, kernel, stride, padding), nn.ReLU(),
        nn.Conv2d(first, second, 1), nn.ReLU(),
        nn.Conv2d(second, third, 1), nn.ReLU(),
    ]  # fmt: skip


def nin_cifar10_seed() -> nn.Module:
    return Net(
        *_mlpconv(3, (192, 160, 96), 5, 1, 2), nn.MaxPool2d(3, 2, 1), nn.Dropout(0.5),
        *_mlpconv(96, (192, 192, 192), 5, 1, 2), nn.AvgPool2d(3, 2, 1), nn.Dropout(0.5),
        *_mlpconv(192, (192, 192, 10), 3, 1, 1), nn.AvgPool2d(8, 1),
    )  # fmt: skip


def nin_imagenet() -> nn.Module:
    return Net(
        *_mlpconv(3, (96, 96, 96), 11, 4, 0), nn.MaxPool2d(3, 2, ceil_mode=True),
        *_mlpconv(96, (256, 256, 256), 5, 1, 2), nn.MaxPool2d(3, 2, ceil_mode=True),
        *_mlpconv(256, (384, 384, 384), 3, 1, 1), nn.MaxPool2d(3, 2, ceil_mode=True), nn.Dropout(0.5),
        *_mlpconv(384, (1024, 1024, 1000), 3, 1, 1),
    )  # fmt: skip


NETS = {"nin_cifar10_seed": nin_cifar10_seed, "nin_imagenet": nin_imagenet}
