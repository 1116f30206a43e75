# SPDX-License-Identifier: Apache-2.0
"""Batch norm and activation of concatenated convolutions fold into each."""

import pytest
import torch
from torch import Tensor, nn

from fastcnn.accelerate.rewrites.conv_activation import conv_activation
from fastcnn.accelerate.rewrites.fold_batch_norm import fold_batch_norm
from fastcnn.accelerate.rewrites.through_concat import through_concat
from tests.accelerate.captured import rewritten

X = torch.randn(2, 6, 7, 8)


class Mixed(nn.Module):
    """Of MixNet: kernels of several sizes, each on some of the channels."""

    def __init__(self, act: nn.Module, first_act: nn.Module | None = None, leak: bool = False) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 5, 5, padding=2, bias=False)])
        self.norm, self.act, self.first, self.leak = nn.BatchNorm2d(9, eps=0.1), act, first_act or nn.Identity(), leak

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.split([2, 4], 1)
        a, b = self.first(self.convs[0](a)), self.convs[1](b)
        y = self.act(self.norm(torch.cat([a, b], 1)))
        return torch.cat([y, a], 1) if self.leak else y


@pytest.mark.parametrize("act", [nn.Identity(), nn.SiLU()])
def test_split_and_folded(act: nn.Module) -> None:
    _, counts, stands = rewritten(Mixed(act), X, through_concat, fold_batch_norm, conv_activation)
    split = 1 + isinstance(act, nn.SiLU)
    assert counts == [split, 2, 2 * (split - 1)]
    assert stands == {"slice": 2, "conv_bn_act": 2, "cat": 1}


@pytest.mark.parametrize("net", [Mixed(nn.ReLU(), nn.ReLU()), Mixed(nn.ReLU(), leak=True)])
def test_a_piece_that_is_not_free_keeps_it_behind_the_concatenation(net: nn.Module) -> None:
    _, counts, stands = rewritten(net, X, through_concat)
    assert counts == [0]
    assert stands["batch_norm_act"] == 1


def test_along_another_dimension() -> None:
    class Tall(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.other, self.norm = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(torch.cat([self.conv(x), self.other(x)], 2))

    assert rewritten(Tall(), X, through_concat)[1] == [0]


def test_one_piece_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(6, 4, 1), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.norm(torch.cat([y, y], 1))

    assert rewritten(Twice(), X, through_concat)[1] == [0]
