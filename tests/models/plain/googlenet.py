# SPDX-License-Identifier: Apache-2.0
"""GoogLeNet of arXiv:1409.4842, table 1, and its CIFAR form, layer by layer in torch.nn."""

import torch
from torch import Tensor, nn

# in, 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection
TABLE = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}


class Conv(nn.Module):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__()
        self.conv = nn.Conv2d(*args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x))


class Inception(nn.Module):
    def __init__(self, i: int, c1: int, r3: int, c3: int, r5: int, c5: int, cp: int) -> None:
        super().__init__()
        self.branch1 = Conv(i, c1, 1)
        self.branch2 = nn.Sequential(Conv(i, r3, 1), Conv(r3, c3, 3, padding=1))
        self.branch3 = nn.Sequential(Conv(i, r5, 1), Conv(r5, c5, 5, padding=2))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), Conv(i, cp, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], dim=1)


class Head(nn.Module):
    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv = Conv(in_channels, 128, 1)
        self.fc1 = nn.Linear(2048, 1024)
        self.fc2 = nn.Linear(1024, num_classes)
        self.dropout = nn.Dropout(0.7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(nn.functional.avg_pool2d(x, 5, 3))
        return self.fc2(self.dropout(torch.relu(self.fc1(x.flatten(1)))))


class GoogLeNet5x5(nn.Module):
    def __init__(self, num_classes: int = 1000, aux_logits: bool = False) -> None:
        super().__init__()
        self.conv1 = Conv(3, 64, 7, stride=2, padding=3)
        self.conv2 = Conv(64, 64, 1)
        self.conv3 = Conv(64, 192, 3, padding=1)
        for name, row in TABLE.items():
            setattr(self, f"inception{name}", Inception(*row))
        self.aux1 = Head(512, num_classes) if aux_logits else None
        self.aux2 = Head(528, num_classes) if aux_logits else None
        self.dropout = nn.Dropout(0.4)
        self.fc = nn.Linear(1024, num_classes)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.lrn = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # torch's start fades out over 22 layers without batch norm
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        x = self.lrn(self.pool(self.conv1(x)))
        x = self.pool(self.lrn(self.conv3(self.conv2(x))))
        x = self.pool(self.inception3b(self.inception3a(x)))
        a = self.inception4a(x)
        d = self.inception4d(self.inception4c(self.inception4b(a)))
        x = self.pool(self.inception4e(d))
        x = self.inception5b(self.inception5a(x))
        x = self.fc(self.dropout(x.mean(dim=(2, 3))))
        return (x, self.aux2(d), self.aux1(a)) if self.training and self.aux1 is not None else x


class InceptionCifar(nn.Module):
    def __init__(self, i: int, c1: int, r3: int, c3: int, r5: int, c5: int, cp: int) -> None:
        super().__init__()
        self.b1 = nn.Sequential(nn.Conv2d(i, c1, 1), nn.BatchNorm2d(c1), nn.ReLU())
        self.b2 = nn.Sequential(
            nn.Conv2d(i, r3, 1), nn.BatchNorm2d(r3), nn.ReLU(),
            nn.Conv2d(r3, c3, 3, padding=1), nn.BatchNorm2d(c3), nn.ReLU(),
        )  # fmt: skip
        self.b3 = nn.Sequential(
            nn.Conv2d(i, r5, 1), nn.BatchNorm2d(r5), nn.ReLU(),
            nn.Conv2d(r5, c5, 3, padding=1), nn.BatchNorm2d(c5), nn.ReLU(),
            nn.Conv2d(c5, c5, 3, padding=1), nn.BatchNorm2d(c5), nn.ReLU(),
        )  # fmt: skip
        self.b4 = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1), nn.Conv2d(i, cp, 1), nn.BatchNorm2d(cp), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.b1(x), self.b2(x), self.b3(x), self.b4(x)], dim=1)


class GoogLeNetCifar(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.pre_layers = nn.Sequential(nn.Conv2d(3, 192, 3, padding=1), nn.BatchNorm2d(192), nn.ReLU())
        for name, row in TABLE.items():
            setattr(self, f"{name[1]}{name[0]}", InceptionCifar(*row))
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.linear = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.b3(self.a3(self.pre_layers(x))))
        x = self.maxpool(self.e4(self.d4(self.c4(self.b4(self.a4(x))))))
        return self.linear(self.b5(self.a5(x)).mean(dim=(2, 3)))


NETS = {"googlenet_5x5": GoogLeNet5x5, "googlenet_cifar": GoogLeNetCifar}
