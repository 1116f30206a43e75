# SPDX-License-Identifier: Apache-2.0
"""The captured program is functional, holds its own weights and knows its shapes; one spelling an operator."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.accelerate.capture import CaptureError, capture
from tests.accelerate.captured import Function, rewritten
from tests.accelerate.test_fold_batch_norm import Net

X = torch.randn(2, 6, 8, 8)

# written: what it becomes
SPELLINGS: dict[str, tuple[Callable[[Tensor], Tensor], dict[str, int]]] = {
    "relu_": (lambda x: (x + 1).relu_(), {"add": 1, "activation": 1}),
    "hardtanh": (lambda x: F.hardtanh(x, 0.0, 6.0), {"activation": 1}),
    "clamp": (lambda x: x.clamp(0, 6), {"activation": 1}),
    "clamp_min": (lambda x: x.clamp(min=0), {"activation": 1}),
    "another clamp": (lambda x: x.clamp(0, 5), {"clamp": 1}),
    "mean": (lambda x: x.mean((-1, -2)), {"global_avg_pool": 1, "reshape": 1}),
    "mean keepdim": (lambda x: x.mean((2, 3), keepdim=True), {"global_avg_pool": 1}),
    "mean over channels": (lambda x: x.mean((1, 2)), {"mean": 1}),
    "adaptive": (lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), {"global_avg_pool": 1, "reshape": 1}),
    "avg_pool of the map": (lambda x: F.avg_pool2d(x, 8), {"global_avg_pool": 1}),
    "avg_pool of windows": (lambda x: F.avg_pool2d(x, 4), {"avg_pool2d": 1}),
    "max_pool": (lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), {"max_pool2d": 1}),
    "dilated max_pool": (lambda x: F.max_pool2d(x, 3, 2, 1, dilation=2), {"max_pool2d": 1}),
    "view": (lambda x: x.view(x.size(0), -1), {"reshape": 1}),
    "chunk": (lambda x: x.chunk(2, 1)[1] * 1.5, {"slice": 1, "mul": 1}),
    "split": (lambda x: x.split([1, 5], dim=-3)[0] * 1.5, {"slice": 1, "mul": 1}),
    "narrow": (lambda x: x.narrow(1, 2, 3) * 1.5, {"slice": 1, "mul": 1}),
    "negative slice": (lambda x: x[:, -2:] * 1.5, {"slice": 1, "mul": 1}),
    "whole slice": (lambda x: x[:, 0:] * 1.5, {"mul": 1}),
    "dropout": (lambda x: F.dropout(x, training=False) * 1.5, {"mul": 1}),
    "contiguous": (lambda x: x.contiguous() * 1.5, {"mul": 1}),
    "same type": (lambda x: x.to(x.dtype) * 1.5, {"mul": 1}),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_one_spelling(name: str) -> None:
    function, wanted = SPELLINGS[name]
    assert dict(rewritten(Function(function), X)[2]) == wanted


def read_later(x: Tensor) -> Tensor:
    y = x + 1
    y.relu_()
    return y * 2


def through_a_view(x: Tensor) -> Tensor:
    y = x + 1
    y[:, :2].relu_()
    return y * 2


def a_view_read_later(x: Tensor) -> Tensor:
    y = x * 2
    view = y.flatten(1)
    y.add_(3)
    return view * 2


def itself(x: Tensor) -> Tensor:
    y = x * 2
    return y.add_(y).relu_()


def before_and_after(x: Tensor) -> Tensor:
    y = x * 2
    return torch.cat([y * 3, y.sigmoid_(), y], 1)


@pytest.mark.parametrize("function", [read_later, through_a_view, a_view_read_later, itself, before_and_after])
def test_in_place_operators(function: Callable[[Tensor], Tensor]) -> None:
    stands = rewritten(Function(function), X)[2]
    assert not any(name.endswith("_") for name in stands)


def test_weights_are_copies_and_shared_ones_stay_shared() -> None:
    conv = nn.Conv2d(6, 6, 1)
    program = capture(Net(lambda self, x: self.conv(self.conv(x)), conv=conv).eval(), (X,)).program
    found = dict(program.named_parameters())
    assert found.keys() == {"conv.weight", "conv.bias"}
    assert found["conv.weight"].data_ptr() != conv.weight.data_ptr()


def test_a_batch_that_the_model_fixes() -> None:
    found = capture(Function(lambda x: x + torch.ones(3, 1, 1, 1)), (torch.randn(3, 6, 2, 2),))
    assert not found.dynamic
    assert capture(Function(torch.relu), (X[:1],)).dynamic


def test_what_cannot_be_captured_names_its_line() -> None:
    def forward(x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x

    with pytest.raises(CaptureError, match=r"test_capture.py:\d+: return x if x.sum\(\) > 0"):
        capture(Function(forward), (X,))


@pytest.mark.parametrize("name", ["graph", "meta", "code"])
def test_a_layer_called_like_a_part_of_a_program(name: str) -> None:
    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._modules[name] = nn.Conv2d(6, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self._modules[name](x)

    assert rewritten(Direct(), X)[2] == {"conv_bn_act": 1}


def test_regions_without_gradient_or_autocast() -> None:
    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            y = x * 2
        with torch.autocast("cpu", enabled=False):
            return y.float().relu() + 1

    assert dict(rewritten(Function(forward), X)[2]) == {"mul": 1, "to": 1, "activation": 1, "add": 1}


def test_a_region_that_changes_types_is_refused() -> None:
    def forward(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return torch.conv2d(x, torch.ones(2, 6, 3, 3))

    with pytest.raises(CaptureError, match="wrap_with_autocast"):
        capture(Function(forward), (X,))
