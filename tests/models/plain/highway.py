# SPDX-License-Identifier: Apache-2.0
"""A convolutional highway network with the widths of FitNet 1."""

from torch import nn


class Plain(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.transform = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x):
        return self.transform(x).relu()


class Highway(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.transform = nn.Conv2d(channels, channels, 3, padding=1)
        self.gate = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        gate = self.gate(x).sigmoid()
        return self.transform(x).relu() * gate + x * (1 - gate)


class HighwayCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential()
        self.features.add_module("stage1", nn.Sequential(Plain(3, 16), Highway(16), Highway(16)))
        self.features.add_module("pool2", nn.MaxPool2d(2))
        self.features.add_module("stage2", nn.Sequential(Plain(16, 32), Highway(32), Highway(32)))
        self.features.add_module("pool3", nn.MaxPool2d(2))
        self.features.add_module("stage3", nn.Sequential(Plain(32, 48), Highway(48), Plain(48, 64)))
        self.head = nn.Conv2d(64, 10, 1)

    def forward(self, x):
        return self.head(self.features(x)).mean((2, 3))


NETS = {"highway_cnn": HighwayCNN}
