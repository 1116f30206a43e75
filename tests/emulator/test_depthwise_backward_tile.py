# SPDX-License-Identifier: Apache-2.0
"""The tiled gradients of depthwise_conv2d (NHWC, 3x3, 5x5, 7x7) on the emulator: values, and the bytes they ask for."""

import pytest
import torch

from fastcnn.testing import Case
from tests.emulator.depthwise import problem
from tests.emulator.depthwise_backward import WANTED, backward, check, partials, results
from tests.emulator.test_depthwise_bytes import BLOCKS_IN_FLIGHT, L2_BYTES, SHAPES

KERNELS = "depthwise_conv2d_backward"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SIZES = {
    "odd": (15, 13), "even": (14, 16), "one-tile": (7, 7), "one-pixel": (1, 1), "wide": (3, 30), "tall": (33, 2),
    "many-tiles": (35, 37),
}  # fmt: skip
ROWS, COLUMNS = 8, {1: 16, 2: 8}  # DepthwiseGradientTile::kRows and kColumns, of cells
DRAM = 1.10


def tile(kernel: int, stride: int, size="odd", C: int = 40, N: int = 2, padding=None) -> Case:
    H, W = SIZES[size] if isinstance(size, str) else size
    pad = (kernel // 2,) * 4 if padding is None else padding
    return Case(f"{kernel}x{kernel}-s{stride}-{size}", N, C, H, W, C, (kernel, kernel), (stride, stride), pad, groups=C)


def made_with_grad(case, dtype):
    made = problem(case, dtype, True)
    return made, made.output().copy_(torch.randn(made.output().shape, dtype=torch.float64).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_tiles(kernels, kernel, stride, size, dtype):
    check(kernels, *made_with_grad(tile(kernel, stride, size), dtype))


@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_tiles_in_three_orders(kernels, kernel, stride, order):
    made, grad = made_with_grad(tile(kernel, stride, C=72), torch.float16)
    kernels.set_order(order, kernel)
    found = check(kernels, made, grad)
    kernels.set_order(0, 0)
    again = backward(kernels, made, grad)
    assert all(torch.equal(found[name], again[name]) for name in WANTED)


@pytest.mark.parametrize(
    "padding", [(0, 0, 0, 0), (0, 1, 0, 1), (1, 0, 1, 0), (3, 0, 2, 5), (9, 9, 9, 9)], ids=str
)
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_any_padding(kernels, kernel, stride, padding):
    for size in ((15, 13), (8, 18)):
        check(kernels, *made_with_grad(tile(kernel, stride, size, padding=padding), torch.float32))


@pytest.mark.parametrize("C", [8, 16, 24, 40, 72, 96, 144])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_channels_around_a_block(kernels, C, dtype):
    check(kernels, *made_with_grad(tile(3, 1, "one-tile", C), dtype))
    check(kernels, *made_with_grad(tile(5, 2, "one-tile", C, N=1), dtype))


@pytest.mark.parametrize("wanted", [("x",), ("weight",), ("x", "weight"), ("x", "bias")], ids="-".join)
@pytest.mark.parametrize("stride", [1, 2])
def test_only_what_is_wanted(kernels, stride, wanted):
    check(kernels, *made_with_grad(tile(3, stride), torch.bfloat16), wanted)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_of_many_tiles(kernels, stride, order):
    """More tiles than there are rows of partial sums: a block stages several, one after the other."""
    kernels.set_order(order, stride)
    check(kernels, *made_with_grad(tile(3, stride, (2, 3), C=8, N=1030), torch.float16))


def even(size: int, most: int) -> int:
    """The largest part of ``size`` cut into equal ones of at most ``most``."""
    return -(-size // -(-size // most))


@pytest.mark.parametrize("case", SHAPES, ids=lambda case: case.name)
def test_bytes(kernels, case, record_property):
    made, grad = made_with_grad(case, torch.float16)
    wanted = ("x", "weight")
    found = results(made, wanted, partials(kernels, made, wanted))
    tensors = {"x": made.x, "grad": grad, "grad_x": found["x"]}
    rest = {"weight": made.weight, "grad_weight": found["weight"], "partials": found["partials"]}
    kernels.start_traffic([(name, t.data_ptr(), t.nbytes) for name, t in (tensors | rest).items()])
    backward(kernels, made, grad, wanted, prepare=lambda _: found, tile_only=True)
    traffic = kernels.stop_traffic(L2_BYTES, BLOCKS_IN_FLIGHT)
    requested = {name: traffic["buffers"][name]["requested"] / t.nbytes for name, t in tensors.items()}
    efficiency = {name: traffic["buffers"][name]["efficiency"] for name in tensors}
    total = sum(t.nbytes for t in tensors.values())
    written, weights = (traffic["buffers"][name]["requested"] for name in ("partials", "weight"))
    record_property("figures", {"requested": requested, "dram": traffic["dram"] / total, "sums": written / total})
    stride, more = case.stride[0], 3 - case.stride[0]
    cells = case.H // stride + (stride == 2)
    halo = (1 + more / even(cells, ROWS)) * (1 + more / even(cells, COLUMNS[stride]))
    assert requested["x"] == 1 and requested["grad_x"] == 1
    assert requested["grad"] <= halo
    assert min(efficiency.values()) == 1
    assert traffic["left_l1"] <= total * (2 + halo) / 3 + written + weights, traffic["left_l1"] / total
    assert traffic["dram"] <= DRAM * total + written, traffic["dram"] / total
