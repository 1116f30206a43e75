# SPDX-License-Identifier: Apache-2.0
"""ShuffleNetV2-50 and SE-ShuffleNetV2-164 (arXiv:1807.11164, table 6) in plain torch.nn."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def _conv(cin: int, cout: int) -> list[nn.Module]:
    return [nn.Conv2d(cin, cout, 1, bias=False), nn.BatchNorm2d(cout)]


def _depthwise(channels: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False), nn.BatchNorm2d(channels)]


class Unit(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, first: bool, large: bool) -> None:
        super().__init__()
        half = cout // 2
        self.first, self.large = first, large
        if first:
            self.branch1 = nn.Sequential(*_depthwise(cin, stride), *_conv(cin, half), nn.ReLU())
        self.branch2 = nn.Sequential(*_conv(cin if first else half, half), nn.ReLU(), *_depthwise(half, stride))
        self.expand, self.bn = _conv(half, half)
        if large:
            self.se = nn.Module()
            self.se.fc1 = nn.Conv2d(half, half // 16, 1)
            self.se.fc2 = nn.Conv2d(half // 16, half, 1)

    def forward(self, x: Tensor) -> Tensor:
        left = self.branch1(x) if self.first else x[:, : x.shape[1] // 2]
        right = x if self.first else x[:, x.shape[1] // 2 :]
        y = self.bn(self.expand(self.branch2(right)))
        if self.large:
            squeezed = torch.relu(self.se.fc1(y.mean((2, 3), keepdim=True)))
            y = y * torch.sigmoid(self.se.fc2(squeezed))
            y = y if self.first else y + right
        both = torch.cat([left, torch.relu(y)], dim=1)
        return nn.functional.channel_shuffle(both, 2)


class ShuffleNetV2(nn.Module):
    def __init__(
        self, repeats: list[int], widths: list[int], stem: list[int], large: bool, num_classes: int = 1000
    ) -> None:
        super().__init__()
        layers, channels = [], 3
        for i, width in enumerate(stem):
            conv = nn.Conv2d(channels, width, 3, 2 if i == 0 else 1, 1, bias=False)
            layers.append(nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU()))
            channels = width
        self.conv1 = nn.Sequential(*layers)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for number, count, width in zip([2, 3, 4, 5], repeats, widths, strict=True):
            units = [Unit(channels, width, 1 if number == 2 else 2, True, large)]
            units += [Unit(width, width, 1, False, large) for _ in range(count - 1)]
            self.add_module(f"stage{number}", nn.Sequential(*units))
            channels = width
        self.conv6 = nn.Sequential(*_conv(channels, 2048), nn.ReLU())
        self.fc = nn.Linear(2048, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        x = self.conv6(self.stage5(self.stage4(self.stage3(self.stage2(x)))))
        return self.fc(x.mean((2, 3)))


def _net(*shape: object) -> Callable[..., nn.Module]:
    return lambda **kwargs: ShuffleNetV2(*shape, **kwargs)


NETS = {
    "shufflenet_v2_50": _net([3, 4, 6, 3], [244, 488, 976, 1952], [64], False),
    "se_shufflenet_v2_164": _net([10, 10, 23, 10], [340, 680, 1360, 2720], [64, 64, 128], True),
}
