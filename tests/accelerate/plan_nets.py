# SPDX-License-Identifier: Apache-2.0
"""A net with all that plans treat apart: a stem, depthwise with a gate, a residual, a concatenation, a classifier."""

import torch
from torch import Tensor, nn

import fastcnn


class Gate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return x * scale


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.expand = nn.Sequential(nn.Conv2d(12, 20, 1), nn.BatchNorm2d(20), nn.Hardswish())
        self.depthwise = nn.Sequential(nn.Conv2d(20, 20, 3, padding=1, groups=20), nn.ReLU())
        self.gate = Gate(20)
        self.project = nn.Conv2d(20, 12, 1)
        self.grouped = nn.Conv2d(24, 18, 3, groups=2)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = x + self.project(self.gate(self.depthwise(self.expand(x))))
        y = self.pool(torch.relu(self.grouped(torch.cat([x, y], 1))))
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(y, 1), 1))


def net() -> nn.Module:
    torch.manual_seed(0)
    found = Net()
    with torch.no_grad():
        for module in found.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(), module.running_var.uniform_(0.5, 2.0)
    return found.eval()


def accelerated(size: int = 24, **options: object) -> tuple[nn.Module, nn.Module]:
    """The net and its accelerated form."""
    original = net()
    return original, fastcnn.accelerate(original, torch.randn(2, 3, size, size), **options)
