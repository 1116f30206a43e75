# SPDX-License-Identifier: Apache-2.0
"""Each way that a convolution of a plan takes, against float64: by rows, by blocks of windows, groups in a vector."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastcnn
from fastcnn.accelerate.plan import words
from fastcnn.accelerate.plan.builder import Builder
from fastcnn.accelerate.plan.lower_convs import GROUPS
from fastcnn.accelerate.plan.op import AVAILABLE
from fastcnn.accelerate.plan.planned import lanes
from fastcnn.accelerate.plan.words import NONE
from tests import instruction_sets
from tests.plan import trials
from tests.plan.checked import check
from tests.plan.draws import draw_window
from tests.plan.trials import AROUND, LAYOUTS, Maps, Trial, Window, kind_of, like, maybe, vector, weight_of

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="the CPU library is not built")

SMALL_GROUPS = [group for group in GROUPS if AVAILABLE and group < lanes()]
# Weights of more than 1 MB for 128 channels or more, or windows of one pixel: by blocks. Depths above and below one block's.
BLOCKS = {
    "7x7 map": lambda: trials.conv(256, 140, 7, 7, residual=True, activation="relu"),
    "pixels beyond a block": lambda: trials.conv(160, 257, 15, 14, bias=False, activation="silu"),
    "depth beyond a block": lambda: trials.conv(512, 128, 13, 13, activation="hardswish"),
    "one pixel": lambda: trials.conv(520, 130, 1, 1, residual=True),
    "1x1, stride 2": lambda: trials.conv(33, 20, 15, 13, Window((1, 1), (2, 2), (0, 0, 0, 0)), residual=True),
    "1x1, padded": lambda: trials.conv(5, 9, 4, 3, Window((1, 1), (1, 2), (1, 0, 2, 1))),
    "1x7, dilated": lambda: trials.conv(300, 131, 5, 12, Window((1, 7), (1, 1), (6, 5, 0, 0), (1, 2))),
    "two groups": lambda: trials.conv(256, 270, 6, 8, groups=2, residual=True),
    "window larger than the map": lambda: trials.conv(130, 129, 2, 3, Window((5, 5), (1, 1), (2, 2, 2, 2))),
}


def grouped(C: int, group: int, H: int, W: int, window: Window = AROUND, *, bias: bool = True, residual: bool = False,
            activation: str = "identity") -> Trial:  # fmt: skip
    weight, b = weight_of(C, group, *window.kernel), maybe(bias, C)
    left, _, top, _ = window.padding
    Ho, Wo = window.output(H, W)

    def step(builder: Builder, at: dict[str, int]) -> object:
        packed = builder.blob.matrix(weight.permute(0, 2, 3, 1).flatten(1))
        return words.Grouped(at["x"], at["y"], at.get("residual", NONE), packed, vector(builder, b), *window.kernel,
                             *window.stride, top, left, *window.dilation, group, kind_of(activation))  # fmt: skip

    def exact(maps: Maps) -> Maps:
        x = F.pad(maps["x"], window.padding)
        y = F.conv2d(x, weight.to(x.dtype), like(b, x), window.stride, 0, window.dilation, C // group)
        return {"y": trials.ACTIVATIONS[activation](y + maps.get("residual", 0))}

    reads = {"x": (C, H, W)} | ({"residual": (C, Ho, Wo)} if residual else {})
    return Trial(reads, {"y": (C, Ho, Wo)}, step, exact, group * math.prod(window.kernel))


@pytest.mark.parametrize("name", BLOCKS)
def test_by_blocks(name: str) -> None:
    torch.manual_seed(0)
    trial = BLOCKS[name]()
    for images, count, layout in [(0, 1, "dense"), (1, 1, "sliced"), (1, 2, "arena"), (3, 2, "late"), (5, 3, "dense")]:
        check(trial, images, count, layout)


@pytest.mark.parametrize("group", SMALL_GROUPS)
def test_groups_in_a_vector(group: int) -> None:
    rng = random.Random(group)
    torch.manual_seed(group)
    for i in range(60):
        H, W = rng.randint(1, 15), rng.randint(1, 30)
        flags = {name: rng.random() < 0.5 for name in ("bias", "residual")}
        trial = grouped(group * rng.randint(1, 67 // group), group, H, W, draw_window(rng, H, W), **flags,
                        activation=rng.choice(list(trials.ACTIVATIONS)))  # fmt: skip
        check(trial, rng.choice((0, 1, 2, 3, 5)), rng.choice((1, 2, 3)), LAYOUTS[i % len(LAYOUTS)])


@pytest.mark.parametrize("group", SMALL_GROUPS)
def test_groups_keep_what_is_not_finite_to_themselves(group: int) -> None:
    trial = grouped(6 * group, group, 5, 17)
    for value, channel in itertools.product((math.nan, math.inf), (0, group, 6 * group - 1)):
        maps = trial.draw(1)
        maps["x"][0, channel, 2, 8] = value
        check(trial, 1, 2, "dense", maps)


@pytest.mark.parametrize("group", [1, 2, 4, 8, 16, 3])
def test_a_net_with_groups(group: int) -> None:
    torch.manual_seed(group)
    layers = [nn.Conv2d(3, 48, 3, padding=1), nn.Conv2d(48, 48, 3, 2, 1, groups=48 // group), nn.Conv2d(48, 5, 1)]
    net = nn.Sequential(*layers).eval()
    x = torch.randn(2, 3, 19, 17)
    y = fastcnn.accelerate(net, x, strict=True)(x)
    wanted = net.double()(x.double())
    assert (y - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@instruction_sets.each
def test_on_the_other_instruction_sets(isa: str) -> None:
    instruction_sets.rerun(__file__, isa, "not other_instruction_sets")
