# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of batch norm on the emulator: apply, fold, statistics; backward has a file of its own."""

import pytest
import torch

from fastcnn.testing import DTYPES, Guarded, assert_close_fp64
from tests.cross import exact
from tests.emulator.activation import Walled
from tests.emulator.batch_norm_act import (
    EPS, MOMENTUM, SEGMENTS, SHAPES, broadcast, fold, forward, moved, problem, room_for_parts, statistics,
)  # fmt: skip

KERNELS = "batch_norm_act"
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
formats = pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def check_forward(p, y, label=""):
    terms = p.x.double().abs() * broadcast(p.scale.double().abs()) + broadcast(p.shift.double().abs())
    magnitude = terms if p.residual is None else terms + p.residual.double().abs()
    assert_close_fp64(y, exact.activation(p.z(), p.activation), reduction=2, magnitude=magnitude, label=label)


@shapes
@formats
@dtypes
def test_apply(kernels, shape, channels_last, dtype):
    for activation, residual in (("identity", False), ("silu", True)):
        p = problem(shape, dtype, channels_last, activation, residual)
        check_forward(p, forward(kernels, p), activation)


@pytest.mark.parametrize("activation", exact.KINDS)
@formats
def test_apply_every_activation(kernels, activation, channels_last):
    for residual in (False, True):
        p = problem((2, 16, 4, 6), torch.float16, channels_last, activation, residual)
        check_forward(p, forward(kernels, p))


@formats
@pytest.mark.parametrize("absent", ["scale", "shift"])
def test_apply_without_a_scale_or_shift(kernels, absent, channels_last):
    p = problem((2, 16, 4, 6), torch.float16, channels_last, "relu", True)
    neutral = torch.ones_like(p.scale) if absent == "scale" else torch.zeros_like(p.shift)
    y = forward(kernels, p._replace(**{absent: None}))
    assert torch.equal(y, forward(kernels, p._replace(**{absent: neutral})))


@formats
def test_apply_in_three_orders(kernels, channels_last, order):
    p = problem((2, 72, 7, 16), torch.bfloat16, channels_last, "relu6", True)
    straight = forward(kernels, p)
    kernels.set_order(order, 3)
    assert torch.equal(forward(kernels, p), straight) and straight.isfinite().all()


@formats
@pytest.mark.parametrize("which", ["x", "residual", "y", "scale", "shift"])
def test_apply_to_misaligned_tensors(kernels, which, channels_last):
    p = problem((2, 16, 4, 6), torch.float16, channels_last, "relu", True)
    y = p.image()
    if which == "y":
        y = moved(y)
    else:
        p = p._replace(**{which: moved(getattr(p, which))})
    check_forward(p, forward(kernels, p, y))


@formats
@pytest.mark.parametrize("C", [16, 17])
def test_apply_writes_and_reads_nothing_else(kernels, channels_last, C):
    p = problem((2, C, 3, 4), torch.float32, channels_last, "relu", True)
    guarded = {name: Guarded(getattr(p, name)) for name in ("x", "residual", "scale", "shift")}
    p = p._replace(**{name: guard.x for name, guard in guarded.items()})
    walled = Walled(p.x)
    check_forward(p, forward(kernels, p, walled.y))
    walled.check()
    for name, guard in guarded.items():
        guard.check(name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("C", [1, 255, 300])
def test_fold(kernels, C, dtype):
    weight, bias, mean, var = (torch.rand(C, dtype=dtype) + 0.5 for _ in range(4))
    for w, b in ((weight, bias), (None, bias), (weight, None), (None, None)):
        invstd = (var.double() + EPS).rsqrt()
        factor = invstd if w is None else invstd * w.double()
        offset = (0 if b is None else b.double()) - mean.double() * factor
        for scale, shift in (fold(kernels, w, b, mean, var), fold(kernels, w, b, mean, None, invstd.to(dtype))):
            assert_close_fp64(scale, factor, magnitude=factor)
            assert_close_fp64(shift, offset, magnitude=2.0)


def check_statistics(kernels, p, label=""):
    running = tuple(torch.rand_like(p.scale) + 0.5 for _ in range(2))
    parts = Guarded(room_for_parts(kernels, p))
    mean, invstd, new_mean, new_var = statistics(kernels, p, running, parts.x)
    margin = Guarded.MARGIN
    assert parts.buffer[:margin].isnan().all() and parts.buffer[-margin:].isnan().all(), label
    values = p.x.double().transpose(0, 1).flatten(1)
    size = values.abs().mean(1)
    assert_close_fp64(mean, values.mean(1), reduction=1, magnitude=size, label=f"{label} mean")
    wanted = (values.var(1, correction=0) + EPS).rsqrt()
    assert_close_fp64(invstd, wanted, reduction=4, label=f"{label} invstd")
    for name, got, right in zip(
        ("mean", "var"), (new_mean, new_var), exact.running(p.x.double(), *(r.double() for r in running), MOMENTUM)
    ):
        assert_close_fp64(got, right, reduction=4, magnitude=right.abs() + size, label=f"{label} running {name}")


@shapes
@formats
@dtypes
def test_statistics(kernels, shape, channels_last, dtype):
    if shape[0] * shape[2] * shape[3] > 1:
        check_statistics(kernels, problem(shape, dtype, channels_last), str(shape))


@pytest.mark.parametrize("shape", SEGMENTS.values(), ids=SEGMENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_statistics_over_segments(kernels, shape, dtype):
    check_statistics(kernels, problem(shape, dtype, shape != SEGMENTS["nchw"]))


@formats
@pytest.mark.parametrize("order", ["far", "rising", "outlier-first", "constant"])
def test_statistics_when_the_mean_is_far_or_the_first_pixels_mislead(kernels, order, channels_last):
    p = problem((2, 20, 40, 50), torch.float32, channels_last)
    if order == "far":
        p.x.copy_(torch.randn(p.x.shape) * (torch.rand(20, 1, 1) + 0.1) - 1e5)
    elif order == "rising":
        rows = torch.arange(2.0).view(2, 1, 1, 1) * 1e4 + torch.arange(2000.0).view(1, 1, 40, 50)
        p.x.copy_(torch.randn(p.x.shape) + rows)
    elif order == "outlier-first":
        p.x.copy_(torch.randn(p.x.shape))[0, :, 0, 0] = 1e6
    else:
        p.x.fill_(3.3)
    check_statistics(kernels, p, order)


@formats
def test_statistics_in_three_orders(kernels, channels_last, order):
    p = problem((3, 24, 20, 12), torch.float16, channels_last)
    straight = statistics(kernels, p, (p.mean, p.invstd))
    kernels.set_order(order, 5)
    for first, again in zip(straight, statistics(kernels, p, (p.mean, p.invstd)), strict=True):
        assert torch.equal(first, again) and first.isfinite().all()


@formats
def test_statistics_of_a_misaligned_tensor(kernels, channels_last):
    p = problem((2, 16, 6, 8), torch.float16, channels_last)
    check_statistics(kernels, p._replace(x=moved(p.x)))


@formats
def test_statistics_of_nothing_leave_the_running_vectors(kernels, channels_last):
    p = problem((0, 5, 3, 3), torch.float32, channels_last)
    mean, invstd, *_ = statistics(kernels, p)
    assert mean.tolist() == [0.0] * 5
    assert_close_fp64(invstd, torch.full((5,), EPS, dtype=torch.float64).rsqrt())


@formats
def test_nan_and_infinity_stay_in_their_channel(kernels, channels_last):
    p = problem((2, 16, 4, 6), torch.float32, channels_last)
    p.x[0, 3, 1, 1], p.x[1, 5, 0, 0] = float("nan"), float("inf")
    mean, invstd, *_ = statistics(kernels, p)
    sick = [c for c in range(16) if not (mean[c].isfinite() and invstd[c].isfinite())]
    assert sick == [3, 5] and invstd[3].isnan()
