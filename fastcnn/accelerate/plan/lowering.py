# SPDX-License-Identifier: Apache-2.0
"""Which function lowers which operator of a rewritten graph to steps of a plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from ..program import (
    ACTIVATION,
    BATCH_NORM,
    CHANNEL_SHUFFLE,
    CONV,
    DEPTHWISE,
    GLOBAL_AVG_POOL,
    MAX_POOL,
    POINTWISE,
    SE_GATE,
    SE_SCALE,
    SHUFFLE_CONCAT,
    aten,
)
from . import lower_convs, lower_maps
from .formulas import ARITHMETIC
from .state import Lowering

TABLE: dict[Any, Callable[[Lowering, fx.Node], None]] = {
    CONV: lower_convs.conv,
    DEPTHWISE: lower_convs.depthwise,
    POINTWISE: lower_convs.pointwise,
    SE_GATE: lower_convs.se_gate,
    SE_SCALE: lower_convs.se_scale,
    GLOBAL_AVG_POOL: lower_maps.global_pool,
    MAX_POOL: lower_maps.max_pool,
    ACTIVATION: lower_maps.activation,
    BATCH_NORM: lower_maps.batch_norm,
    CHANNEL_SHUFFLE: lower_maps.shuffle,
    SHUFFLE_CONCAT: lower_maps.shuffle_concat,
    aten.avg_pool2d.default: lower_maps.mean_pool,
    aten.linear.default: lower_convs.linear,
    aten.adaptive_avg_pool2d.default: lower_maps.adaptive_pool,
    aten._adaptive_avg_pool2d.default: lower_maps.adaptive_pool,
    aten.mean.dim: lower_maps.global_pool,
    **dict.fromkeys(ARITHMETIC, lower_maps.arithmetic),
    aten.cat.default: lower_maps.concat,
    aten.slice.Tensor: lower_maps.slice,
    aten.reshape.default: lower_maps.reshape,
    aten.contiguous.default: lower_maps.alias,
}
FREE = (aten.slice.Tensor, aten.reshape.default, aten.contiguous.default)  # lower to no step


def lower(node: fx.Node, low: Lowering) -> None:
    """Adds the steps of ``node``."""
    if node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem":
        lower_maps.first_of_pair(low, node)
    else:
        TABLE[node.target](low, node)
