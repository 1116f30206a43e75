# SPDX-License-Identifier: Apache-2.0
"""VGG for CIFAR-10, and VGG-16 with torchvision's squeeze-excite behind each activation."""

import functools

from torch import nn
from torchvision.ops import SqueezeExcitation

PLAN = {
    11: "64 M 128 M 256 256 M 512 512 M 512 512 M",
    13: "64 64 M 128 128 M 256 256 M 512 512 M 512 512 M",
    16: "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M",
    19: "64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512 M",
}


class Net(nn.Module):
    def __init__(self, features: list[nn.Module], classifier: list[nn.Module]) -> None:
        super().__init__()
        self.features, self.classifier = nn.Sequential(*features), nn.Sequential(*classifier)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def _features(depth: int, squeeze_excite: bool = False) -> list[nn.Module]:
    layers, before = [], 3
    for word in PLAN[depth].split():
        if word == "M":
            layers.append(nn.MaxPool2d(2))
            continue
        width = int(word)
        layers.append(nn.Conv2d(before, width, 3, padding=1))
        if squeeze_excite:
            layers += [nn.BatchNorm2d(width), nn.ReLU(), SqueezeExcitation(width, width // 16)]
        else:
            layers.append(nn.ReLU())
        before = width
    return layers


def vgg_cifar(depth: int) -> nn.Module:
    linear = [nn.Linear(512, 512), nn.Linear(512, 512), nn.Linear(512, 10)]
    return Net(
        _features(depth),
        [nn.Dropout(), linear[0], nn.ReLU(), nn.Dropout(), linear[1], nn.ReLU(), linear[2]],
    )


def se_vgg16() -> nn.Module:
    linear = [nn.Linear(25088, 4096), nn.Linear(4096, 4096), nn.Linear(4096, 1000)]
    return Net(
        [*_features(16, squeeze_excite=True), nn.AdaptiveAvgPool2d(7)],
        [linear[0], nn.ReLU(), nn.Dropout(), linear[1], nn.ReLU(), nn.Dropout(), linear[2]],
    )


NETS = {f"vgg{depth}_cifar": functools.partial(vgg_cifar, depth) for depth in PLAN} | {"se_vgg16": se_vgg16}
