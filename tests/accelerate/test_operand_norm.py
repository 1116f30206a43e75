# SPDX-License-Identifier: Apache-2.0
"""Batch norm and activation in front of 1x1 convolutions become their operand."""

import pytest
import torch
from torch import Tensor, nn

from fastcnn.accelerate.program import POINTWISE, calls, tensor_of
from fastcnn.accelerate.rewrites.conv_activation import conv_activation
from fastcnn.accelerate.rewrites.fold_batch_norm import fold_batch_norm
from fastcnn.accelerate.rewrites.operand_norm import operand_norm
from tests.accelerate.graphs import check, reasons

X = torch.randn(3, 8, 5, 6)
BEFORE = (fold_batch_norm, conv_activation)


class Net(nn.Module):
    def __init__(self, forward, **options) -> None:
        super().__init__()
        self.norm, self.last, self.call = nn.BatchNorm2d(8, **options), nn.BatchNorm2d(8), forward
        self.a, self.b, self.c = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor):
        return self.call(self, x)


def before(*conv, **options) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(*conv, **options))


@pytest.mark.parametrize(("act", "kind"), [(nn.ReLU(True), "relu"), (nn.SiLU(), "silu")])
@pytest.mark.parametrize("options", [{}, {"affine": False}])
def test_norm_and_activation(act, kind, options):
    tail = (nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6())
    program = check(operand_norm, nn.Sequential(nn.BatchNorm2d(8, **options), act, *tail), X, count=1, prepare=BEFORE,
                    present={"pointwise_conv2d": 1}, absent=("batch_norm_act", "conv_bn_act", kind))  # fmt: skip
    (node,) = calls(program, POINTWISE)
    assert node.args[7:] == (kind, "relu6")
    assert {node.args[5].target, node.args[6].target} == {"0.scale", "0.shift"}
    assert tensor_of(program, node.args[5]).dtype == torch.float64


def test_a_layer_of_densenet():
    def forward(self: Net, x: Tensor) -> Tensor:
        y = torch.cat([x, self.b(torch.relu(self.norm(x)))], 1)
        return torch.cat([y, self.c(y)], 1)

    check(operand_norm, Net(forward), X, count=1, prepare=BEFORE,
          present={"pointwise_conv2d": 1, "conv_bn_act": 1, "aten.cat": 2}, absent=("batch_norm_act",))  # fmt: skip


def test_a_pre_activation_block_with_its_residual():
    """Both convolutions read the norm; one adds the other's result."""

    def forward(self: Net, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(x))
        return self.a(y) + torch.sigmoid(self.b(y))

    check(operand_norm, Net(forward), X, count=1, present={"pointwise_conv2d": 2}, prepare=BEFORE,
          absent=("batch_norm_act", "aten.add", "sigmoid"))  # fmt: skip


def test_a_norm_that_the_weights_could_take():
    check(operand_norm, nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)), X, count=1,
          present={"pointwise_conv2d": 1}, absent=("batch_norm_act",))  # fmt: skip


def read_elsewhere(self: Net, x: Tensor) -> Tensor:
    y = torch.relu(self.norm(x))
    return self.a(y) * y


def with_residual(self: Net, x: Tensor) -> Tensor:
    return self.a(torch.relu(self.norm(x) + self.last.weight.mean() * x))


STAYS = {
    "read elsewhere": (Net(read_elsewhere), "read by others"),
    "a residual": (Net(with_residual), "a residual is added"),
    "3x3": (before(8, 8, 3, padding=1), "read by others"),
    "stride 2": (before(8, 8, 1, stride=2), "read by others"),
    "padding": (before(8, 8, 1, padding=1), "read by others"),
    "groups": (before(8, 8, 1, groups=2), "read by others"),
    "an output": (nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()), "read by others"),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_resembles_it_stays_with_a_reason(name):
    net, reason = STAYS[name]
    program = check(operand_norm, net, X, count=0, prepare=BEFORE, present={"batch_norm_act": 1, "pointwise_conv2d": 0})
    assert reason in reasons(program)
