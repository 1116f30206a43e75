# SPDX-License-Identifier: Apache-2.0
"""Activations written out by hand become one op each; what only looks like them stays."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastcnn.accelerate.rewrites.written_out_activations import written_out_activations
from tests.accelerate.graphs import Each, Function, check

X = torch.randn(3, 8, 5, 6)
SPELLED = ("relu6", "relu", "sigmoid", "aten.mul", "aten.div", "aten.add", "aten.sub", "aten.clamp", "aten.exp",
           "aten.reciprocal", "aten.clamp_min", "aten.clamp_max", "aten.min", "aten.max")  # fmt: skip


class Constants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("three", torch.tensor(3.0))
        self.register_buffer("six", torch.tensor(6.0))

    def forward(self, x):
        return x * F.relu6(x + self.three) / self.six


HARDSWISH = {
    "x * relu6 / 6": lambda x: x * F.relu6(x + 3) / 6,
    "x * (relu6 / 6)": lambda x: x * (F.relu6(x + 3) / 6),
    "x / 6 * relu6": lambda x: x / 6 * F.relu6(x + 3.0),
    "x * relu6 * (1 / 6)": lambda x: x * F.relu6(x + 3) * (1 / 6),
    "relu6 * x * (1 / 6)": lambda x: F.relu6(3 + x) * x * (1 / 6),
    "(1 / 6) * relu6 * x": lambda x: (1 / 6) * F.relu6(x + 3) * x,
    "x * (clamp / 6)": lambda x: x * (torch.clamp(x + 3, 0, 6) / 6),
    "x * clamp.div": lambda x: x.mul(x.add(3).clamp(min=0, max=6).div(6)),
    "in place": lambda x: F.relu6(x + 3, inplace=True).mul_(x).div_(6),
    "hardtanh": lambda x: x * F.hardtanh(x + 3, 0.0, 6.0) / 6,
    "two clamps": lambda x: x * (x + 3).clamp(min=0).clamp(max=6) / 6,
    "relu and clamp_max": lambda x: x * torch.clamp_max(F.relu(x + 3), 6) / 6,
    "minus minus 3": lambda x: x * F.relu6(x - (-3)) / 6,
    "clamp of 0 to 1": lambda x: x * torch.clamp(x / 6 + 0.5, 0, 1),
    "x * hardsigmoid": lambda x: x * F.hardsigmoid(x),
    "hardsigmoid * x": lambda x: F.hardsigmoid(x) * x,
    "constants held as tensors": Constants(),
}
HARDSIGMOID = {
    "relu6 / 6": lambda x: F.relu6(x + 3) / 6,
    "relu6 * (1 / 6)": lambda x: F.relu6(x + 3).mul(1 / 6),
    "clamp / 6": lambda x: (x + 3).clamp(0, 6) / 6,
    "clamp(x / 6 + 1 / 2)": lambda x: (x / 6 + 0.5).clamp(0, 1),
    "clamp((x + 3) / 6)": lambda x: torch.clamp((x + 3) / 6, 0, 1),
    "in place": lambda x: x.add(3).clamp_(0.0, 6.0).div_(6.0),
}
SILU = {
    "x * sigmoid": lambda x: x * torch.sigmoid(x),
    "sigmoid * x": lambda x: x.sigmoid().mul(x),
    "in place": lambda x: torch.sigmoid(x).mul_(x),
    "x / (1 + exp)": lambda x: x / (1 + torch.exp(-x)),
    "x * (1 / (1 + exp))": lambda x: x * (1 / (1 + torch.exp(-x))),
}
SIGMOID = {
    "1 / (1 + exp)": lambda x: 1 / (1 + torch.exp(-x)),
    "1.0 / (exp + 1.0)": lambda x: 1.0 / ((-1.0 * x).exp() + 1.0),
    "half of 2 / (1 + exp)": lambda x: torch.mul(2 / (1 + torch.exp(-x)), 0.5),
}
KINDS = {"hardswish": HARDSWISH, "hardsigmoid": HARDSIGMOID, "silu": SILU, "sigmoid": SIGMOID}


@pytest.mark.parametrize("kind", KINDS)
def test_every_spelling_becomes_one_activation(kind):
    spellings = KINDS[kind].values()
    absent = tuple(name for name in SPELLED if name != kind)
    check(
        written_out_activations, Each(spellings), X, count=len(spellings), present={kind: len(spellings)}, absent=absent
    )


def test_two_clamps_are_a_relu6():
    spellings = Each([lambda x: F.relu(x).clamp(max=6.0), lambda x: x.clamp(max=6.0).clamp(min=0)])
    check(written_out_activations, spellings, X, count=2, present={"relu6": 2}, absent=("relu", "aten.clamp_max"))


def test_the_larger_of_x_and_0_is_a_relu():
    class Net(Constants):
        def forward(self, x):
            return torch.maximum(x, self.three - 3)

    check(written_out_activations, Net(), X, count=1, present={"relu": 1}, absent=("aten.maximum",))


def _clamp_read_twice(x):
    clamped = F.relu6(x + 3)
    return x * clamped / 6 + clamped


def _sum_read_twice(x):
    more = x + 3
    return x * F.relu6(more) / 6 + more


def _sigmoid_read_twice(x):
    gate = torch.sigmoid(x)
    return x * gate, gate


def _exp_read_twice(x):
    exp = torch.exp(-x)
    return x / (1 + exp) + exp


LOOK_ALIKES = [
    lambda x: x * F.relu6(x + 2.9) / 6,
    lambda x: x * F.relu6(x + 3) / 5.99,
    lambda x: x * F.relu6(x + 3),
    lambda x: x * F.relu6(x + 3) * 0.1667,
    lambda x: x * F.hardtanh(x + 3, 0.0, 5.0) / 6,
    lambda x: x * F.hardtanh(x + 3, -1.0, 6.0) / 6,
    lambda x: x * torch.clamp(0.2 * x + 0.5, 0, 1),
    lambda x: torch.add(x, 3, alpha=2).clamp(1, 6) / 6,
    lambda x: x * F.relu6(torch.add(x, torch.full_like(x, 3.0))) / 6,
    lambda x: torch.div(F.relu6(x + 3), 6, rounding_mode="floor"),
    lambda x: x * torch.sigmoid(1.702 * x),
    lambda x: 2 * x * torch.sigmoid(x),
    lambda x: x / (1 + torch.exp(x)),
    lambda x: x / (2 + torch.exp(-x)),
    lambda x: (x + 3).amax(1, keepdim=True).clamp(6, 0) / 6,
    lambda x: 6 / F.relu6(x + 3).add(1),
    _clamp_read_twice,
    _sum_read_twice,
    _sigmoid_read_twice,
    _exp_read_twice,
]


def test_what_looks_like_it_stays():
    check(written_out_activations, Each(LOOK_ALIKES), X, count=0, present={"hardswish": 0, "hardsigmoid": 0, "silu": 0})


def test_the_value_of_the_formula_may_be_read_often():
    def function(x):
        swish = x * F.relu6(x + 3) / 6
        return swish + swish * 2, swish

    check(written_out_activations, function, X, count=1, present={"hardswish": 1, "aten.mul": 1, "aten.add": 1})


def test_a_gate_written_out_becomes_a_hardsigmoid_of_another_tensor():
    def function(x, y):
        return x * F.relu6(y + 3) / 6, x * (F.relu6(y + 3) / 6), x * F.relu6(2 * x + 3) / 6

    check(written_out_activations, function, X, torch.randn(3, 8, 1, 1), count=3,
          present={"hardsigmoid": 3, "aten.mul": 4}, absent=("relu6", "aten.div", "aten.add"))  # fmt: skip


def test_all_of_a_network_of_them():
    layer = nn.Sequential(nn.Conv2d(8, 8, 1), Function(HARDSWISH["x * relu6 / 6"]), nn.Conv2d(8, 8, 3, 1, 1),
                          Function(SILU["x * sigmoid"]), nn.Flatten(), Function(HARDSIGMOID["clamp / 6"]))  # fmt: skip
    check(written_out_activations, layer, X, count=3, present={"hardswish": 1, "silu": 1, "hardsigmoid": 1},
          absent=SPELLED)  # fmt: skip
