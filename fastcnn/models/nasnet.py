# SPDX-License-Identifier: Apache-2.0
"""NASNet-A, arXiv:1707.07012, and the frame of all nets of searched cells. Keys of the mobile net: pytorchcv's."""

from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from fastcnn.models.blocks import init_weights, pool_flatten
from fastcnn.models.nasnet_cells import Cell, Genotype, Style
from fastcnn.models.nasnet_ops import Names, norm, put
from fastcnn.models.registry import register
from fastcnn.nn import fused_conv_bn_act

# Figure 4. Each step adds what two operations make of a state: 0 is the cell before the last, 1 the last, 2 and on are
# the steps' own.
NORMAL = Genotype(
    steps=(
        (("sep5", 1), ("sep3", 0)),
        (("sep5", 0), ("sep3", 0)),
        (("avg", 1), ("none", 0)),
        (("avg", 0), ("avg", 0)),
        (("sep3", 1), ("none", 1)),
    ),
    output=(0, 2, 3, 4, 5, 6),
)
REDUCTION = Genotype(
    steps=(
        (("sep5", 1), ("sep7", 0)),
        (("max", 1), ("sep7", 0)),
        (("avg", 1), ("sep5", 0)),
        (("none", 3), ("avg", 2)),
        (("sep3", 2), ("max", 1)),
    ),
    output=(3, 4, 5, 6),
)


class CellNet(nn.Module):
    """Figure 2: a 3x3 stem, two reduction cells, then N normal cells three times with a reduction cell between.

    Args:
        repeats: N.
        filters: F, channels of the operations in the first normal cells; they double with every reduction.
        stem: channels of the stem.
        stem_style: of the first cell.
        skip_reduction: whether a cell behind a reduction cell reads, as the one before the last, the cell that the
            reduction cell itself read so; else the reduction cell's input.
    """

    def __init__(
        self, normal: Genotype, reduction: Genotype, repeats: int, filters: int, stem: int, style: Style,
        stem_style: Style | None = None, skip_reduction: bool = False, num_classes: int = 1000, in_chans: int = 3,
        dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        names = style.names
        put(self, f"{names.stem}.conv", nn.Conv2d(in_chans, stem, 3, 2, bias=False))
        put(self, f"{names.stem}.bn", norm(stem))
        stages = [[False] * repeats if i == 0 else [True] + [False] * repeats for i in range(3)]
        plan = [(True, filters // 4), (True, filters // 2)]
        plan += [(reduces, filters << i) for i, stage in enumerate(stages) for reduces in stage]
        x, prev, halve = stem, None, False
        self.cells: list[tuple[str, bool]] = []
        for i, (path, (reduces, channels)) in enumerate(zip(names.order(repeats), plan, strict=True)):
            genotype = reduction if reduces else normal
            how = stem_style if stem_style and i == 0 else style
            put(self, path, Cell(genotype, how, x, prev, channels, 1 + reduces, halve))
            keeps = skip_reduction and reduces and i > 1
            prev, x, halve = prev if keeps else x, channels * len(genotype.output), reduces
            self.cells.append((path, keeps))
        self.dropout = nn.Dropout(dropout)
        put(self, names.head, nn.Linear(x, num_classes))
        self.head, self.stem = attrgetter(names.head), attrgetter(f"{names.stem}.conv", f"{names.stem}.bn")
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        prev, x = None, fused_conv_bn_act(*self.stem(self), x, "relu")
        for path, keeps in self.cells:
            cell = self.get_submodule(path)
            prev, x = prev if keeps else x, cell(x, prev)
        return self.head(self)(self.dropout(pool_flatten(x)))


def _order(repeats: int) -> list[str]:
    stages = [f"features.stage{i}.unit{j}" for i in (1, 2, 3) for j in range(1, repeats + (2 if i > 1 else 1))]
    return ["features.stem1_unit", "features.stem2_unit", *stages]


NAMES = Names(
    stem="features.init_block",
    order=_order,
    x="conv1x1",
    prev="conv1x1_prev",
    halves=("path.path1.conv", "path.path2.conv", "path.bn"),
    operand="comb{}_{}",
    depthwise="conv{}.conv.dw_conv",
    pointwise="conv{}.conv.pw_conv",
    bn="conv{}.bn",
    head="output.fc",
)


@register("nasnet_a_mobile", "nasnet_4a1056", "nasnet_a_mobile_pm", "nasnetamobile")
def nasnet_a_mobile(repeats: int = 4, filters: int = 44, stem: int = 32, **kwargs: Any) -> CellNet:
    """NASNet-A (4 @ 1056), for mobile devices."""
    styles = Style(NAMES), Style(NAMES, same=False)
    return CellNet(NORMAL, REDUCTION, repeats, filters, stem, *styles, **{"dropout": 0.5} | kwargs)
