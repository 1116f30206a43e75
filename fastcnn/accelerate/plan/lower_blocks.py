# SPDX-License-Identifier: Apache-2.0
"""Fused blocks as steps of a plan."""

from __future__ import annotations

from torch import fx

from ..program import arguments
from .fuse import Block
from .lower_convs import padding_of, sums_for
from .state import Lowering
from .words import ACTIVATIONS, NONE, InvertedResidual


def block(low: Lowering, parts: Block) -> None:
    """The step of ``parts``, and with it the map of its last node."""
    a = arguments(parts.depthwise)
    first, last = parts.expand or parts.depthwise, parts.last
    source = first.args[0]
    residual = None if parts.project is None else arguments(parts.project)["residual"]
    x, y = low.view(source), low.result(last)
    kernel = tuple(low.tensor(a["weight"]).shape[2:])
    channels, *size = low.shapes[a["x"]]
    left, _, top, _ = padding_of(a["padding"], tuple(size), kernel, a["stride"], a["dilation"])
    sums = sums_for(low, parts.depthwise)
    expand, expand_bias, before = _matrix(low, parts.expand)
    project, project_bias, behind = _matrix(low, parts.project)
    step = InvertedResidual(low.builder.number(x), low.builder.number(y), low.number(residual), sums, expand,
                            expand_bias, low.builder.blob.matrix(low.tensor(a["weight"]).flatten(1)),
                            low.vector(low.tensor(a["bias"])), project, project_bias, channels, kernel[0],
                            a["stride"][0], top, left, before, ACTIVATIONS.index(a["activation"]), behind)  # fmt: skip
    weights = [low.tensor(arguments(each)["weight"]).numel() for each in parts if each is not None]
    macs = [arguments(each)["weight"].meta["val"].numel() * _pixels(low, each) for each in parts if each is not None]
    low.add(last, step, sum(macs), (x, low.view(residual)), sum(weights), "fused")


def _matrix(low: Lowering, node: fx.Node | None) -> tuple[int, int, int]:
    """Weight and bias of a 1x1 convolution in the blob, and the number of its activation."""
    if node is None:
        return NONE, NONE, 0
    a = arguments(node)
    return (
        low.builder.blob.matrix(low.tensor(a["weight"]).flatten(1)),
        low.vector(low.tensor(a["bias"])),
        ACTIVATIONS.index(a["activation"]),
    )


def _pixels(low: Lowering, node: fx.Node) -> int:
    return low.shapes[node][1] * low.shapes[node][2]
