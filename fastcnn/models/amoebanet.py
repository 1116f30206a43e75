# SPDX-License-Identifier: Apache-2.0
"""AmoebaNet-A, arXiv:1802.01548: the cells of figure 5 in NASNet's frame, with the keys of timm's NASNet.

Stride 2 pads both sides alike, and the means leave the padding out. A 1x7 and the 7x1 behind it share one BN.
"""

from typing import Any

from torch import Tensor, nn

from fastcnn.models.nasnet import CellNet
from fastcnn.models.nasnet_cells import Genotype, Style
from fastcnn.models.nasnet_large import NAMES
from fastcnn.models.nasnet_ops import SEPARABLE, Names, norm
from fastcnn.models.registry import register
from fastcnn.nn import fused_conv_bn_act

NORMAL = Genotype(
    steps=(
        (("avg", 0), ("max", 1)),
        (("sep3", 0), ("sep5", 2)),
        (("sep3", 0), ("avg", 3)),
        (("sep3", 1), ("none", 1)),
        (("none", 0), ("avg", 1)),
    ),
    output=(4, 5, 6),
)
REDUCTION = Genotype(
    steps=(
        (("avg", 0), ("sep3", 1)),
        (("max", 0), ("sep7", 2)),
        (("sep7", 0), ("avg", 1)),
        (("max", 0), ("max", 1)),
        (("conv7", 0), ("sep3", 5)),
    ),
    output=(3, 4, 6),
)


class Factorised7(nn.Module):
    """1x7, then 7x1, and one BN; the input is activated already. The stride is along the axis of each kernel."""

    def __init__(self, in_channels: int, channels: int, stride: int, same: bool, names: Names) -> None:
        super().__init__()
        self.conv_1x7 = nn.Conv2d(in_channels, channels, (1, 7), (1, stride), (0, 3), bias=False)
        self.conv_7x1 = nn.Conv2d(channels, channels, (7, 1), (stride, 1), (3, 0), bias=False)
        self.bn = norm(channels)

    def forward(self, x: Tensor, residual: Tensor | None = None, kind: str = "identity") -> Tensor:
        return fused_conv_bn_act(self.conv_7x1, self.bn, fused_conv_bn_act(self.conv_1x7, None, x), kind, residual)


@register("amoebanet_a")
def amoebanet_a(repeats: int = 4, filters: int = 50, stem: int = 32, **kwargs: Any) -> CellNet:
    """AmoebaNet-A, for mobile devices: N = 4, F = 50."""
    style = Style(NAMES, same=False, convolutions=SEPARABLE | {"conv7": Factorised7})
    return CellNet(NORMAL, REDUCTION, repeats, filters, stem, style, **kwargs)
