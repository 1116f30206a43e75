# SPDX-License-Identifier: Apache-2.0
"""BN-Inception (Inception-v2), arXiv:1502.03167: two 3x3 for each 5x5, batch norm everywhere. Keys: pytorchcv's."""

from collections import OrderedDict
from typing import Any, NamedTuple

from torch import Tensor, nn

from fastcnn.models.blocks import init_weights, pool_flatten
from fastcnn.models.inception_blocks import Branches, InceptionConv
from fastcnn.models.registry import register
from fastcnn.nn import SqueezeExcite


class Row(NamedTuple):
    """One module of figure 5: 1x1, 3x3 with its reduction, double 3x3 with its reduction, projection, pool.

    Without 1x1 and projection the module halves the size: its 3x3 and its pool have stride 2.
    """

    c1: int
    r3: int
    c3: int
    rd: int
    cd: int
    cp: int
    pool: str


#         c1   r3   c3   rd   cd   cp
STAGES = [
    [Row( 64,  64,  64,  64,  96,  32, "avg"),
     Row( 64,  64,  96,  64,  96,  64, "avg")],
    [Row(  0, 128, 160,  64,  96,   0, "max"),
     Row(224,  64,  96,  96, 128, 128, "avg"),
     Row(192,  96, 128,  96, 128, 128, "avg"),
     Row(160, 128, 160, 128, 160, 128, "avg"),
     Row( 96, 128, 192, 160, 192, 128, "avg")],
    [Row(  0, 128, 192, 192, 256,   0, "max"),
     Row(352, 192, 320, 160, 224, 128, "avg"),
     Row(352, 192, 320, 192, 224, 128, "max")],
]  # fmt: skip


def _convs(in_channels: int, *steps: tuple[int, int, int]) -> nn.Sequential:
    layers = OrderedDict[str, nn.Module]()
    for i, (channels, kernel, stride) in enumerate(steps, start=1):
        layers[f"conv{i}"] = InceptionConv(in_channels, channels, kernel, stride, bias=True, eps=1e-5)
        in_channels = channels
    return nn.Sequential(layers)


class InceptionUnit(nn.Module):
    """One row; with ``reduction`` a squeeze-excite of that ratio on its output, arXiv:1709.01507, figure 2."""

    def __init__(self, in_channels: int, row: Row, reduction: int) -> None:
        super().__init__()
        stride = 1 if row.c1 else 2
        pool = nn.AvgPool2d(3, 1, 1) if row.pool == "avg" else nn.MaxPool2d(3, stride, stride % 2, ceil_mode=True)
        branches: list[nn.Module] = [
            _convs(in_channels, (row.r3, 1, 1), (row.c3, 3, stride)),
            _convs(in_channels, (row.rd, 1, 1), (row.cd, 3, 1), (row.cd, 3, stride)),
            pool,
        ]
        if row.c1:
            project = InceptionConv(in_channels, row.cp, 1, bias=True, eps=1e-5)
            branches[2] = nn.Sequential(OrderedDict(pool=pool, conv=project))
            branches.insert(0, InceptionConv(in_channels, row.c1, 1, bias=True, eps=1e-5))
        self.branches = Branches(**{f"branch{i}": branch for i, branch in enumerate(branches, start=1)})
        self.out_channels = row.c1 + row.c3 + row.cd + (row.cp or in_channels)
        width = self.out_channels
        self.se = SqueezeExcite(width, width // reduction, gate="sigmoid") if reduction else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.se(self.branches(x))


class Stem(nn.Module):
    """Everything before the first module, at an eighth of the input's size."""

    def __init__(self, in_chans: int) -> None:
        super().__init__()
        self.conv1 = InceptionConv(in_chans, 64, 7, 2, bias=True, eps=1e-5)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = _convs(64, (64, 1, 1), (192, 3, 1))
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool2(self.conv2(self.pool1(self.conv1(x))))


class BNInception(nn.Module):
    """Figure 5. ``reduction``: of the squeeze-excite behind each module; 0 for none."""

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.0, reduction: int = 0) -> None:
        super().__init__()
        self.features = nn.Sequential(OrderedDict(init_block=Stem(in_chans)))
        channels = 192
        for i, rows in enumerate(STAGES, start=1):
            stage = nn.Sequential()
            for j, row in enumerate(rows, start=1):
                unit = InceptionUnit(channels, row, reduction)
                stage.add_module(f"unit{j}", unit)
                channels = unit.out_channels
            self.features.add_module(f"stage{i}", stage)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.dropout(pool_flatten(self.features(x))))


@register("bn_inception", "bninception", "bn_inception_cadene")
def bn_inception(**kwargs: Any) -> BNInception:
    """BN-Inception."""
    return BNInception(**kwargs)


@register("se_bn_inception")
def se_bn_inception(reduction: int = 16, **kwargs: Any) -> BNInception:
    """BN-Inception with squeeze-excite."""
    return BNInception(reduction=reduction, **kwargs)
