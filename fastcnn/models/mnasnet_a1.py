# SPDX-License-Identifier: Apache-2.0
"""MnasNet-A1 and MnasNet-small, arXiv:1807.11626: searched inverted residuals, some with squeeze-excite. Keys: timm's."""

from typing import Any

from fastcnn.models.blocks import make_divisible
from fastcnn.models.blocks_timm import Style, TimmNet
from fastcnn.models.registry import register
from fastcnn.models.rows import Row

#        t  k    c  n  s   se
A1 = [  # figure 7
    Row(1, 3,  16, 1, 1, False),
    Row(6, 3,  24, 2, 2, False),
    Row(3, 5,  40, 3, 2, True),
    Row(6, 3,  80, 4, 2, False),
    Row(6, 3, 112, 2, 1, True),
    Row(6, 5, 160, 3, 2, True),
    Row(6, 3, 320, 1, 1, False),
]  # fmt: skip

SMALL = [
    Row(1, 3,   8, 1, 1, False),
    Row(3, 3,  16, 1, 2, False),
    Row(6, 3,  16, 2, 2, False),
    Row(6, 5,  32, 4, 2, True),
    Row(6, 3,  32, 3, 1, True),
    Row(6, 5,  88, 3, 2, True),
    Row(6, 3, 144, 1, 1, False),
]  # fmt: skip


class MnasNetA1(TimmNet):
    """Figure 7; ``width_mult`` scales all rows, neither the stem nor the last convolution."""

    def __init__(self, rows: list[Row] = A1, stem: int = 32, width_mult: float = 1.0, **kwargs: Any) -> None:
        rows = [row._replace(c=make_divisible(row.c * width_mult)) for row in rows]
        super().__init__(rows, stem, 1280, Style(), **kwargs)


@register("mnasnet_a1", "semnasnet_100", "mnasnet_a1_cv")
def mnasnet_a1(**kwargs: Any) -> MnasNetA1:
    """MnasNet-A1, figure 7."""
    return MnasNetA1(**kwargs)


@register("mnasnet_small")
def mnasnet_small(**kwargs: Any) -> MnasNetA1:
    """MnasNet-small, searched for a lower latency."""
    return MnasNetA1(SMALL, 8, **kwargs)
