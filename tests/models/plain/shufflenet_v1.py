# SPDX-License-Identifier: Apache-2.0
"""ShuffleNetV1 (arXiv:1707.01083, table 2) at widths that no package has, and SE-ShuffleNet, in plain torch.nn."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def _conv_bn(cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    return nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(cout)


class Unit(nn.Module):
    def __init__(self, cin: int, mid: int, cout: int, stride: int, groups: int, first: int, squeeze: int) -> None:
        super().__init__()
        self.stride = stride
        self.squeeze = squeeze
        branch = cout - cin if stride == 2 else cout
        self.compress_conv1, self.compress_bn1 = _conv_bn(cin, mid, 1, groups=first)
        self.shuffle = nn.ChannelShuffle(groups)
        self.dw_conv2, self.dw_bn2 = _conv_bn(mid, mid, 3, stride, mid)
        self.expand_conv3, self.expand_bn3 = _conv_bn(mid, branch, 1, groups=groups)
        if squeeze:
            self.se = nn.Module()
            self.se.fc1 = nn.Conv2d(branch, branch // squeeze, 1)
            self.se.fc2 = nn.Conv2d(branch // squeeze, branch, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.compress_bn1(self.compress_conv1(x)))
        y = self.dw_bn2(self.dw_conv2(self.shuffle(y)))
        y = self.expand_bn3(self.expand_conv3(y))
        if self.squeeze:
            weights = self.se.fc2(torch.relu(self.se.fc1(y.mean((2, 3), keepdim=True))))
            y = y * torch.sigmoid(weights)
        if self.stride == 1:
            return torch.relu(x + y)
        return torch.relu(torch.cat([y, nn.functional.avg_pool2d(x, 3, stride=2, padding=1)], dim=1))


class ShuffleNet(nn.Module):
    def __init__(
        self, groups: int, stem: int, widths: list[int], mids: list[int], squeeze: int = 0, num_classes: int = 1000
    ) -> None:
        super().__init__()
        self.features = nn.Sequential()
        init = nn.Module()
        init.conv, init.bn = _conv_bn(3, stem, 3, 2)
        self.features.add_module("init_block", init)
        channels = stem
        for i in range(3):
            stage = nn.Sequential()
            for j in range([4, 8, 4][i]):
                stride = 2 if j == 0 else 1
                first = 1 if i == 0 and j == 0 else groups
                stage.add_module(f"unit{j + 1}", Unit(channels, mids[i], widths[i], stride, groups, first, squeeze))
                channels = widths[i]
            self.features.add_module(f"stage{i + 1}", stage)
        self.output = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        init = self.features.init_block
        x = torch.relu(init.bn(init.conv(x)))
        x = nn.functional.max_pool2d(x, 3, stride=2, padding=1)
        x = self.features.stage3(self.features.stage2(self.features.stage1(x)))
        return self.output(x.mean((2, 3)))


def _net(*shape: object) -> Callable[..., nn.Module]:
    return lambda **kwargs: ShuffleNet(*shape, **kwargs)


# Groups, stem, the table's widths times the scale, a quarter of them: rounded where the groups do not divide it.
NETS = {
    "shufflenet_v1_x0_5_g2": _net(2, 12, [100, 200, 400], [26, 50, 100]),
    "shufflenet_v1_x0_5_g4": _net(4, 12, [136, 272, 544], [36, 68, 136]),
    "shufflenet_v1_x0_25_g2": _net(2, 12, [50, 100, 200], [12, 26, 50]),
    "shufflenet_v1_x0_25_g4": _net(4, 12, [68, 136, 272], [16, 36, 68]),
    "shufflenet_v1_x0_25_g8": _net(8, 8, [96, 192, 384], [24, 48, 96]),
    "se_shufflenet_v1_x1_0_g3": _net(3, 24, [240, 480, 960], [60, 120, 240], 16),
}
