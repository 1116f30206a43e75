# SPDX-License-Identifier: Apache-2.0
"""BiT: standardised weights that are never stale, group norm, the width factor."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastcnn.models.bit import BiT, StdConv2d


def standardised(weight: torch.Tensor) -> torch.Tensor:
    rows = weight.double().flatten(1)
    centred = rows - rows.sum(1, keepdim=True) / rows.shape[1]
    return (centred / ((centred**2).sum(1, keepdim=True) / rows.shape[1] + 1e-8).sqrt()).view_as(weight)


@pytest.mark.parametrize("training", [False, True])
def test_the_weights_of_now_are_standardised(training: bool) -> None:
    torch.manual_seed(0)
    conv = StdConv2d(6, 8, 3, 2, 1, bias=False).train(training)
    x, residual = torch.randn(2, 6, 9, 9), torch.randn(2, 8, 5, 5)
    for _ in range(2):
        wanted = F.conv2d(x.double(), standardised(conv.weight.detach()), stride=2, padding=1)
        torch.testing.assert_close(conv(x).double(), wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(conv(x, residual).double(), wanted + residual, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            conv.weight.data.mul_(3.0).add_(torch.randn_like(conv.weight))  # behind autograd's back


def test_the_gradient_sees_neither_the_mean_nor_the_scale() -> None:
    """For a loss quadratic in the weights used, gradient times weights is ``2 loss eps / (variance + eps)``, by hand."""
    torch.manual_seed(0)
    conv = StdConv2d(4, 5, 3, bias=False).double()
    loss = conv(torch.randn(2, 4, 8, 8, dtype=torch.float64)).square().sum((0, 2, 3))
    loss.sum().backward()
    weight, grad = conv.weight.detach().flatten(1), conv.weight.grad.flatten(1)
    variance, mean = torch.var_mean(weight, 1, correction=0)
    assert grad.abs().max() > 1.0
    assert grad.sum(1).abs().max() < 1e-9
    along = (grad * (weight - mean.view(-1, 1))).sum(1)
    torch.testing.assert_close(along, 2 * loss.detach() * conv.eps / (variance + conv.eps), rtol=1e-4, atol=1e-9)


class Calls(TorchDispatchMode):
    """How often our convolution runs, and the sums of whole feature maps outside of it."""

    convolutions = 0

    def __init__(self) -> None:
        super().__init__()
        self.sums: list[torch.Size] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        self.convolutions += name.startswith("fastcnn.conv_bn_act")
        if name.startswith("aten.add") and args[0].shape[2:].numel() > 1:
            self.sums.append(args[0].shape)
        return func(*args, **(kwargs or {}))


def test_a_convolution_and_its_sum_are_one_call() -> None:
    with torch.device("meta"):
        net = BiT(50, num_classes=7).eval()
    with torch.no_grad(), Calls() as calls:
        net(torch.empty(1, 3, 64, 64, device="meta"))
    assert calls.convolutions == sum(isinstance(module, nn.Conv2d) for module in net.modules()) == 54
    assert not calls.sums


def test_width_is_a_parameter() -> None:
    """Every layer ``width`` times as wide, the stem included; 32 groups in every norm."""
    for width in (1, 2, 3):
        with torch.device("meta"):
            net = BiT(50, width)
        assert (net.stem.conv.out_channels, net.head.fc.in_channels) == (64 * width, 2048 * width)
        assert {norm.num_groups for norm in net.modules() if isinstance(norm, nn.GroupNorm)} == {32}


def test_classes_channels_dropout_and_copies() -> None:
    net = BiT(50, num_classes=7, in_chans=1, dropout=0.4).eval()
    assert [module.p for module in net.modules() if isinstance(module, nn.Dropout)] == [0.4]
    x = torch.randn(2, 1, 33, 50)
    wanted = net(x)
    assert wanted.shape == (2, 7)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(x), wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_are_standardised_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    conv = StdConv2d(6, 8, 3, 1, 1, bias=False)
    with torch.no_grad():
        conv.weight.mul_(1e-3)  # their variance is no normal number of float16
    x = torch.randn(2, 6, 9, 9)
    wanted = F.conv2d(x.to(dtype).double(), standardised(conv.weight.detach().to(dtype)), padding=1)
    error = (conv.to(dtype)(x.to(dtype)).double() - wanted).abs().max() / wanted.abs().max()
    assert error < 4 * torch.finfo(dtype).eps


def test_a_depth_without_bottlenecks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layers must be one of \[50, 101, 152, 200\], got 18"):
        BiT(18)


@pytest.mark.long
def test_exports_with_a_dynamic_batch() -> None:
    net = BiT(50, num_classes=5).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(net, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(program.module()(x), net(x))
