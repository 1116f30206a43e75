# SPDX-License-Identifier: Apache-2.0
"""SE-MobileNet (arXiv:1709.01507, table 3) in plain torch.nn."""

import torch
from torch import Tensor, nn


class ConvBN(nn.Module):
    def __init__(self, cin: int, cout: int, kernel: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(cout)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class SE(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 16, 1)
        self.fc2 = nn.Conv2d(channels // 16, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class Unit(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.dw_conv = ConvBN(cin, cin, 3, stride, groups=cin)
        self.pw_conv = ConvBN(cin, cout, 1, 1)
        self.se = SE(cout)

    def forward(self, x: Tensor) -> Tensor:
        return self.se(self.pw_conv(self.dw_conv(x)))


class SEMobileNet(nn.Module):
    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential()
        self.features.add_module("init_block", ConvBN(3, 32, 3, 2))
        self.features.add_module("stage1", nn.Sequential())
        self.features.stage1.add_module("unit1", Unit(32, 64, 1))
        for number, cin, cout, units in ((2, 64, 128, 2), (3, 128, 256, 2), (4, 256, 512, 6), (5, 512, 1024, 2)):
            stage = nn.Sequential()
            stage.add_module("unit1", Unit(cin, cout, 2))
            for j in range(2, units + 1):
                stage.add_module(f"unit{j}", Unit(cout, cout, 1))
            self.features.add_module(f"stage{number}", stage)
        self.output = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.features(x).mean((2, 3)))


NETS = {"se_mobilenet_v1": SEMobileNet}
