# SPDX-License-Identifier: Apache-2.0
"""The narrower and wider ShuffleNetV1 of tables 2 and 5, arXiv:1707.01083, and the one with squeeze-excite.

The stems are pytorchcv's, 24 scaled, where it has the net; else those with which the multiply-adds come nearest to the
tables', among the widths that leave the first unit a multiple of its groups.
"""

from typing import Any

from fastcnn.models.registry import register
from fastcnn.models.shufflenet_v1 import ShuffleNetV1


@register("shufflenet_v1_x0_25_g1", "shufflenet_g1_wd4")
def shufflenet_v1_x0_25_g1(**kwargs: Any) -> ShuffleNetV1:
    """ShuffleNet 0.25x, without groups."""
    return ShuffleNetV1(1, scale=0.25, **kwargs)


@register("shufflenet_v1_x0_25_g2")
def shufflenet_v1_x0_25_g2(**kwargs: Any) -> ShuffleNetV1:
    """ShuffleNet 0.25x, 2 groups."""
    return ShuffleNetV1(2, scale=0.25, stem=12, **kwargs)


@register("shufflenet_v1_x0_25_g3", "shufflenet_g3_wd4")
def shufflenet_v1_x0_25_g3(**kwargs: Any) -> ShuffleNetV1:
    """ShuffleNet 0.25x, 3 groups."""
    return ShuffleNetV1(3, scale=0.25, **kwargs)


@register("shufflenet_v1_x0_25_g4")
def shufflenet_v1_x0_25_g4(**kwargs: Any) -> ShuffleNetV1:
    """ShuffleNet 0.25x, 4 groups."""
    return ShuffleNetV1(4, scale=0.25, stem=12, **kwargs)


@register("shufflenet_v1_x0_25_g8")
def shufflenet_v1_x0_25_g8(**kwargs: Any) -> ShuffleNetV1:
    """ShuffleNet 0.25x, 8 groups."""
    return ShuffleNetV1(8, scale=0.25, stem=8, **kwargs)


@register("shufflenet_v1_x0_5_g1", "shufflenet_g1_wd2")
def shufflenet_v1_x0_5_g1(**kwargs: Any) -> ShuffleNetV1:
    """ShuffleNet 0.5x, without groups."""
    return ShuffleNetV1(1, scale=0.5, **kwargs)


@register("shufflenet_v1_x0_5_g2")
def shufflenet_v1_x0_5_g2(**kwargs: Any) -> ShuffleNetV1:
    """ShuffleNet 0.5x, 2 groups."""
    return ShuffleNetV1(2, scale=0.5, **kwargs)


@register("shufflenet_v1_x0_5_g3", "shufflenet_g3_wd2")
def shufflenet_v1_x0_5_g3(**kwargs: Any) -> ShuffleNetV1:
    """ShuffleNet 0.5x, 3 groups."""
    return ShuffleNetV1(3, scale=0.5, **kwargs)


@register("shufflenet_v1_x0_5_g4")
def shufflenet_v1_x0_5_g4(**kwargs: Any) -> ShuffleNetV1:
    """ShuffleNet 0.5x, 4 groups."""
    return ShuffleNetV1(4, scale=0.5, **kwargs)


@register("shufflenet_v1_x0_5_g8")
def shufflenet_v1_x0_5_g8(**kwargs: Any) -> ShuffleNetV1:
    """ShuffleNet 0.5x, 8 groups."""
    return ShuffleNetV1(8, scale=0.5, stem=16, **kwargs)


@register("shufflenet_v1_x0_75_g3", "shufflenet_g3_w3d4")
def shufflenet_v1_x0_75_g3(**kwargs: Any) -> ShuffleNetV1:
    """ShuffleNet 0.75x, 3 groups."""
    return ShuffleNetV1(3, scale=0.75, **kwargs)


@register("shufflenet_v1_x1_5_g3")
def shufflenet_v1_x1_5_g3(**kwargs: Any) -> ShuffleNetV1:
    """ShuffleNet 1.5x, 3 groups."""
    return ShuffleNetV1(3, scale=1.5, stem=24, **kwargs)


@register("shufflenet_v1_x2_0_g3")
def shufflenet_v1_x2_0_g3(**kwargs: Any) -> ShuffleNetV1:
    """ShuffleNet 2x, 3 groups."""
    return ShuffleNetV1(3, scale=2.0, **kwargs)


@register("se_shufflenet_v1_x1_0_g3")
def se_shufflenet_v1_x1_0_g3(**kwargs: Any) -> ShuffleNetV1:
    """SE-ShuffleNet 1x, 3 groups: arXiv:1709.01507, table 3."""
    return ShuffleNetV1(3, **{"reduction": 16, **kwargs})
