# SPDX-License-Identifier: Apache-2.0
"""The steps of the matrix unit: what torch computes of operands rounded to bfloat16, but for the order of float32 sums."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fastcnn  # noqa: F401
from fastcnn._library import ask
from fastcnn.accelerate.plan import Blob
from fastcnn.accelerate.plan.builder import Builder, Plan, StepNote
from fastcnn.accelerate.plan.words import ACTIVATIONS, NONE, ConvBf16, PointwiseBf16
from fastcnn.ops.activation import activation_reference
from tests.plan.checked import threads

pytestmark = pytest.mark.skipif(ask("fastcnn_plan_bf16") != "yes", reason="a processor without AMX")

SIZES = [(1, 1), (7, 5), (16, 16), (20, 37), (33, 17), (64, 31), (96, 100)]
WINDOWS = [(1, 1, 2, 0, 1), (3, 3, 1, 1, 1), (3, 3, 2, 1, 1), (1, 7, 1, 3, 1), (5, 5, 1, 2, 1), (3, 3, 1, 2, 2)]


def rounded(x: Tensor) -> Tensor:
    return x.bfloat16().double()


def close(got: Tensor, wanted: Tensor, magnitude: Tensor) -> None:
    """Within the rounding of float32 sums: the products themselves are exact."""
    assert got.shape == wanted.shape
    error = (got.double() - wanted).abs()
    assert (error <= 4e-6 * magnitude + 1e-6).all(), error.max()


@pytest.mark.parametrize(("channels", "outputs"), SIZES)
@pytest.mark.parametrize("count", [1, 2])
def test_pointwise(channels: int, outputs: int, count: int) -> None:
    torch.manual_seed(channels)
    kinds = itertools.cycle(ACTIVATIONS)
    for images, height, width, gated in (
        (0, 3, 3, True),
        (1, 1, 1, False),
        (1, 7, 7, True),
        (3, 5, 13, True),
        (5, 6, 6, False),
    ):
        x, gate = torch.randn(images, channels, height, width), torch.rand(images, channels)
        scale, shift = torch.rand(channels) + 0.5, torch.randn(channels)
        weight, bias = torch.randn(outputs, channels), torch.randn(outputs)
        residual = torch.randn(images, outputs, height, width)
        kind = next(kinds)
        builder = Builder(Blob(16))
        views = [builder.input(shape, False) for shape in (x.shape[1:], residual.shape[1:], (channels,))]
        y = builder.map(outputs, height, width)
        numbers = [builder.number(view) for view in (views[0], y, views[1], views[2])]
        operand = [builder.blob.vector(scale), builder.blob.vector(shift)] if gated else [NONE, NONE]
        if not gated:
            numbers[3] = NONE
            builder.number(views[2])
        step = PointwiseBf16(*numbers, builder.blob.bf16(weight[:, None]), builder.blob.vector(bias), *operand,
                             ACTIVATIONS.index("relu") if gated else 0, ACTIVATIONS.index(kind))  # fmt: skip
        builder.add(step, StepNote("pointwise", "", 0, 0, 0))
        builder.make_output(y, (outputs, height, width))
        got = run(builder.finish(), [x, residual, gate], count)
        operand_value = x
        if gated:
            operand_value = ((x * scale[:, None, None] + shift[:, None, None]).relu()) * gate[:, :, None, None]
        terms = (rounded(operand_value), rounded(weight)[:, :, None, None])
        wanted = F.conv2d(*terms, bias.double()) + residual.double()
        # scale, shift and gate are float32 products, whose last bit may round the other way
        loose = 2.0**-8 if gated else 0.0
        magnitude = F.conv2d(terms[0].abs(), terms[1].abs()) + residual.abs() + bias.abs()[:, None, None]
        exact = activation_reference(wanted, kind)
        if gated and images:
            assert ((got.double() - exact).abs() <= loose * magnitude).all()
            assert (got.double() - exact).abs().mean() <= 2e-5 * magnitude.mean()
        else:
            close(got, exact, magnitude)


@pytest.mark.parametrize(("channels", "outputs"), SIZES)
@pytest.mark.parametrize("window", WINDOWS)
def test_convolution(channels: int, outputs: int, window: tuple[int, ...]) -> None:
    kernel_h, kernel_w, stride, pad, dilation = window
    padding = (pad if kernel_h > 1 else 0, pad)
    torch.manual_seed(channels)
    for images, height, width, count in ((1, 9, 11, 2), (3, 6, 7, 1), (2, 14, 14, 3)):
        x = torch.randn(images, channels, height, width)
        weight, bias = torch.randn(outputs, channels, kernel_h, kernel_w), torch.randn(outputs)
        terms = rounded(x), rounded(weight)
        wanted = F.conv2d(*terms, bias.double(), stride, padding, dilation)
        builder = Builder(Blob(16))
        source, y = builder.input(x.shape[1:], False), builder.map(*wanted.shape[1:])
        packed = builder.blob.bf16(weight.permute(0, 2, 3, 1).flatten(1, 2))
        step = ConvBf16(builder.number(source), builder.number(y), NONE, packed, builder.blob.vector(bias), kernel_h,
                        kernel_w, stride, stride, *padding, dilation, dilation, 1, ACTIVATIONS.index("relu"))  # fmt: skip
        builder.add(step, StepNote("conv", "", 0, 0, 0))
        builder.make_output(y, tuple(wanted.shape[1:]))
        magnitude = F.conv2d(terms[0].abs(), terms[1].abs(), bias.abs().double(), stride, padding, dilation)
        close(run(builder.finish(), [x], count), wanted.relu(), magnitude)


def run(plan: Plan, inputs: list[Tensor], count: int) -> Tensor:
    with threads(count):
        return torch.ops.fastcnn.run_plan(inputs, plan.program, plan.weights, plan.output_shapes)[0]
