# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of batch norm on the emulator: both passes of backward, and a training step as a whole."""

import pytest
import torch

from fastcnn.testing import DTYPES, Guarded, assert_close_fp64
from tests.cross import exact
from tests.emulator.activation import Walled
from tests.emulator.batch_norm_act import (
    EPS, SEGMENTS, SHAPES, backward_input, backward_sums, broadcast, fold, forward, moved, problem, room_for_parts,
    statistics,
)  # fmt: skip

KERNELS = "batch_norm_act"
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
formats = pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def check_sums(kernels, p, label=""):
    parts = Guarded(room_for_parts(kernels, p))
    found = backward_sums(kernels, p, parts.x)
    margin = Guarded.MARGIN
    assert parts.buffer[:margin].isnan().all() and parts.buffer[-margin:].isnan().all(), label
    gz, apart = p.gradient_of_z(), p.x.double() - broadcast(p.mean.double())
    sums = [t.sum((0, 2, 3)) for t in (gz, gz * apart, gz.abs(), (gz * apart).abs())]
    invstd, scale, share = p.invstd.double(), p.scale.double(), 1 / max(p.sizes[0] * p.sizes[2], 1)
    wanted = [
        (invstd * sums[1], invstd * sums[3]),
        (sums[0], sums[2]),
        (scale * sums[0] * share, (scale * sums[2] * share).abs()),
        (scale * invstd**2 * sums[1] * share, (scale * invstd**2 * sums[3] * share).abs()),
    ]
    for name, got, (right, magnitude) in zip(("weight", "bias", "constant", "slope"), found, wanted, strict=True):
        assert_close_fp64(got, right, reduction=4, magnitude=magnitude, label=f"{label} {name}")


def check_input(kernels, p, training=True, grad_x=None, grad_residual=None):
    constant, slope = (torch.randn_like(p.scale) for _ in range(2)) if training else (None, None)
    grad_x, grad_residual = (p.image() if t is None else t for t in (grad_x, grad_residual))
    backward_input(kernels, p, constant, slope, grad_x, grad_residual)
    gz, scale = p.gradient_of_z(), broadcast(p.scale.double())
    # the slope of silu is a sum of terms of up to 1 + |z|
    size = p.grad.double().abs() * (2 + p.z().abs())
    assert_close_fp64(grad_residual, gz, magnitude=size, label="residual")
    wanted, magnitude = gz * scale, size * scale.abs()
    if training:
        apart = p.x.double() - broadcast(p.mean.double())
        wanted = wanted - broadcast(constant.double()) - broadcast(slope.double()) * apart
        terms = p.x.double().abs() + broadcast(p.mean.double().abs())
        magnitude = magnitude + broadcast(constant.double().abs()) + broadcast(slope.double().abs()) * terms
    assert_close_fp64(grad_x, wanted, reduction=2, magnitude=magnitude, label="x")


@shapes
@formats
@dtypes
def test_values(kernels, shape, channels_last, dtype):
    for activation, residual in (("identity", False), ("silu", True)):
        p = problem(shape, dtype, channels_last, activation, residual)
        check_sums(kernels, p, f"{shape} {activation}")
        check_input(kernels, p, training=residual)


@pytest.mark.parametrize("activation", exact.KINDS)
@formats
def test_every_activation(kernels, activation, channels_last):
    for residual in (False, True):
        p = problem((2, 16, 4, 6), torch.float16, channels_last, activation, residual).away_from_knots()
        check_sums(kernels, p)
        check_input(kernels, p)


@pytest.mark.parametrize("shape", SEGMENTS.values(), ids=SEGMENTS)
def test_sums_over_segments(kernels, shape):
    check_sums(kernels, problem(shape, torch.float16, shape != SEGMENTS["nchw"], "hardsigmoid").away_from_knots())


@formats
def test_in_three_orders(kernels, channels_last, order):
    p = problem((3, 72, 7, 16), torch.bfloat16, channels_last, "hardswish", True)

    def run():
        images = p.image(), p.image()
        sums = backward_sums(kernels, p)
        backward_input(kernels, p, *sums[2:], *images)
        return *sums, *images

    straight = run()
    kernels.set_order(order, 11)
    for first, again in zip(straight, run(), strict=True):
        assert torch.equal(first, again) and first.isfinite().all()


@formats
@pytest.mark.parametrize("which", ["x", "grad", "residual", "scale", "shift", "mean", "grad_x", "grad_residual"])
def test_misaligned_tensors(kernels, which, channels_last):
    p = problem((2, 16, 4, 6), torch.float16, channels_last, "silu", True)
    images = {}
    if which.startswith("grad_"):
        images[which] = moved(p.image())
    else:
        p = p._replace(**{which: moved(getattr(p, which))})
        check_sums(kernels, p)
    check_input(kernels, p, **images)


@formats
@pytest.mark.parametrize("C", [16, 17])
def test_nothing_else_is_written_or_read(kernels, channels_last, C):
    p = problem((2, C, 3, 4), torch.float32, channels_last, "silu", True)
    names = ("x", "grad", "residual", "scale", "shift", "mean", "invstd")
    guarded = {name: Guarded(getattr(p, name)) for name in names}
    p = p._replace(**{name: guard.x for name, guard in guarded.items()})
    out = Walled(p.x), Walled(p.x)
    check_sums(kernels, p)
    check_input(kernels, p, grad_x=out[0].y, grad_residual=out[1].y)
    for walled in out:
        walled.check()
    for name, guard in guarded.items():
        guard.check(name)


@formats
@pytest.mark.parametrize("only", ["grad_x", "grad_residual"])
def test_one_gradient_alone(kernels, only, channels_last):
    p = problem((2, 16, 4, 6), torch.float32, channels_last, "silu", True)
    sums, both, alone = backward_sums(kernels, p), [p.image(), p.image()], p.image()
    backward_input(kernels, p, *sums[2:], *both)
    backward_input(kernels, p, *sums[2:], **{"grad_x": None, "grad_residual": None, only: alone})
    assert torch.equal(alone, both[0] if only == "grad_x" else both[1])


@formats
def test_sums_of_nothing_are_zero(kernels, channels_last):
    p = problem((0, 5, 3, 3), torch.float32, channels_last)
    assert all(t.tolist() == [0.0] * 5 for t in backward_sums(kernels, p))


@formats
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("activation", ["identity", "hardswish", "silu"])
def test_a_training_step(kernels, channels_last, dtype, activation):
    """Statistics, fold, apply, both passes of backward, against autograd in float64."""
    p = problem((3, 20, 6, 8), dtype, channels_last, activation, True)
    weight, bias = torch.rand_like(p.scale) + 0.5, torch.randn_like(p.scale)
    mean, invstd, *_ = statistics(kernels, p)
    scale, shift = fold(kernels, weight, bias, mean, None, invstd)
    p = p._replace(scale=scale, shift=shift, mean=mean, invstd=invstd).away_from_knots()
    leaves = [t.double().requires_grad_() for t in (p.x, weight, bias, p.residual)]
    z = torch.nn.functional.batch_norm(leaves[0], None, None, leaves[1], leaves[2], True, 0.1, EPS) + leaves[3]
    wanted = exact.activation(z, activation)
    assert_close_fp64(forward(kernels, p), wanted.detach(), reduction=16, magnitude=z.detach().abs() + 1)
    grad_weight, grad_bias, constant, slope = backward_sums(kernels, p)
    grad_x, grad_residual = p.image(), p.image()
    backward_input(kernels, p, constant, slope, grad_x, grad_residual)
    gradients = torch.autograd.grad(wanted, leaves, p.grad.double())
    size = p.grad.double().abs().sum((0, 2, 3)).max()
    for name, got, right in zip(
        ("x", "weight", "bias", "residual"), (grad_x, grad_weight, grad_bias, grad_residual), gradients, strict=True
    ):
        magnitude = size if right.dim() == 1 else 8 * p.grad.double().abs().max()
        assert_close_fp64(got, right, reduction=16, magnitude=magnitude, label=name)
