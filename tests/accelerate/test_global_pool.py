# SPDX-License-Identifier: Apache-2.0
"""Means over H and W however they are written; other means, sums and maxima stay."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastcnn.accelerate.capture import capture
from fastcnn.accelerate.program import Notes
from fastcnn.accelerate.rewrites.global_pool import global_pool
from fastcnn.accelerate.rewrites.normalise import normalise
from tests.accelerate.graphs import Each, Function, check, ops

X = torch.randn(3, 8, 5, 6)
REDUCTIONS = ("aten.mean", "aten.sum", "aten.div", "aten.mul", "aten.avg_pool2d", "aten.adaptive_avg_pool1d",
              "aten.permute", "aten.transpose")  # fmt: skip
SPELLINGS = {
    "flatten": lambda x: x.flatten(2).mean(-1),
    "view": lambda x: x.view(x.size(0), x.size(1), -1).mean(2, keepdim=True).unsqueeze(-1),
    "view, back to columns": lambda x: x.view(x.size(0), x.size(1), -1).mean(-1).view(x.size(0), -1, 1, 1),
    "one side, then the other": lambda x: x.mean(3).mean(2),
    "the other first": lambda x: x.mean(2, keepdim=True).mean(-1, keepdim=True),
    "channels last": lambda x: x.permute(0, 2, 3, 1).mean((1, 2)),
    "channels last, kept": lambda x: x.permute(0, 2, 3, 1).mean((1, 2), keepdim=True),
    "width first": lambda x: x.permute(0, 3, 2, 1).mean([1, 2]),
    "tokens": lambda x: x.flatten(2).transpose(1, 2).mean(1),
    "channels last tokens": lambda x: x.permute(0, 2, 3, 1).flatten(1, 2).mean(dim=1),
    "sum / 30": lambda x: x.sum((2, 3)) / 30,
    "sum * (1 / 30)": lambda x: (1 / 30) * x.sum((-1, -2), keepdim=True),
    "two sums": lambda x: x.sum(3).sum(2).div(30.0),
    "sum of a view": lambda x: x.flatten(2).sum(2) / (x.shape[2] * x.shape[3]),
    "average of 1-D": lambda x: F.adaptive_avg_pool1d(x.flatten(2), 1).squeeze(-1),
    "divisor_override": lambda x: F.avg_pool2d(x, (5, 6), divisor_override=30),
}


def test_every_spelling_is_one_op():
    check(global_pool, Each(SPELLINGS.values()), X, count=len(SPELLINGS), present={"global_avg_pool": len(SPELLINGS)},
          absent=REDUCTIONS)  # fmt: skip


def test_what_normalise_found_stays():
    usual = (nn.AdaptiveAvgPool2d((1, 1)), nn.AvgPool2d((5, 6)), lambda x: x.mean((2, 3)), nn.AvgPool2d((5, 6), 1))
    check(global_pool, Each(usual), X, count=0, present={"global_avg_pool": 4})


def _inner_mean_read_twice(x):
    rows = x.mean(3)
    return rows.mean(2) + rows.sum(2)


def _inner_sum_read_twice(x):
    total = x.sum((2, 3))
    return total / 30 + total


LOOK_ALIKES = (
    lambda x: x.mean((1, 2)),
    lambda x: x.mean((0, 2, 3)),
    lambda x: x.mean(3),
    lambda x: x.mean(),
    lambda x: x.flatten(2).mean(1),
    lambda x: x.flatten(1).mean(1),
    lambda x: x.flatten(0, 1).mean((1, 2)),
    lambda x: x.view(-1, 4, 2 * 5, 6).mean(3).sum(2),
    lambda x: x.reshape(-1, 8, 6, 5).permute(0, 3, 1, 2).mean((1, 2)),
    lambda x: x.reshape(-1, 8, 10, 3).mean(3),
    lambda x: x.transpose(0, 1).flatten(2).transpose(0, 1).mean(1),
    lambda x: x.sum((2, 3)) / 29,
    lambda x: x.sum(3) / 30,
    lambda x: x.sum((2, 3)),
    lambda x: x.sum((1, 2)) / 40,
    lambda x: x.amax((2, 3)),
    lambda x: F.adaptive_max_pool2d(x, 1),
    lambda x: F.avg_pool2d(x, (5, 6), divisor_override=29),
    lambda x: F.avg_pool2d(x, (5, 5)),
    lambda x: F.avg_pool2d(x, (5, 6), padding=1),
    lambda x: F.adaptive_avg_pool2d(x, (1, 2)),
    _inner_mean_read_twice,
    _inner_sum_read_twice,
)


def test_what_resembles_it_stays():
    check(global_pool, Each(LOOK_ALIKES), X, count=0, present={"global_avg_pool": 0})


def test_the_maximum_beside_it_stays():
    """The selectable pools of timm: the sum and the concatenation of both."""

    def both(x):
        return 0.5 * (x.flatten(2).mean(-1) + x.amax((2, 3)))

    def concatenated(x):
        return torch.cat((x.permute(0, 2, 3, 1).mean((1, 2)), F.adaptive_max_pool2d(x, 1).flatten(1)), 1)

    check(global_pool, Each((both, concatenated)), X, count=2, present={"global_avg_pool": 2, "aten.amax": 1,
                                                                        "aten.adaptive_max_pool2d": 1, "aten.cat": 1})  # fmt: skip


def test_a_pool_that_changes_nothing_is_gone():
    pools = nn.Sequential(
        nn.ReLU(), nn.AdaptiveAvgPool2d((5, 6)), nn.AdaptiveAvgPool2d(1), nn.AvgPool2d(1), nn.Sigmoid()
    )
    check(global_pool, pools, X, count=2, present={"relu": 1, "global_avg_pool": 1, "sigmoid": 1},
          absent=("aten.adaptive_avg_pool2d",))  # fmt: skip


def test_an_output_stays_a_copy_of_the_input():
    check(global_pool, nn.AdaptiveAvgPool2d((5, 6)), X, count=0, present={"aten.adaptive_avg_pool2d": 1})


@pytest.mark.parametrize("function", [
    lambda x: x.sum((2, 3)) / (x.shape[2] * x.shape[3]),
    lambda x: x.permute(0, 2, 3, 1).mean((1, 2)),
    lambda x: x.flatten(2).mean(-1),
])  # fmt: skip
def test_maps_of_any_size(function):
    program = capture(Function(function), (X,), dynamic_size=True).program
    normalise(program, Notes())
    assert global_pool(program, Notes()) == 1
    assert ops(program)["global_avg_pool"] == 1
    for size in ((2, 8, 7, 9), (1, 8, 4, 3)):
        x = torch.randn(size)
        torch.testing.assert_close(program(x)[0], x.mean((2, 3)))
