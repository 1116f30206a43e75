# SPDX-License-Identifier: Apache-2.0
"""SE-BN-Inception: pytorchcv's BN-Inception with torchvision's squeeze-excite behind each of its ten modules."""

from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from fastcnn.reference import reference_model


class SEUnit(nn.Module):
    def __init__(self, unit: nn.Module, channels: int) -> None:
        super().__init__()
        self.branches = unit.branches
        self.se = SqueezeExcitation(channels, channels // 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.se(self.branches(x))


def se_bn_inception(**kwargs) -> nn.Module:
    net = reference_model("pytorchcv:bninception", **kwargs)
    channels = {"stage1": (256, 320), "stage2": (576, 576, 576, 608, 608), "stage3": (1056, 1024, 1024)}
    for name, widths in channels.items():
        units = [SEUnit(unit, width) for unit, width in zip(getattr(net.features, name), widths, strict=True)]
        setattr(net.features, name, nn.Sequential())
        for i, unit in enumerate(units, start=1):
            getattr(net.features, name).add_module(f"unit{i}", unit)
    net.features.final_pool = nn.AdaptiveAvgPool2d(1)
    return net


NETS = {"se_bn_inception": se_bn_inception}
