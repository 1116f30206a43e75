# SPDX-License-Identifier: Apache-2.0
"""On the CPU dense convolutions outside of plans run on packed weights, which follow the weights of the program."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fastcnn
from fastcnn.reference import relative_error
from tests.accelerate.test_conv_activation import KINDS

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


class Net(nn.Module):
    """Two dense convolutions, the second with a residual, and one that packing leaves alone."""

    def __init__(self, kind: nn.Module, groups: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(8, 8, 3, padding=(1, 1), groups=groups)
        self.b = nn.Conv2d(8, 8, (3, 1), padding=(1, 0))
        self.c = nn.Conv2d(8, 4, 1)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.kind(self.b(self.kind(self.a(x))) + x))


def packed_calls(fast: nn.Module) -> int:
    return sum(
        getattr(n.target, "namespace", "") == "mkldnn" for n in fast.runs((torch.empty(1, 8, 9, 7),)).graph.nodes
    )


@needs_onednn
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_equal(kind: str, groups: int) -> None:
    net = Net(KINDS[kind], groups).eval()
    fast = fastcnn.accelerate(net, torch.randn(2, 8, 9, 7), mapping={"plan": False})
    assert packed_calls(fast) == 2
    for shape in ((1, 8, 9, 7), (5, 8, 9, 7)):
        x = torch.randn(shape)
        assert relative_error(fast(x), net.double()(x.double()).detach()) < 1e-5
        net.float()


@needs_onednn
def test_packed_weights_follow_the_program() -> None:
    net = Net(nn.ReLU(), 1).eval()
    x = torch.randn(2, 8, 9, 7)
    fast = fastcnn.accelerate(net, x, mapping={"plan": False})
    before = fast(x)
    with torch.no_grad():
        fast.program.a.weight.mul_(2.0)
        net.a.weight.mul_(2.0)
    assert not torch.equal(fast(x), before)
    torch.testing.assert_close(fast(x), net(x))
    assert set(fast.state_dict()) == {f"program.{name}.{leaf}" for name in "abc" for leaf in ("weight", "bias")}
    fast.load_state_dict({key: torch.zeros_like(value) for key, value in fast.state_dict().items()})
    assert not fast(x).any()
    double = deepcopy(fast).double()
    assert packed_calls(double) == 0
    assert double(x.double()).dtype == torch.float64


@needs_onednn
def test_the_program_itself_runs_where_somebody_watches() -> None:
    net = Net(nn.ReLU(), 1).eval()
    x = torch.randn(2, 8, 9, 7)
    fast = fastcnn.accelerate(net, x, mapping={"plan": False})
    with FlopCounterMode(display=False) as counter:
        fast(x)
    assert counter.get_total_flops() == 2 * 2 * 9 * 7 * (8 * 8 * 9 + 8 * 8 * 3 + 8 * 4)
    grad = x.clone().requires_grad_()
    fast(grad).sum().backward()
    assert grad.grad.abs().sum() > 0
    with torch.autocast("cpu", torch.bfloat16):
        assert fast(x).shape == (2, 4, 9, 7)


def test_without_onednn_the_program_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    net = Net(nn.ReLU(), 1).eval()
    x = torch.randn(2, 8, 9, 7)
    fast = fastcnn.accelerate(net, x, mapping={"plan": False})
    assert packed_calls(fast) == 0
    torch.testing.assert_close(fast(x), net(x))
