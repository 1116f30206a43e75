# SPDX-License-Identifier: Apache-2.0
"""The gate of a squeeze-and-excitation goes with the depthwise convolution whose map it pools."""

import pytest
import torch
from torch import Tensor, nn

import fastcnn
from fastcnn.accelerate.capture import capture
from fastcnn.accelerate.cost import cost
from fastcnn.accelerate.program import DEPTHWISE_SE_GATE, calls
from fastcnn.accelerate.rewrites import rewrite
from fastcnn.accelerate.rewrites.conv_activation import conv_activation
from fastcnn.accelerate.rewrites.depthwise import depthwise
from fastcnn.accelerate.rewrites.depthwise_se_gate import depthwise_se_gate
from fastcnn.accelerate.rewrites.fold_batch_norm import fold_batch_norm
from fastcnn.accelerate.rewrites.operand_gate import operand_gate
from fastcnn.accelerate.rewrites.squeeze_excite import squeeze_excite
from fastcnn.nn import SqueezeExcite
from tests.accelerate.graphs import check
from tests.accelerate.test_operand_gate import Written

X = torch.randn(3, 8, 9, 7)
BEFORE = (fold_batch_norm, conv_activation, squeeze_excite, operand_gate, depthwise)


def convolution(kernel: int = 3, stride: int = 1, **more) -> nn.Sequential:
    conv = nn.Conv2d(8, 8, kernel, stride, kernel // 2, **{"groups": 8, "bias": False} | more)
    return nn.Sequential(conv, nn.BatchNorm2d(8), nn.Hardswish())


class Net(nn.Module):
    def __init__(self, forward) -> None:
        super().__init__()
        self.conv, self.se, self.project, self.call = convolution(), Written(), nn.Conv2d(8, 6, 1), forward

    def forward(self, x: Tensor):
        return self.call(self, x)


@pytest.mark.parametrize("se", [Written(), SqueezeExcite(8, 4)])
@pytest.mark.parametrize("window", [{}, {"kernel": 5, "stride": 2}, {"dilation": 2, "bias": True}], ids=str)
def test_the_convolution_takes_the_gate(se, window):
    net = nn.Sequential(convolution(**window), se, nn.Conv2d(8, 6, 1))
    program = check(depthwise_se_gate, net, X, count=1, prepare=BEFORE, absent=("depthwise_conv2d", "se_gate"),
                    present={"depthwise_se_gate": 1, "pointwise_conv2d": 1})  # fmt: skip
    (node,) = calls(program, DEPTHWISE_SE_GATE)
    kernel, stride = window.get("kernel", 3), window.get("stride", 1)
    assert node.args[7:9] == ((stride, stride), (kernel // 2,) * 4) and node.args[10] == "hardswish"


def read_elsewhere(self: Net, x: Tensor):
    y = self.conv(x)
    return self.project(self.se(y)), y.relu()


def read_before(self: Net, x: Tensor):
    y = self.conv(x)
    z = y * 2
    return self.project(self.se(y)) + z[:, :6]


@pytest.mark.parametrize("forward", [read_elsewhere, read_before])
def test_other_readers_of_the_map_keep_it(forward):
    check(depthwise_se_gate, Net(forward), X, count=1, prepare=BEFORE, absent=("depthwise_conv2d", "se_gate"),
          present={"depthwise_se_gate": 1})  # fmt: skip


def test_two_blocks():
    def block() -> nn.Sequential:
        return nn.Sequential(convolution(), Written(), nn.Conv2d(8, 8, 1))

    check(depthwise_se_gate, nn.Sequential(block(), block()), X, count=2, prepare=BEFORE, absent=("se_gate",),
          present={"depthwise_se_gate": 2})  # fmt: skip


@pytest.mark.parametrize("net", [
    nn.Sequential(nn.Hardswish(), Written(), nn.Conv2d(8, 6, 1)),
    nn.Sequential(convolution(groups=2), Written(), nn.Conv2d(8, 6, 1)),
    nn.Sequential(convolution(), nn.MaxPool2d(2), Written(), nn.Conv2d(8, 6, 1)),
    Net(lambda self, x: self.project(self.se(torch.relu(self.conv[0](x) + x)))),
    nn.Sequential(convolution(), Written(), nn.Conv2d(8, 6, 3)),
], ids=["no convolution", "groups", "pool between", "residual", "se_scale"])  # fmt: skip
def test_what_resembles_it_stays(net):
    check(depthwise_se_gate, net, X, count=0, present={"depthwise_se_gate": 0}, prepare=BEFORE)


def test_off_on_a_cpu_and_by_mapping_and_what_it_saves():
    net = nn.Sequential(convolution(), SqueezeExcite(8, 4), nn.Conv2d(8, 6, 1)).eval()
    costs = {}
    for device, mapping, count in (("cpu", None, 0), ("cpu", {"depthwise_se_gate": True}, 1), ("cuda", None, 1),
                                   ("cuda", {"depthwise_se_gate": False}, 0)):  # fmt: skip
        program = capture(net, (X,)).program
        assert rewrite(program, mapping, device)["depthwise_se_gate"] == count
        costs[count] = cost(program)
    assert costs[0].bytes - costs[1].bytes == 2 * 8 * 9 * 7  # the map once
    assert costs[0].launches == costs[1].launches


@pytest.mark.parametrize("portable", [False, True])
def test_accelerated_saved_and_loaded(tmp_path, portable):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), convolution(), SqueezeExcite(8, 4), nn.Conv2d(8, 6, 1)).eval()
    x = torch.randn(2, 3, 9, 9)
    fast = fastcnn.accelerate(net, x, mapping={"depthwise_se_gate": True}, portable=portable)
    assert fast.report.fused["depthwise_se_gate"] == 1
    fast.save(tmp_path / "net.zip")
    again = fastcnn.load(tmp_path / "net.zip")
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net(x))
        assert torch.equal(again(x), fast(x))
