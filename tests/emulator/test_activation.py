# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of every activation on the emulator; test_hardswish.py has tails of the same kernel."""

import pytest
import torch

from fastcnn.testing import DTYPES, assert_close_fp64
from tests.cross.exact import KINDS, activation
from tests.emulator.activation import Walled, assert_moves_every_byte_once, filled, placed

KERNELS = "activation"


def run(kernels, kind, x, grad=None, y=None):
    y = placed(torch.full_like(x, float("nan"))) if y is None else y
    addresses = [0 if t is None else t.data_ptr() for t in (grad, x, y)]
    kernels.activation(str(x.dtype), KINDS.index(kind), *addresses, x.numel())
    return y


def exactly(kind, x, grad):
    """(act(x), grad * act'(x)) in float64."""
    x64 = x.double().requires_grad_()
    wanted = activation(x64, kind)
    return wanted.detach(), torch.autograd.grad(wanted, x64, grad.double())[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_values(kernels, kind, dtype):
    x, grad = filled(523, dtype), placed(torch.randn(523).to(dtype))
    wanted, slope = exactly(kind, x, grad)
    assert_close_fp64(run(kernels, kind, x), wanted, magnitude=wanted.abs())
    # sigmoid(x) within a rounding, times at most 1 + |x|
    magnitude = grad.double().abs() * (2 + x.double().abs())
    assert_close_fp64(run(kernels, kind, x, grad), slope, magnitude=magnitude)


@pytest.mark.parametrize("kind", ["relu", "silu"])
def test_the_same_in_three_orders(kernels, kind, order):
    x, grad = filled(256 * 8 + 5, torch.float16), placed(torch.randn(256 * 8 + 5).half())
    straight = run(kernels, kind, x), run(kernels, kind, x, grad)
    kernels.set_order(order, 7)
    for first, again in zip(straight, (run(kernels, kind, x), run(kernels, kind, x, grad)), strict=True):
        assert torch.equal(first, again) and first.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["x", "grad", "y"])
def test_misaligned_tensors_take_the_scalar_path(kernels, kind, which):
    offset = {name: int(name == which) for name in ("x", "grad", "y")}
    x, grad = filled(100, torch.float16, offset["x"]), placed(torch.randn(100).half(), offset["grad"])
    wanted, slope = exactly(kind, x, grad)
    y = placed(torch.zeros(100, dtype=torch.float16), offset["y"])
    assert_close_fp64(run(kernels, kind, x, y=y), wanted, magnitude=wanted.abs())
    magnitude = grad.double().abs() * (2 + x.double().abs())
    assert_close_fp64(run(kernels, kind, x, grad, y), slope, magnitude=magnitude)


def test_knots_have_the_slope_that_torch_gives(kernels):
    x = placed(torch.tensor([-3.0, 0.0, 3.0, 6.0]))
    slopes = {kind: run(kernels, kind, x, placed(torch.ones(4))).tolist() for kind in KINDS}
    assert slopes["relu"] == [0, 0, 1, 1] and slopes["relu6"] == [0, 0, 1, 0]
    assert slopes["hardsigmoid"][::2] == [0, 0] and slopes["identity"] == [1, 1, 1, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_nan_stays_and_infinity_has_its_limit(kernels, kind):
    x = placed(torch.tensor([float("nan"), float("inf"), 1.0, float("-inf")]))
    assert run(kernels, kind, x).isnan()[:3].tolist() == [True, False, False]
    if kind not in ("hardswish", "silu"):  # -inf * 0
        assert torch.equal(run(kernels, kind, x)[1:], activation(x, kind)[1:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_else_is_written(kernels, dtype):
    walled = Walled(torch.empty(77, dtype=dtype))
    run(kernels, "silu", filled(77, dtype), placed(torch.randn(77).to(dtype)), walled.y)
    walled.check()


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_every_byte_moves_once_in_full_sectors(kernels, backward):
    x, grad, y = (placed(torch.randn(4096 * 3).half()) for _ in range(3))
    buffers = {"x": x, "y": y, **({"grad": grad} if backward else {})}
    assert_moves_every_byte_once(kernels, buffers, lambda: run(kernels, "silu", x, grad if backward else None, y))
