# SPDX-License-Identifier: Apache-2.0
"""Bias, residual and activation go into the convolution or batch norm before them."""

import pytest
import torch
from torch import Tensor, nn

from fastcnn.accelerate.program import CONV, Conv, calls
from fastcnn.accelerate.rewrites.conv_activation import conv_activation
from fastcnn.accelerate.rewrites.depthwise import depthwise
from fastcnn.accelerate.rewrites.fold_batch_norm import fold_batch_norm
from tests.accelerate.captured import reasons, rewritten
from tests.accelerate.test_fold_batch_norm import Net

X = torch.randn(2, 6, 7, 8)
KINDS = {
    "relu": nn.ReLU(True),
    "relu6": nn.ReLU6(True),
    "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(),
    "silu": nn.SiLU(True),
    "sigmoid": nn.Sigmoid(),
}


@pytest.mark.parametrize("kind", KINDS)
def test_activation(kind: str) -> None:
    program, counts, stands = rewritten(nn.Sequential(nn.Conv2d(6, 4, 3), KINDS[kind]), X, conv_activation)
    assert counts == [1]
    assert stands == {"conv_bn_act": 1}
    assert Conv.of(next(calls(program, CONV))).activation == kind


def test_residual_then_activation() -> None:
    def forward(self: Net, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        y += x
        return torch.relu_(y)

    net = Net(forward, conv=nn.Conv2d(6, 6, 3, padding=1, bias=False), norm=nn.BatchNorm2d(6))
    program, counts, stands = rewritten(net, X, fold_batch_norm, conv_activation)
    assert counts == [1, 2]
    assert stands == {"conv_bn_act": 1}
    assert Conv.of(next(calls(program, CONV))).residual.op == "placeholder"


def test_a_sum_of_two_convolutions_takes_one_of_them() -> None:
    net = Net(lambda self, x: self.a(x) + self.b(x), a=nn.Conv2d(6, 6, 1), b=nn.Conv2d(6, 6, 1))
    assert rewritten(net, X, conv_activation)[1:] == ([1], {"conv_bn_act": 2})


def test_a_sum_of_a_value_with_itself() -> None:
    def forward(self: Net, x: Tensor) -> Tensor:
        y = self.a(x)
        return y + y

    assert rewritten(Net(forward, a=nn.Conv2d(6, 6, 1)), X, conv_activation)[1:] == ([0], {"conv_bn_act": 1, "add": 1})


def test_a_residual_of_another_shape_stays() -> None:
    net = Net(lambda self, x: self.a(x) + x.mean((2, 3), keepdim=True), a=nn.Conv2d(6, 6, 1))
    program, counts, stands = rewritten(net, X, conv_activation)
    assert counts == [0]
    assert stands["add"] == 1
    assert "another shape" in reasons(program)[0]


def test_a_channels_bias() -> None:
    net = Net(lambda self, x: self.a(x) + self.b.bias.view(-1, 1, 1), a=nn.Conv2d(6, 4, 1), b=nn.Conv2d(6, 4, 1))
    assert rewritten(net, X, conv_activation)[1:] == ([1], {"conv_bn_act": 1})


def test_scaled_sums_stay() -> None:
    net = Net(lambda self, x: torch.add(self.a(x), x, alpha=2), a=nn.Conv2d(6, 6, 1))
    assert rewritten(net, X, conv_activation)[1:] == ([0], {"conv_bn_act": 1, "add": 1})


def test_two_activations_take_one() -> None:
    net = nn.Sequential(nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Sigmoid())
    assert rewritten(net, X, conv_activation)[1:] == ([1], {"conv_bn_act": 1, "activation": 1})


def test_a_second_reader_keeps_what_it_reads() -> None:
    def forward(self: Net, x: Tensor) -> Tensor:
        y = self.a(x)
        return y.relu() * y

    net = Net(forward, a=nn.Conv2d(6, 6, 1))
    assert rewritten(net, X, conv_activation)[1:] == ([0], {"conv_bn_act": 1, "activation": 1, "mul": 1})


def test_behind_a_batch_norm_that_stays() -> None:
    net = nn.Sequential(nn.MaxPool2d(2), nn.BatchNorm2d(6), nn.ReLU())
    assert rewritten(net, X, fold_batch_norm, conv_activation)[1:] == ([0, 1], {"max_pool2d": 1, "batch_norm_act": 1})


@pytest.mark.parametrize(("out", "groups", "found"), [(6, 6, 1), (12, 6, 1), (6, 3, 0), (6, 1, 0)])
def test_depthwise(out: int, groups: int, found: int) -> None:
    net = nn.Sequential(nn.Conv2d(6, out, 3, 2, 1, groups=groups), nn.Hardswish())
    _, counts, stands = rewritten(net, X, conv_activation, depthwise)
    assert counts == [1, found]
    assert stands == {"depthwise_conv2d" if found else "conv_bn_act": 1}
