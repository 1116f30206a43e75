# SPDX-License-Identifier: Apache-2.0
"""Batch norm goes into the convolution or the linear layer, or stays with a reason."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastcnn
from fastcnn.accelerate.rewrites.fold_batch_norm import fold_batch_norm
from tests.accelerate.captured import Function, reasons, rewritten

X = torch.randn(2, 6, 7, 8)


class Net(nn.Module):
    def __init__(self, forward: Callable, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.calls = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.calls(self, x)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_behind_a_convolution(bias: bool, affine: bool, groups: int) -> None:
    conv = nn.Conv2d(6, 12, 3, 2, 1, groups=groups, bias=bias)
    program, counts, stands = rewritten(
        nn.Sequential(conv, nn.BatchNorm2d(12, eps=0.1, affine=affine)), X, fold_batch_norm
    )
    assert counts == [1]
    assert stands == {"conv_bn_act": 1}
    assert dict(program.named_parameters()).keys() == {"0.weight", "0.bias"}


def test_gamma_of_zero_leaves_beta() -> None:
    norm = nn.BatchNorm2d(4)
    net = Net(lambda self, x: self.norm(self.conv(x)), conv=nn.Conv2d(6, 4, 1), norm=norm)
    with torch.no_grad():
        norm.weight.zero_()
    fast = fastcnn.accelerate(net.eval(), X)
    assert fast.report.fused["fold_batch_norm"] == 1
    torch.testing.assert_close(fast(X), norm.bias.view(1, -1, 1, 1).expand(2, 4, 7, 8))


@pytest.mark.parametrize("groups", [1, 3])
def test_in_front_of_an_unpadded_convolution(groups: int) -> None:
    net = nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 9, (3, 1), groups=groups))
    _, counts, stands = rewritten(net, X, fold_batch_norm)
    assert counts == [1]
    assert stands == {"conv_bn_act": 1}


def test_in_front_of_a_padded_convolution_it_stays() -> None:
    program, counts, stands = rewritten(
        nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1)), X, fold_batch_norm
    )
    assert counts == [0]
    assert stands == {"batch_norm_act": 1, "conv_bn_act": 1}
    assert reasons(program) == ["the convolution behind it pads with zeros, which the batch norm does not see"]


def test_twice_in_a_row() -> None:
    net = nn.Sequential(nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    assert rewritten(net, X, fold_batch_norm)[1:] == ([2], {"conv_bn_act": 1})


def test_two_batch_norms_of_one_convolution() -> None:
    net = Net(lambda self, x: self.a(self.conv(x)) * self.b(self.conv(x)), conv=nn.Conv2d(6, 4, 3), a=nn.BatchNorm2d(4),
              b=nn.BatchNorm2d(4))  # fmt: skip
    assert rewritten(net, X, fold_batch_norm)[1:] == ([2], {"conv_bn_act": 2, "mul": 1})

    def read_twice(self: Net, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.a(y) * self.b(y)

    net.calls = read_twice
    assert rewritten(net, X, fold_batch_norm)[1:] == ([2], {"conv_bn_act": 2, "mul": 1})


def test_a_convolution_that_others_read() -> None:
    def forward(self: Net, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.norm(y) + y.relu()

    net = Net(forward, conv=nn.Conv2d(6, 4, 3), norm=nn.BatchNorm2d(4))
    program, counts, stands = rewritten(net, X, fold_batch_norm)
    assert counts == [0]
    assert stands["batch_norm_act"] == 1
    assert reasons(program) == ["the convolution's result is read by others too, or is an output"]


def test_an_activation_between() -> None:
    net = nn.Sequential(nn.Conv2d(6, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))
    program, counts, _ = rewritten(net, X, fold_batch_norm)
    assert counts == [0]
    assert reasons(program) == ["its input is no convolution but fastcnn.activation"]


@pytest.mark.parametrize("bias", [False, True])
def test_behind_a_linear_layer(bias: bool) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 5, bias=bias), nn.BatchNorm1d(5))
    assert rewritten(net, X[:, :, :1, :1], fold_batch_norm)[1:] == ([1], {"reshape": 1, "linear": 1})


def test_behind_what_keeps_views_of_what_is_written() -> None:
    """torch's own functional form has other batch norms."""

    def forward(self: Net, x: Tensor) -> Tensor:
        y = self.a(self.conv(x))
        y[:, :2].relu_()
        return self.c(self.fc(y.mean((2, 3)))) * self.b(y).mean((2, 3))

    net = Net(forward, conv=nn.Conv2d(6, 4, 3), a=nn.BatchNorm2d(4), b=nn.BatchNorm2d(4, track_running_stats=False),
              fc=nn.Linear(4, 4), c=nn.BatchNorm1d(4))  # fmt: skip
    program, counts, stands = rewritten(net, X, fold_batch_norm)
    assert counts == [2]
    assert stands["batch_norm"] == 1
    assert reasons(program) == ["it has no running statistics: the batch's own are used"]


def test_without_running_statistics() -> None:
    net = nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    program, counts, stands = rewritten(net, X, fold_batch_norm)
    assert counts == [0]
    assert stands == {"conv_bn_act": 1, "batch_norm": 1}
    assert reasons(program) == ["it has no running statistics: the batch's own are used"]


def test_a_computed_weight_is_folded_where_it_depends_on_weights_alone() -> None:
    conv, norm = nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)
    net = Net(lambda self, x: self.norm(torch.conv2d(x, self.conv.weight * 2 - 1)), conv=conv, norm=norm)
    assert rewritten(net, X, fold_batch_norm)[1:] == ([1], {"conv_bn_act": 1})
    net = Net(lambda self, x: self.norm(torch.conv2d(x, self.conv.weight * x.mean())), conv=conv, norm=norm)
    program, counts, _ = rewritten(net, X, fold_batch_norm)
    assert counts == [0]
    assert "computed from the input" in reasons(program)[0]


def test_nothing_to_fold() -> None:
    assert rewritten(Function(torch.relu), X, fold_batch_norm)[1:] == ([0], {"activation": 1})
