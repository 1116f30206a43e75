# SPDX-License-Identifier: Apache-2.0
"""Constant factors go into weights, before or behind, or stay."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastcnn.accelerate.rewrites.fold_scale import fold_scale
from tests.accelerate.captured import rewritten

X = torch.randn(2, 6, 7, 8)


class Scaled(nn.Module):
    def __init__(self, forward: Callable, bias: bool = True, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 4, 3, padding=1, bias=bias, groups=groups)
        self.other = nn.Conv2d(6, 4, 1)
        self.gamma = nn.Parameter(torch.randn(4, 1, 1))
        self.front = nn.Parameter(torch.randn(1, 6, 1, 1))
        self.gain = nn.Parameter(torch.tensor(0.3))
        self.calls = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.calls(self, x)


FOLDED = {
    "layer scale": lambda self, x: self.conv(x) * self.gamma,
    "layer scale first": lambda self, x: self.gamma * self.conv(x),
    "gain": lambda self, x: self.conv(x) * self.gain,
    "number": lambda self, x: 0.2 * self.conv(x),
    "division": lambda self, x: self.conv(x) / 3,
    "division by a vector": lambda self, x: self.conv(x) / self.gamma,
    "in front": lambda self, x: self.conv(x.relu() * self.front),
    "a number in front": lambda self, x: self.conv(x.relu() * 1.7) + x.mean(),
    "in front of two": lambda self, x: (lambda y: self.conv(y) - self.other(y))(x.relu() * self.front),
}


@pytest.mark.parametrize("name", FOLDED)
@pytest.mark.parametrize(("bias", "groups"), [(True, 1), (False, 2)])
def test_folded(name: str, bias: bool, groups: int) -> None:
    _, counts, stands = rewritten(Scaled(FOLDED[name], bias, groups), X, fold_scale)
    assert counts == [1]
    assert not stands.keys() & {"mul", "div"}


STAY = {
    "an activation between": lambda self, x: self.conv(x).sigmoid() * self.gamma,
    "read by others": lambda self, x: (lambda y: y * self.gamma + y.sigmoid())(self.conv(x)),
    "computed": lambda self, x: self.conv(x) * x.mean(),
    "a number by the map": lambda self, x: 1 / (self.conv(x) + 5),
    "the map is an output too": lambda self, x: (lambda y: (y, self.conv(y)))(x * self.front),
    "along the width": lambda self, x: self.conv(x) * torch.arange(8.0, dtype=x.dtype),
    "it widens the map": lambda self, x: self.conv(x)[:, :1] * self.gamma,
}


@pytest.mark.parametrize("name", STAY)
def test_stays(name: str) -> None:
    assert rewritten(Scaled(STAY[name]), X, fold_scale)[1] == [0]


def test_a_factor_of_zero() -> None:
    assert rewritten(Scaled(lambda self, x: self.conv(x) * 0), X, fold_scale)[1] == [1]
    assert rewritten(Scaled(lambda self, x: (self.conv(x) + 9) / 0.0), X, fold_scale)[1] == [0]
