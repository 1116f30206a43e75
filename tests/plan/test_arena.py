# SPDX-License-Identifier: Apache-2.0
"""The arena: buffers that live at the same time do not overlap, and hardly a float is wasted."""

from __future__ import annotations

import random

import pytest
import torch.nn.functional as F
from torch import Tensor

from fastcnn.accelerate.plan.arena import Lifetime, place
from fastcnn.accelerate.plan.op import AVAILABLE
from fastcnn.accelerate.plan.words import ALIGNMENT
from tests.plan.planned_nets import Net, conv, names, planned


def live(lifetimes: list[Lifetime]) -> int:
    """Floats that the fullest step needs."""
    sizes = [-(-each.size // ALIGNMENT) * ALIGNMENT for each in lifetimes]
    steps = range(max(each.last for each in lifetimes) + 1)
    return max(
        sum(size for size, each in zip(sizes, lifetimes, strict=True) if each.first <= i <= each.last) for i in steps
    )


@pytest.mark.parametrize("seed", range(30))
def test_what_lives_together_lies_apart(seed: int) -> None:
    rng = random.Random(seed)
    lifetimes = []
    for _ in range(40):
        first = rng.randrange(30)
        lifetimes.append(Lifetime(rng.randint(1, 3000), first, first + rng.choice((0, 1, 1, 2, 9))))
    offsets, arena = place(lifetimes)
    ranges = [(offset, offset + each.size) for offset, each in zip(offsets, lifetimes, strict=True)]
    assert arena >= max(end for _, end in ranges) and all(offset % ALIGNMENT == 0 for offset in offsets)
    for i, a in enumerate(lifetimes):
        for j, b in enumerate(lifetimes[:i]):
            apart = ranges[i][1] <= ranges[j][0] or ranges[j][1] <= ranges[i][0]
            assert apart or a.last < b.first or b.last < a.first


def test_a_chain_needs_its_two_largest_neighbours() -> None:
    chain = [Lifetime(size, i, i + 1) for i, size in enumerate((1600, 6400, 3200, 6400, 800, 1600))]
    assert place(chain)[1] == live(chain)


@pytest.mark.skipif(not AVAILABLE, reason="the CPU library is not built")
def test_an_elementwise_step_writes_over_what_dies() -> None:
    """One map of 18 channels is all that the sum needs beside its second operand; without that it would be three."""
    net = Net(lambda net, x: net.last(F.max_pool2d(net.first(x) + net.second(F.max_pool2d(x, 3, 1, 1)), 3, 2, 1)),
              first=conv(3, 18, 3), second=conv(3, 18, 3), last=conv(18, 2))  # fmt: skip
    found = planned(net, (3, 16, 16))
    assert names(found).count("elementwise") == 1
    assert found.plans[0].arena < 3 * 18 * 16 * 16


@pytest.mark.skipif(not AVAILABLE, reason="the CPU library is not built")
def test_what_is_read_again_is_not_written_over() -> None:
    net = Net(
        lambda net, x: net.last(F.max_pool2d(_twice(net.first(x)), 3, 2, 1)), first=conv(3, 18, 3), last=conv(18, 2)
    )
    planned(net, (3, 16, 16))


def _twice(x: Tensor) -> Tensor:
    half = x * 0.5
    return F.hardswish(half - 1) * x + F.max_pool2d(half, 3, 1, 1)
