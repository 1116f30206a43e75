# SPDX-License-Identifier: Apache-2.0
"""What accelerate() does not take: an error that names the argument and says what it wants, before any work."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

import fastcnn
from fastcnn.accelerate import CaptureError, ToleranceError, Unchanged


def net(channels: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1)).eval()


IMAGE = torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize(("model", "got"), [
    (lambda x: x, "function"), (nn.ReLU, "type"), (None, "NoneType"), ("resnet18", "str"), (IMAGE, "Tensor"),
])  # fmt: skip
def test_model_is_no_module(model: object, got: str) -> None:
    with pytest.raises(TypeError, match=rf"^accelerate: model must be an nn.Module, got {got}"):
        fastcnn.accelerate(model, IMAGE)


def test_model_in_training_mode() -> None:
    with pytest.raises(ValueError, match=r"^accelerate: model must be in eval mode.*model\.eval\(\)"):
        fastcnn.accelerate(net().train(), IMAGE)
    half = net()
    half[1].train()
    with pytest.raises(ValueError, match=r"^accelerate: model must be in eval mode"):
        fastcnn.accelerate(half, IMAGE)


@pytest.mark.parametrize(("example", "got"), [
    (3, "int"), ("image", "str"), (None, "NoneType"), ({"x": IMAGE}, "dict"), ((IMAGE, 3), "int"), ([IMAGE, None], "NoneType"),
    ((), "none"), (np.zeros((1, 3, 8, 8), np.float32), "ndarray"), ([[1.0, 2.0]], "list"), (torch.Size([1, 3, 8, 8]), "int"),
])  # fmt: skip
def test_example_is_no_tensor(example: object, got: str) -> None:
    with pytest.raises(TypeError, match=rf"^accelerate: example must be a Tensor or a tuple of Tensors, got .*{got}"):
        fastcnn.accelerate(net(), example)


@pytest.mark.parametrize(("example", "message"), [
    (torch.quantize_per_tensor(IMAGE, 0.1, 0, torch.qint8), "must be a dense tensor, got a quantized one"),
    (IMAGE.to_sparse(), "must be a dense tensor, got a sparse_coo one"),
    (IMAGE.to(torch.complex64), "must be real, got complex64"),
    (IMAGE.double(), "must have the model's dtype, float32, got float64"),
    (IMAGE.half(), "must have the model's dtype, float32, got float16"),
    (IMAGE[:0], r"must have elements, its batch too, got \[0, 3, 8, 8\]"),
    (IMAGE[..., :0], r"must have elements, its batch too, got \[2, 3, 8, 0\]"),
    (IMAGE.to("meta"), "must be on the model's device, cpu, got meta"),
])  # fmt: skip
def test_example_of_the_wrong_kind(example: torch.Tensor, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^accelerate: example {message}"):
        fastcnn.accelerate(net(), example)


def test_the_second_example_is_named() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y

    with pytest.raises(TypeError, match=r"^accelerate: example\[1\] must be real, got complex64"):
        fastcnn.accelerate(Two().eval(), (IMAGE, IMAGE.to(torch.complex64)))


@pytest.mark.parametrize(("example", "reason"), [
    (torch.randn(2, 4, 8, 8), "channels"), (torch.randint(0, 255, (2, 3, 8, 8), dtype=torch.uint8), "type"),
    (torch.randn(2, 3, 2, 2), "ernel size"), (torch.tensor(1.0), "put"), ((IMAGE, IMAGE), "arguments"),
])  # fmt: skip
def test_example_that_the_model_itself_refuses(example: torch.Tensor, reason: str) -> None:
    with pytest.raises(
        CaptureError, match=rf"^accelerate: model Sequential cannot be captured by torch\.export.*{reason}"
    ):
        fastcnn.accelerate(net(), example)


def test_weights_that_are_not_there() -> None:
    with pytest.raises(ValueError, match=r"^accelerate: model must hold weights, got one on the meta device"):
        fastcnn.accelerate(net().to("meta"), IMAGE)
    partly = net()
    partly[3].to("meta")
    with pytest.raises(ValueError, match=r"^accelerate: model must be on one device, got cpu, meta"):
        fastcnn.accelerate(partly, IMAGE)
    with pytest.raises(
        ValueError, match=r"^accelerate: model must have weights of known shape, got lazy ones, 0\.weight"
    ):
        fastcnn.accelerate(nn.Sequential(nn.LazyConv2d(4, 3)).eval(), IMAGE)


@pytest.mark.parametrize(("name", "value"), [("0.weight", float("nan")), ("1.running_var", float("inf")),
                                             ("3.bias", float("-inf"))])  # fmt: skip
def test_weights_that_are_no_numbers(name: str, value: float) -> None:
    model = net()
    model.state_dict()[name].view(-1)[1] = value
    with pytest.raises(ValueError, match=rf"^accelerate: model must have finite weights, got .* in {name}"):
        fastcnn.accelerate(model, IMAGE)


@pytest.mark.parametrize(("option", "value", "message"), [
    ("dtype", int, "dtype must be one of .*float16.* got <class 'int'>"),
    ("dtype", "float16", "dtype must be one of .*float16.* got 'float16'"),
    ("dtype", torch.int8, r"dtype must be one of .* got torch\.int8"),
    ("dtype", torch.complex64, r"dtype must be one of .* got torch\.complex64"),
    ("tolerance", -1, "tolerance must be finite and not negative, got -1"),
    ("tolerance", float("nan"), "tolerance must be finite and not negative, got nan"),
    ("tolerance", float("inf"), "tolerance must be finite and not negative, got inf"),
    ("tolerance", "1e-5", "tolerance must be a number or None, got str"),
    ("tolerance", True, "tolerance must be a number or None, got bool"),
    ("mapping", ["depthwise"], "mapping must be a dict of rewrite names to True or False, got"),
    ("mapping", {"depthwise": 0}, "mapping must be a dict of rewrite names to True or False, got"),
    ("mapping", {"depth_wise": False}, "mapping must name rewrites, got 'depth_wise'; nearest: depthwise"),
    ("mapping", {"no such thing": False}, "mapping must name rewrites, got 'no such thing'; nearest: .*fold_batch_norm"),
    ("mapping", {3: False}, "mapping must name rewrites, got 3"),
    ("strict", "no", "strict must be True or False, got 'no'"),
    ("dynamic_size", 224, "dynamic_size must be True or False, got 224"),
    ("require_speedup", 1.5, r"require_speedup must be True or False, got 1\.5"),
    ("portable", None, "portable must be True or False, got None"),
])  # fmt: skip
def test_options(option: str, value: object, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^accelerate: {message}"):
        fastcnn.accelerate(net(), IMAGE, **{option: value})


class DataDependent(nn.Module):
    """Takes another way for bright images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return self.conv(x)
        return -self.conv(x)


def test_data_dependent_control_flow() -> None:
    model = DataDependent().eval()
    with pytest.raises(
        CaptureError, match=r"DataDependent cannot be captured by torch\.export.*if x\.sum\(\) > 0:.*"
    ) as raised:
        fastcnn.accelerate(model, IMAGE)
    assert "test_bad_inputs.py" in str(raised.value)
    assert "data-dependent" in str(raised.value)
    fast = fastcnn.accelerate(model, IMAGE, strict=False)
    assert isinstance(fast, Unchanged)
    assert "if x.sum() > 0:" in fast.report.refused
    assert "returned as it is" in str(fast.report)
    for sign in (1, -1):
        x = sign * IMAGE.abs()
        assert torch.equal(fast(x), model(x))


def test_a_net_that_draws_random_numbers_is_not_called_equal() -> None:
    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.rand_like(x)

    with pytest.raises(ToleranceError, match="differs by .*it draws random numbers"):
        fastcnn.accelerate(Noisy().eval(), IMAGE)
    assert not fastcnn.accelerate(Noisy().eval(), IMAGE, strict=False).report.accelerated


def test_a_scripted_model_is_refused_or_equal() -> None:
    with pytest.raises(CaptureError, match="cannot be captured by torch.export"):
        fastcnn.accelerate(torch.jit.script(net()), IMAGE)


def test_a_refusal_leaves_the_model_as_it_was() -> None:
    model = DataDependent().eval()
    before = deepcopy(model.state_dict())
    fastcnn.accelerate(model, IMAGE, strict=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
