# SPDX-License-Identifier: Apache-2.0
"""Arithmetic between convolutions: sums, products and activations that follow each other are one step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastcnn.accelerate.plan.op import AVAILABLE
from tests.plan.planned_nets import Net, conv, names, planned

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="the CPU library is not built")

CONSTANT = torch.linspace(-1, 1, 18)[:, None, None]
ONE_STEP: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "scaled": lambda a, b: a * 0.5 + 0.25,
    "subtracted from one": lambda a, b: 1 - a,
    "divided": lambda a, b: a / 3 - 1.5,
    "number first": lambda a, b: 2.0 * a,
    "difference": lambda a, b: a - b,
    "scaled difference": lambda a, b: torch.sub(a, b, alpha=2),
    "scaled sum": lambda a, b: torch.add(a, b, alpha=-0.5),
    "sum of three": lambda a, b: a * b.mean((2, 3), keepdim=True) + b,
    "activated sum": lambda a, b: F.hardswish(a * 0.5 + b),
    "vector minus map": lambda a, b: b.mean((2, 3), keepdim=True) - a,
    "map minus vector": lambda a, b: a - b.mean((2, 3), keepdim=True),
    "product": lambda a, b: a * b,
}


@pytest.mark.parametrize("name", ONE_STEP)
def test_is_one_step(name: str) -> None:
    net = Net(lambda net, x: net.last(F.max_pool2d(ONE_STEP[name](net.first(x), net.second(x)), 3, 2, 1)),
              first=conv(3, 18, 3), second=conv(3, 18, 3, 1), last=conv(18, 7))  # fmt: skip
    found = planned(net, (3, 9, 10))
    assert not found.reasons
    assert names(found).count("elementwise") == 1


def test_a_constant_of_each_channel() -> None:
    net = Net(lambda net, x: net.last(F.max_pool2d(net.first(x) * net.gain + net.bias, 3, 1)), first=conv(3, 18, 3),
              last=conv(18, 7))  # fmt: skip
    net.gain, net.bias = (torch.nn.Parameter(each.clone()) for each in (CONSTANT, CONSTANT[None] * 2))
    assert not planned(net, (3, 9, 10)).reasons


def gated(net: Net, x: Tensor) -> Tensor:
    x = net.stem(x)
    y = net.three(x)
    gate = torch.sigmoid(net.grow(net.shrink(y.mean((2, 3), keepdim=True))))
    return net.last(F.relu(y * gate + x))


def test_squeeze_and_excitation_with_its_sum_is_one_step_over_the_map() -> None:
    net = Net(gated, stem=conv(3, 18, 3), three=conv(18, 18, 3), shrink=conv(18, 4), grow=torch.nn.Conv2d(4, 18, 1),
              last=conv(18, 7))  # fmt: skip
    assert names(planned(net, (3, 9, 10))).count("elementwise") == 1


def shared(net: Net, x: Tensor) -> Tensor:
    a, b = net.first(x), net.second(x)
    total = a * 0.5 + b
    return net.last(F.max_pool2d(F.relu(total - 0.1), 3, 1)) + net.last(F.max_pool2d(total, 3, 1))


def test_what_two_steps_read_is_written_once() -> None:
    net = Net(shared, first=conv(3, 18, 3), second=conv(3, 18, 3), last=conv(18, 7))
    assert not planned(net, (3, 9, 10)).reasons


def test_what_is_returned_is_written() -> None:
    net = Net(lambda net, x: (net.first(x) * 0.5, net.second(x) - 0.5), first=conv(3, 18, 3), second=conv(3, 18, 3))
    assert not planned(net, (3, 9, 10)).reasons


def test_what_broadcasts_otherwise_stays_outside() -> None:
    net = Net(
        lambda net, x: net.last(net.first(x) + net.first(x).mean(1, keepdim=True)),
        first=conv(3, 18, 3),
        last=conv(18, 7),
    )
    assert any("broadcasts" in reason for reason in planned(net, (3, 9, 10)).reasons.values())
