# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of depthwise_conv2d on the emulator against float64: every tile, every edge, every thread order."""

import mmap

import pytest
import torch

from fastcnn.testing import DEPTHWISE_CASES, DTYPES, Case, Guarded, assert_close_fp64
from tests.emulator.depthwise import ACTIVATIONS, problem

KERNELS = "depthwise_conv2d"
HALF_AND_FLOAT = (torch.float32, torch.float16, torch.bfloat16)
SIZES = {"odd": (15, 13), "even": (14, 16), "one-tile": (7, 7), "one-pixel": (1, 1), "wide": (3, 30), "tall": (33, 2)}


def tile(kernel: int, stride: int, size: str = "odd", C: int = 40, N: int = 2, padding=None) -> Case:
    H, W = SIZES[size]
    pad = (kernel // 2,) * 4 if padding is None else padding
    return Case(f"{kernel}x{kernel}-s{stride}-{size}", N, C, H, W, C, (kernel, kernel), (stride, stride), pad, groups=C)


def check(made, kernels, label=""):
    exact, magnitude = made.exact()
    y = made.run(kernels)
    if y.numel():
        assert_close_fp64(y, exact, reduction=made.case.reduction, magnitude=magnitude, label=label or made.case.name)
    return y


@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_tiles(kernels, kernel, stride, size, dtype):
    check(problem(tile(kernel, stride, size), dtype, True, "relu6", "scale shift"), kernels)
    check(problem(tile(kernel, stride, size), dtype, True, "hardswish", "shift residual"), kernels)


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_tiles_in_three_orders(kernels, kernel, stride, order):
    made = problem(tile(kernel, stride, C=264), torch.float16, True, "relu", "shift")
    kernels.set_order(order, kernel)
    y = check(made, kernels)
    kernels.set_order(0, 0)
    assert torch.equal(y, made.run(kernels))


@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (0, 1, 0, 1), (3, 0, 2, 5), (9, 9, 9, 9)], ids=str)
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_tiles_with_any_padding(kernels, kernel, stride, padding):
    check(problem(tile(kernel, stride, padding=padding), torch.float32, True), kernels)


@pytest.mark.parametrize("C", [8, 16, 24, 72, 248, 256, 264, 960])
@pytest.mark.parametrize("dtype", HALF_AND_FLOAT, ids=str)
def test_channels_around_a_block(kernels, C, dtype):
    check(problem(tile(3, 1, "one-tile", C), dtype, True, parts="scale shift"), kernels)
    check(problem(tile(5, 2, "one-tile", C, N=1), dtype, True, parts="shift"), kernels)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("case", [case for case in DEPTHWISE_CASES if case.N], ids=lambda case: case.name)
def test_cases(kernels, case, channels_last, dtype):
    check(problem(case, dtype, channels_last, "silu", "scale shift residual"), kernels)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("parts", ["", "shift", "scale residual"])
def test_epilogues(kernels, activation, parts):
    for case in (tile(3, 1), tile(5, 2), tile(3, 1, C=5)):
        check(problem(case, torch.float16, True, activation, parts), kernels, f"{case.name} C={case.C}")


@pytest.mark.parametrize("activation", ["identity", "relu", "relu6", "hardswish"])
def test_nan_and_infinity_pass_through(kernels, activation):
    made = problem(tile(3, 1, N=1), torch.float32, True, activation)
    made.x[0, 3, 5, 5], made.x[0, 4, 8, 8] = float("nan"), float("inf")
    check(made, kernels)


@pytest.mark.parametrize("which", ["x", "weight", "residual", "y"])
def test_misaligned_tensors_take_the_scalar_path(kernels, which):
    made = problem(tile(3, 1), torch.float16, True, "relu", "residual")

    def moved(t: torch.Tensor) -> torch.Tensor:
        storage = torch.zeros(t.numel() + 1, dtype=t.dtype)
        return storage[1:].as_strided(t.shape, t.stride(), storage_offset=1).copy_(t)

    exact, magnitude = made.exact()
    y = made.output()
    if which == "y":
        y = moved(y)
    else:
        made = made._replace(**{which: moved(getattr(made, which))})
    assert_close_fp64(made.run(kernels, y), exact, reduction=9, magnitude=magnitude)


@pytest.mark.parametrize("kernel", [3, 5, 4])
@pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
@pytest.mark.parametrize(("size", "C"), [("odd", 40), ("tall", 132)])  # with rows and channels over in the last block
def test_nothing_outside_is_read_or_written(kernels, kernel, channels_last, size, C):
    made = problem(tile(kernel, 1, size, C), torch.float32, channels_last, parts="shift residual")
    guarded = {name: Guarded(getattr(made, name)) for name in ("x", "weight", "residual")}
    made = made._replace(**{name: guard.x for name, guard in guarded.items()})
    exact, magnitude = made.exact()
    y = Guarded(made.output().zero_())
    assert_close_fp64(made.run(kernels, y.x), exact, reduction=kernel * kernel, magnitude=magnitude)
    for name, guard in guarded.items():
        guard.check(name)
    margin = Guarded.MARGIN
    assert y.buffer[:margin].isnan().all() and y.buffer[-margin:].isnan().all()


@pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])
def test_offsets_beyond_32_bits(kernels, channels_last):
    """A stride so wide that of 2^31 elements, never touched and so never in memory, only some are read."""
    N, C, H, W, stride = 1, 8, 70000, 4000, (3500, 400)
    made = problem(Case("far", N, C, 1, 1, C, (1, 1), stride, (0, 0, 0, 0), groups=C), torch.float16, channels_last)
    x = torch.frombuffer(mmap.mmap(-1, 2 * N * C * H * W), dtype=torch.float16)
    x = x.view(N, H, W, C).permute(0, 3, 1, 2) if channels_last else x.view(N, C, H, W)
    assert x.numel() > 2**31
    part = x[:, :, :: stride[0], :: stride[1]]
    part.copy_(torch.randn(part.shape))
    y = made._replace(case=made.case._replace(H=H, W=W), x=x).run(kernels)
    assert torch.equal(y, part * made.weight.view(1, C, 1, 1))
