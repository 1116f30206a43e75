# SPDX-License-Identifier: Apache-2.0
"""accelerate() as users call it: the result computes the same, is an ordinary module, and says what was done."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn

import fastcnn
from fastcnn.reference import calibrate, relative_error


class Block(nn.Module):
    """An inverted residual with everything in it but squeeze-and-excitation."""

    def __init__(self, act: type[nn.Module] = nn.ReLU6) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24), act(inplace=True))
        self.dw = nn.Sequential(
            nn.Conv2d(24, 24, 3, 1, 1, groups=24, bias=False), nn.BatchNorm2d(24), act(inplace=True)
        )
        self.project = nn.Sequential(nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.project(self.dw(self.expand(x)))


def small_net() -> nn.Module:
    stem = (nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
    net = nn.Sequential(*stem, Block(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(8, 5))
    return calibrate(net, [3, 16, 16])


@pytest.fixture
def net() -> nn.Module:
    return small_net()


@pytest.fixture
def fast(net: nn.Module) -> nn.Module:
    return fastcnn.accelerate(net, torch.randn(2, 3, 16, 16))


def targets(fast: nn.Module) -> list[str]:
    return [str(n.target).removesuffix(".default") for n in fast.program.graph.nodes if n.op == "call_function"]


def test_every_layer_is_one_op(fast: nn.Module) -> None:
    conv, dw = "fastcnn.conv_bn_act", "fastcnn.depthwise_conv2d"
    assert targets(fast) == [
        "aten.contiguous",
        conv,
        conv,
        dw,
        conv,
        "fastcnn.global_avg_pool",
        "aten.reshape",
        "aten.linear",
    ]
    assert fast.report.fused["fold_batch_norm"] == 4
    assert [each.operator for each in fast.report.left] == ["aten.linear"]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_equal_for_any_batch(net: nn.Module, fast: nn.Module, batch: int) -> None:
    x = torch.randn(batch, 3, 16, 16)
    truth = net.double()(x.double()).detach()
    assert relative_error(fast(x), truth) < 1e-5


def test_the_original_and_the_result_do_not_reach_each_other(net: nn.Module) -> None:
    before = deepcopy(net.state_dict())
    x = torch.randn(1, 3, 16, 16)
    fast = fastcnn.accelerate(net, x)
    assert all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())
    y = fast(x)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert torch.equal(fast(x), y)


def test_is_an_ordinary_module(fast: nn.Module) -> None:
    x = torch.randn(3, 3, 16, 16)
    y = fast(x)
    assert torch.equal(deepcopy(fast)(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(fast))(x), y)
    fast.load_state_dict(fast.state_dict(), strict=True)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(each, y) for each in pool.map(fast, [x] * 16))
    torch.testing.assert_close(torch.compile(fast, backend="eager", fullgraph=True)(x), y)
    again = fastcnn.accelerate(fast, x)
    torch.testing.assert_close(again(x), y)
    assert targets(again) == targets(fast)
    double = fast.double()(x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), y)


def test_half_precision_inside_keeps_the_callers_dtype(net: nn.Module) -> None:
    x = torch.randn(2, 3, 16, 16)
    fast = fastcnn.accelerate(net, x, dtype=torch.bfloat16)
    assert fast.dtype() is torch.bfloat16
    assert fast(x).dtype is torch.float32
    assert fast.report.dtype == "bfloat16"


def test_another_shape_is_refused_by_name(fast: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"must be \[N, 3, 16, 16\] as in the example, got \[2, 3, 17, 16\]"):
        fast(torch.randn(2, 3, 17, 16))
    with pytest.raises(TypeError, match="takes 1 inputs, got 2"):
        fast(torch.randn(1, 3, 16, 16), torch.randn(1))


def test_dynamic_size(net: nn.Module) -> None:
    fast = fastcnn.accelerate(net, torch.randn(2, 3, 16, 16), dynamic_size=True)
    x = torch.randn(3, 3, 21, 18)
    assert relative_error(fast(x), net.double()(x.double()).detach()) < 1e-5


def test_switches(net: nn.Module) -> None:
    x = torch.randn(2, 3, 16, 16)
    fast = fastcnn.accelerate(net, x, mapping={"conv_activation": False, "depthwise": False})
    assert fast.report.fused["conv_activation"] == fast.report.fused["depthwise"] == 0
    assert relative_error(fast(x), deepcopy(net).double()(x.double()).detach()) < 1e-5
    with pytest.raises(ValueError, match="nearest: fold_batch_norm"):
        fastcnn.accelerate(net, x, mapping={"fold_batchnorm": False})


def test_tolerance_and_speed_are_demands(net: nn.Module) -> None:
    x = torch.randn(2, 3, 16, 16)
    with pytest.raises(fastcnn.accelerate.ToleranceError, match="allowed 0"):
        fastcnn.accelerate(net, x, tolerance=0.0)
    refused = fastcnn.accelerate(net, x, tolerance=0.0, strict=False)
    assert not refused.report.accelerated
    assert refused.model is net
    assert torch.equal(refused(x), net(x))


def test_the_report_says_what_happened(fast: nn.Module) -> None:
    text, found = str(fast.report), fast.report.to_dict()
    assert "fold_batch_norm 4" in text
    assert "a matrix product" in text
    assert found["launches"]["after"] == 1 < found["launches"]["before"]
    assert found["bytes"]["after"] < found["bytes"]["before"]
    assert found["errors"]["example"]["fp64"] <= found["errors"]["example"]["allowed"]
    assert found["operators"]["fastcnn.conv_bn_act"]["count"] == 3


def test_saved_and_loaded(fast: nn.Module, tmp_path: Path) -> None:
    fast.save(tmp_path / "net.fastcnn")
    loaded = fastcnn.load(tmp_path / "net.fastcnn")
    for batch in (1, 3):
        x = torch.randn(batch, 3, 16, 16)
        assert torch.equal(loaded(x), fast(x))
    assert loaded.report == fast.report
    assert loaded.rules == fast.rules
    with pytest.raises(ValueError, match=r"must be \[N, 3, 16, 16\]"):
        loaded(torch.randn(1, 3, 8, 8))
    loaded.save(tmp_path / "again.fastcnn")
    assert (tmp_path / "again.fastcnn").read_bytes() == (tmp_path / "net.fastcnn").read_bytes()


class Gated(nn.Module):
    """A squeeze-and-excitation in front of a 1x1 convolution: inference ops."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.expand, self.project = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.expand(self.reduce(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.project(x * gate)


def test_the_gradient_of_the_input() -> None:
    net, x = Gated().eval(), torch.randn(2, 8, 5, 5, requires_grad=True)
    fast = fastcnn.accelerate(net, x)
    assert "fastcnn.pointwise_conv2d" in targets(fast)
    with pytest.raises(RuntimeError, match="pointwise_conv2d|se_gate"):
        fast(x).sum().backward()
    fast = fastcnn.accelerate(net, x, mapping={"operand_gate": False})
    (got,) = torch.autograd.grad(fast(x).sum(), x)
    (wanted,) = torch.autograd.grad(net(x).sum(), x)
    torch.testing.assert_close(got, wanted)
