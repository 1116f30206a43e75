# SPDX-License-Identifier: Apache-2.0
"""The residual nets of documents 001 and 002, layer by layer."""

import torch
from torch import Tensor, nn


class Sum(nn.Module):
    """ReLU of a branch and a shortcut, under the keys that the documents give their layers."""

    def __init__(self, layers: dict[str, nn.Module], relu_after: tuple[str, ...], shortcut: tuple | None) -> None:
        super().__init__()
        self.order, self.relu_after, self.shortcut_key = list(layers), relu_after, None
        for key, layer in layers.items():
            self.add_module(key, layer)
        if shortcut:
            self.shortcut_key = shortcut[0]
            self.add_module(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for key in self.order:
            y = getattr(self, key)(y)
            if key in self.relu_after:
                y = torch.relu(y)
        return torch.relu(y + (getattr(self, self.shortcut_key)(x) if self.shortcut_key else x))


def basic_001(in_channels: int, channels: int, stride: int) -> Sum:
    """Two 3x3 convolutions; where the shape changes a third in the shortcut."""
    shortcut = None
    if stride == 2:
        conv = nn.Conv2d(in_channels, channels, 3, 2, 1, bias=False)
        shortcut = "downsample", nn.Sequential(conv, nn.BatchNorm2d(channels))
    layers = {
        "conv1": nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False),
        "bn1": nn.BatchNorm2d(channels),
        "conv2": nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
        "bn2": nn.BatchNorm2d(channels),
    }
    return Sum(layers, ("bn1",), shortcut)


def bottleneck_002(in_channels: int, channels: int, stride: int) -> Sum:
    """1x1, 3x3 with the stride, 1x1 to four times the channels."""
    shortcut = None
    if in_channels != 4 * channels:
        conv = nn.Conv2d(in_channels, 4 * channels, 1, stride, bias=False)
        shortcut = "shortcut", nn.Sequential(conv, nn.BatchNorm2d(4 * channels))
    layers = {
        "conv1": nn.Conv2d(in_channels, channels, 1, bias=False),
        "bn1": nn.BatchNorm2d(channels),
        "conv2": nn.Conv2d(channels, channels, 3, stride, 1, bias=False),
        "bn2": nn.BatchNorm2d(channels),
        "conv3": nn.Conv2d(channels, 4 * channels, 1, bias=False),
        "bn3": nn.BatchNorm2d(4 * channels),
    }
    return Sum(layers, ("bn1", "bn2"), shortcut)


class Cifar001(nn.Module):
    """16, 32, 64 channels at 32, 16, 8 pixels, two blocks each."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(basic_001(16, 16, 1), basic_001(16, 16, 1))
        self.layer2 = nn.Sequential(basic_001(16, 32, 2), basic_001(32, 32, 1))
        self.layer3 = nn.Sequential(basic_001(32, 64, 2), basic_001(64, 64, 1))
        self.pool = nn.AvgPool2d(8)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv(x)))
        x = self.pool(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.flatten(1))


def _stage_002(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    rest = [bottleneck_002(4 * channels, channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(bottleneck_002(in_channels, channels, stride), *rest)


class ResNet50Of002(nn.Module):
    """3, 4, 6, 3 bottlenecks of 64, 128, 256, 512 channels."""

    def __init__(self, maxpool: bool) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.maxpool = nn.MaxPool2d(3, 2, 1) if maxpool else None
        self.stage1 = _stage_002(64, 64, 3, 1)
        self.stage2 = _stage_002(256, 128, 4, 2)
        self.stage3 = _stage_002(512, 256, 6, 2)
        self.stage4 = _stage_002(1024, 512, 3, 2)
        self.fc = nn.Linear(2048, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        if self.maxpool:
            x = self.maxpool(x)
        x = self.stage4(self.stage3(self.stage2(self.stage1(x))))
        return self.fc(x.mean((2, 3)))


class SENextBlock002(nn.Module):
    """256 channels, 128 in 32 groups, 256; squeezed to 16 channels, gated by a sigmoid; the input added."""

    def __init__(self) -> None:
        super().__init__()

        def conv_bn(*args: int, **kwargs: int) -> nn.ModuleDict:
            conv = nn.Conv2d(*args, **kwargs, bias=False)
            return nn.ModuleDict({"conv": conv, "bn": nn.BatchNorm2d(conv.out_channels)})

        self.conv_bn1 = conv_bn(256, 128, 1)
        self.conv_bn2 = conv_bn(128, 128, 3, padding=1, groups=32)
        self.conv_bn3 = conv_bn(128, 256, 1)
        self.scale = nn.ModuleDict({"fc1": nn.Conv2d(256, 16, 1), "fc2": nn.Conv2d(16, 256, 1)})

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv_bn1["bn"](self.conv_bn1["conv"](x)))
        y = torch.relu(self.conv_bn2["bn"](self.conv_bn2["conv"](y)))
        y = self.conv_bn3["bn"](self.conv_bn3["conv"](y))
        gate = torch.sigmoid(self.scale["fc2"](torch.relu(self.scale["fc1"](y.mean((2, 3), keepdim=True)))))
        return torch.relu(y * gate + x)


NETS = {
    "senext_block_seed": SENextBlock002,
    "resnet_cifar_seed": Cifar001,
    "resnet50_seed002": lambda: ResNet50Of002(maxpool=True),
    "resnet50_seed002_nomaxpool": lambda: ResNet50Of002(maxpool=False),
}
