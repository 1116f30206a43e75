# SPDX-License-Identifier: Apache-2.0
"""A squeeze-and-excitation's scale goes into the 1x1 convolutions that alone read the scaled map."""

import pytest
import torch
from torch import Tensor, nn

from fastcnn.accelerate.program import POINTWISE, calls
from fastcnn.accelerate.rewrites.conv_activation import conv_activation
from fastcnn.accelerate.rewrites.fold_batch_norm import fold_batch_norm
from fastcnn.accelerate.rewrites.operand_gate import operand_gate
from fastcnn.accelerate.rewrites.squeeze_excite import squeeze_excite
from fastcnn.nn import SqueezeExcite
from tests.accelerate.graphs import check

X = torch.randn(3, 8, 5, 6)
BEFORE = (fold_batch_norm, conv_activation, squeeze_excite)


class Written(nn.Module):
    """Squeeze-and-excitation in torch's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


class Net(nn.Module):
    def __init__(self, forward) -> None:
        super().__init__()
        self.se, self.a, self.b, self.call = Written(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), forward

    def forward(self, x: Tensor):
        return self.call(self, x)


def project(*conv, **options) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.ReLU(), Written(), nn.Conv2d(*conv, **options))


@pytest.mark.parametrize("se", [Written(), SqueezeExcite(8, 4)])
def test_a_projection_takes_the_gate(se):
    tail = (nn.Conv2d(8, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU6())
    program = check(operand_gate, nn.Sequential(nn.Hardswish(), se, *tail), X, count=1, prepare=BEFORE,
                    present={"se_gate": 1, "pointwise_conv2d": 1},
                    absent=("se_scale", "conv_bn_act", "relu6", "getitem"))  # fmt: skip
    (node,) = calls(program, POINTWISE)
    assert node.args[5:] == (None, None, "identity", "relu6")


def test_a_residual_stays_with_the_projection():
    net = Net(lambda self, x: torch.relu(x + self.a(self.se(x))))
    program = check(operand_gate, net, X, count=1, present={"se_gate": 1, "pointwise_conv2d": 1},
                    absent=("se_scale", "aten.add", "relu"), prepare=BEFORE)  # fmt: skip
    assert next(calls(program, POINTWISE)).args[3].op == "placeholder"


def test_two_projections_share_the_gate():
    def forward(self: Net, x: Tensor):
        y = self.se(x)
        return self.a(y), torch.relu(self.b(y))

    check(operand_gate, Net(forward), X, count=1, present={"se_gate": 1, "pointwise_conv2d": 2}, absent=("se_scale",),
          prepare=BEFORE)  # fmt: skip


def read_elsewhere(self: Net, x: Tensor) -> Tensor:
    y = self.se(x)
    return self.a(y) * y


def its_own_residual(self: Net, x: Tensor) -> Tensor:
    y = self.se(x)
    return self.a(y) + y


def an_output(self: Net, x: Tensor):
    y = self.se(x)
    return self.a(y), y


@pytest.mark.parametrize("net", [
    Net(read_elsewhere),
    Net(its_own_residual),
    Net(an_output),
    Net(lambda self, x: self.se(x) + x),
    Net(lambda self, x: self.a(torch.relu(self.se(x)))),
    project(8, 8, 3, padding=1),
    project(8, 8, 1, stride=2),
    project(8, 8, 1, padding=1),
    project(8, 8, 1, groups=2),
], ids=["read elsewhere", "its own residual", "an output", "no convolution", "activation between", "3x3", "stride 2",
        "padding", "groups"])  # fmt: skip
def test_what_resembles_it_stays(net):
    check(operand_gate, net, X, count=0, present={"se_scale": 1, "se_gate": 0, "pointwise_conv2d": 0}, prepare=BEFORE)
