# SPDX-License-Identifier: Apache-2.0
"""DenseNet without bottleneck and compression, arXiv:1608.06993 section 3, at the width and depth of its CIFAR table."""

from collections import OrderedDict

import torch
from torch import Tensor, nn


def bn_relu_conv(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(OrderedDict(bn=nn.BatchNorm2d(in_channels), relu=nn.ReLU(), conv=conv))


class Dense(nn.Module):
    """Append ``growth`` maps."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.conv = bn_relu_conv(channels, growth, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(x)], 1)


class Net(nn.Module):
    """16 maps; three blocks of 12 layers that each add 12; between them a 1x1 keeps all maps, a mean halves the size."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        channels = 16
        self.features = nn.Sequential(OrderedDict(init_block=nn.Conv2d(3, channels, 3, padding=1, bias=False)))
        for block in (1, 2, 3):
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            if block > 1:
                transition = OrderedDict(conv=bn_relu_conv(channels, channels, 1), pool=nn.AvgPool2d(2))
                layers[f"trans{block}"] = nn.Sequential(transition)
            for layer in range(1, 13):
                layers[f"unit{layer}"] = Dense(channels, 12)
                channels += 12
            self.features.add_module(f"stage{block}", nn.Sequential(layers))
        self.features.add_module("post_activ", nn.Sequential(OrderedDict(bn=nn.BatchNorm2d(channels), relu=nn.ReLU())))
        self.output = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.features(x).mean((2, 3)))


NETS = {"densenet40_k12_paper_cifar10": Net}
