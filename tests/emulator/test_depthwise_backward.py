# SPDX-License-Identifier: Apache-2.0
"""The gradients of depthwise_conv2d on the emulator against float64 autograd: any geometry, every thread order."""

import pytest
import torch

from fastcnn.testing import DEPTHWISE_CASES, DTYPES, Case, Guarded, assert_close_fp64, away_from_knots
from tests.emulator.depthwise import ACTIVATIONS, problem
from tests.emulator.depthwise_backward import (
    WANTED,
    backward,
    check,
    exact_backward,
    exact_gradient_of_z,
    gradient_of_z,
)

KERNELS = "depthwise_conv2d_backward"
CASES = [case for case in DEPTHWISE_CASES if case.N]


def with_grad(case, dtype, channels_last, activation="identity", parts=""):
    made = problem(case, dtype, channels_last, activation, parts)
    return made, made.output().copy_(torch.randn(made.output().shape, dtype=torch.float64).to(dtype))


def square(kernel: int, stride: int = 1, H: int = 9, W: int = 11, C: int = 16, N: int = 2, dilation: int = 1) -> Case:
    pad = (kernel // 2 * dilation,) * 4
    return Case(f"{kernel}-s{stride}-{H}x{W}x{C}", N, C, H, W, C, (kernel, kernel), (stride, stride), pad,
                (dilation, dilation), C)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_cases(kernels, case, channels_last, dtype):
    check(kernels, *with_grad(case, dtype, channels_last))


@pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("case", [square(3, dilation=2), square(4, 2), square(3, 3, C=13)], ids=lambda case: case.name)
def test_three_orders_agree(kernels, case, channels_last, order):
    made, grad = with_grad(case, torch.float16, channels_last)
    kernels.set_order(order, 5)
    found = check(kernels, made, grad)
    kernels.set_order(0, 0)
    again = backward(kernels, made, grad)
    assert all(torch.equal(found[name], again[name]) for name in WANTED)


@pytest.mark.parametrize("C", [1, 7, 8, 24, 250, 264])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_channels_around_a_block(kernels, C, dtype):
    check(kernels, *with_grad(square(3, dilation=2, H=5, W=4, C=C), dtype, True))


def test_a_sum_of_many_slices(kernels):
    check(kernels, *with_grad(square(2, H=120, W=90, C=2), torch.float32, False))
    check(kernels, *with_grad(square(2, H=60, W=90, C=264, N=1), torch.float32, True))


@pytest.mark.parametrize("wanted", [("x",), ("weight",), ("bias",), ("weight", "bias"), ("x", "bias")], ids="-".join)
@pytest.mark.parametrize("case", [square(3), square(4, 2)], ids=lambda case: case.name)
def test_only_what_is_wanted(kernels, case, wanted):
    for channels_last in (True, False):
        check(kernels, *with_grad(case, torch.float16, channels_last), wanted)


@pytest.mark.parametrize("which", ["grad", "x", "weight", "grad of x"])
@pytest.mark.parametrize("case", [square(3), square(2, 2)], ids=lambda case: case.name)
def test_misaligned_tensors_take_the_scalar_path(kernels, case, which):
    made, grad = with_grad(case, torch.float16, True)
    exact = exact_backward(made, grad)

    def moved(t: torch.Tensor) -> torch.Tensor:
        storage = torch.zeros(t.numel() + 1, dtype=t.dtype)
        return storage[1:].as_strided(t.shape, t.stride(), storage_offset=1).copy_(t)

    if which in ("x", "weight"):
        made = made._replace(**{which: moved(getattr(made, which))})
    grad = moved(grad) if which == "grad" else grad
    out = (lambda found: found | {"x": moved(found["x"])}) if which == "grad of x" else (lambda found: found)
    found = backward(kernels, made, grad, prepare=out)
    for name, (gradient, magnitude, terms) in exact.items():
        assert_close_fp64(found[name], gradient, reduction=terms, magnitude=magnitude, label=name)


@pytest.mark.parametrize("case", [square(3), square(5, 2), square(4)], ids=lambda case: case.name)
@pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
def test_nothing_outside_is_read_or_written(kernels, case, channels_last):
    made, grad = with_grad(case, torch.float32, channels_last)
    inputs = {name: Guarded(t) for name, t in (("x", made.x), ("weight", made.weight), ("grad", grad))}
    made = made._replace(x=inputs["x"].x, weight=inputs["weight"].x)
    outputs = {}

    def guard(found):
        outputs.update({name: Guarded(t.zero_()) for name, t in found.items()})
        return {name: guarded.x for name, guarded in outputs.items()}

    found = backward(kernels, made, inputs["grad"].x, prepare=guard)
    for name, (gradient, magnitude, terms) in exact_backward(made, grad).items():
        assert_close_fp64(found[name], gradient, reduction=terms, magnitude=magnitude, label=name)
    for name, guarded in inputs.items():
        guarded.check(name)
    margin = Guarded.MARGIN
    for name, guarded in outputs.items():
        assert guarded.buffer[:margin].isnan().all() and guarded.buffer[-margin:].isnan().all(), name


@pytest.mark.parametrize("case", [square(3), square(5, 2), square(7), square(3, C=5)], ids=lambda case: case.name)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
def test_through_an_activation(kernels, case, activation, channels_last):
    for dtype in (torch.float32, torch.float16):
        made, grad = with_grad(case, dtype, channels_last, activation, "shift residual")
        z, _ = made._replace(activation="identity", residual=None).exact()
        made = made._replace(residual=made.residual.copy_(away_from_knots(z + made.residual, distance=0.05) - z))
        exact, magnitude = exact_gradient_of_z(made, grad)
        found = gradient_of_z(kernels, made, grad)
        assert_close_fp64(found, exact, reduction=case.reduction, magnitude=magnitude, label=activation)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_through_silu_in_every_geometry(kernels, case, dtype):
    for channels_last in (True, False):
        made, grad = with_grad(case, dtype, channels_last, "silu", "shift")
        exact, magnitude = exact_gradient_of_z(made, grad)
        assert_close_fp64(
            gradient_of_z(kernels, made, grad), exact, reduction=case.reduction, magnitude=magnitude, label=case.name
        )
