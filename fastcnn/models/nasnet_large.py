# SPDX-License-Identifier: Apache-2.0
"""NASNet-A (6 @ 4032), arXiv:1707.07012, with timm's keys and TensorFlow's SAME padding; its means count the padding."""

from typing import Any

from fastcnn.models.nasnet import NORMAL, REDUCTION, CellNet
from fastcnn.models.nasnet_cells import Style
from fastcnn.models.nasnet_ops import Names
from fastcnn.models.registry import register


def order(repeats: int) -> list[str]:
    """Stems, normal cells counted through, and the two reduction cells between their stages."""
    cells = [f"cell_{i}" for i in range(3 * repeats)]
    for i in (1, 0):
        cells.insert((i + 1) * repeats, f"reduction_cell_{i}")
    return ["cell_stem_0", "cell_stem_1", *cells]


NAMES = Names(
    stem="conv0",
    order=order,
    x="conv_1x1",
    prev="conv_prev_1x1",
    halves=("path_1.conv", "path_2.conv", "final_path_bn"),
    operand="comb_iter_{}_{}",
    depthwise="separable_{}.depthwise_conv2d",
    pointwise="separable_{}.pointwise_conv2d",
    bn="bn_sep_{}",
    head="last_linear",
)


@register("nasnet_a_large", "nasnetalarge")
def nasnet_a_large(repeats: int = 6, filters: int = 168, stem: int = 96, **kwargs: Any) -> CellNet:
    """NASNet-A (6 @ 4032), for 331 pixels."""
    return CellNet(NORMAL, REDUCTION, repeats, filters, stem, Style(NAMES, divisor=9), skip_reduction=True, **kwargs)
