# SPDX-License-Identifier: Apache-2.0
"""The sums of its results over parts of each image that the depthwise forward writes on request, for a squeeze."""

import pytest
import torch

from fastcnn.testing import UNIT, Case, assert_close_fp64
from tests.emulator.depthwise import problem
from tests.emulator.depthwise_backward import geometry
from tests.emulator.test_se_scale import problem as squeeze_excite

KERNELS = "depthwise_conv2d"
SIZES = {"odd": (15, 13), "one-tile": (7, 7), "one-pixel": (1, 1), "tall": (33, 2), "many-tiles": (30, 37)}


def tile(kernel: int, stride: int, size: str = "odd", C: int = 40, N: int = 3) -> Case:
    H, W = SIZES[size]
    pad = (kernel // 2,) * 4
    return Case(f"{kernel}x{kernel}-s{stride}-{size}", N, C, H, W, C, (kernel, kernel), (stride, stride), pad, groups=C)


def sums_of(kernels, made) -> torch.Tensor:
    """NaN in [N, tiles, C]."""
    case = made.case
    tiles = kernels.sum_tiles(str(made.x.dtype), *geometry(made))
    return torch.full((case.N, tiles, case.C), float("nan"))


def check(kernels, made) -> torch.Tensor:
    sums = sums_of(kernels, made)
    assert sums.shape[1] > 0
    y = made.run(kernels, sums=sums)
    assert torch.equal(y, made.run(kernels))
    exact, magnitude = made.exact()
    pixels = exact.shape[2] * exact.shape[3]
    # no activation has a slope above 1.1, silu's largest
    assert_close_fp64(
        sums.sum(1), exact.sum((2, 3)), reduction=pixels * made.case.reduction, magnitude=1.1 * magnitude.sum((2, 3)),
        label=made.case.name,
    )  # fmt: skip
    return sums


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_sums(kernels, kernel, stride, size, dtype):
    check(kernels, problem(tile(kernel, stride, size), dtype, True, "hardswish", "scale shift"))


@pytest.mark.parametrize("C", [8, 24, 120, 264])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_channels_around_a_block(kernels, C, activation):
    check(kernels, problem(tile(3, 1, "one-tile", C), torch.float16, True, activation, "shift residual"))
    check(kernels, problem(tile(5, 2, "odd", C), torch.float16, True, activation, "shift"))


@pytest.mark.parametrize("kernel", [3, 5])
def test_three_orders_agree(kernels, kernel, order):
    made = problem(tile(kernel, 1, "many-tiles"), torch.float16, True, "silu")
    kernels.set_order(order, kernel)
    found = check(kernels, made)
    kernels.set_order(0, 0)
    assert torch.equal(found, check(kernels, made))


def test_elsewhere_there_are_none(kernels):
    for case, channels_last in ((tile(3, 1), False), (tile(3, 1, C=5), True), (tile(4, 1), True)):
        made = problem(case, torch.float16, channels_last)
        assert sums_of(kernels, made).shape[1] == 0
        with pytest.raises(RuntimeError, match="refused"):
            made.run(kernels, sums=torch.zeros(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 1, "many-tiles"), (5, 2, "odd"), (3, 2, "one-pixel")])
def test_the_gate_takes_them(kernels, emulated, kernel, stride, size, dtype):
    made = problem(tile(kernel, stride, size), dtype, True, "hardswish", "shift")
    sums, y = check(kernels, made), made.run(kernels)
    layers, gate = squeeze_excite((*y.shape, 6), dtype, "channels_last"), emulated("se_scale")
    gate.set_order(0, 0)
    scaled, pooled = layers._replace(x=y).forward(gate, partial=sums)
    of_map, means = layers._replace(x=y).forward(gate)
    step = 2 * UNIT[dtype]  # the sums are of what y was before it was rounded
    torch.testing.assert_close(pooled, means, rtol=step, atol=step * y.float().abs().mean().item())
    torch.testing.assert_close(scaled, of_map, rtol=8 * step, atol=step)
