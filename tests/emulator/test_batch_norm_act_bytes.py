# SPDX-License-Identifier: Apache-2.0
"""What the batch norm kernels move, fp16, counted on the emulator against the formulas in their headers: a model."""

import pytest
import torch

from tests.emulator.activation import placed
from tests.emulator.batch_norm_act import (
    backward_input, backward_sums, forward, problem, room_for_parts, statistics,
)  # fmt: skip

L2_BYTES, BLOCKS_IN_FLIGHT = 512 << 10, 528
FLIGHT, BACKWARD_FLIGHT, LANES = 4, 2, 8  # kBatchNormFlight, kBatchNormBackwardFlight, elements of a vector
SHAPES = [(1, 32, 28, 28), (2, 144, 14, 16), (2, 960, 4, 4)]
# 48 and 240 bytes of a pixel
PARTIAL = [((1, 24, 14, 14), 0.75), ((1, 120, 14, 14), 0.87)]
formats = pytest.mark.parametrize("channels_last", [True, False], ids=["nhwc", "nchw"])


def made(shape, channels_last, residual):
    """The problem with every image at a multiple of 512 bytes, as on a device."""
    p = problem(shape, torch.float16, channels_last, "silu", residual)

    def moved(t):
        order = (0, 2, 3, 1) if channels_last else (0, 1, 2, 3)
        flat = placed(t.permute(order).reshape(-1)).view([t.shape[d] for d in order])
        return flat.permute(0, 3, 1, 2) if channels_last else flat

    images = {name: moved(getattr(p, name)) for name in ("x", "grad")}
    p = p._replace(**images, residual=moved(p.residual) if residual else None)
    vectors = {name: placed(getattr(p, name)) for name in ("scale", "shift", "mean", "invstd")}
    return p._replace(**vectors), moved


def counted(kernels, buffers, run):
    kernels.set_order(0, 0)
    kernels.start_traffic([(name, t.data_ptr(), t.nbytes) for name, t in buffers.items()])
    run()
    return kernels.stop_traffic(L2_BYTES, BLOCKS_IN_FLIGHT)


def threads(shape, channels_last, flight):
    """With a place in memory, of a kernel that takes `flight` rows a thread."""
    N, C, H, W = shape
    rows = N * H * W if channels_last else N
    return -(-rows // flight) * (N * C * H * W // rows // LANES)


def check_images(traffic, images, reads=1):
    """Each image moves `reads` times, in full sectors."""
    found = {name: (traffic["buffers"][name]["requested"], traffic["buffers"][name]["efficiency"]) for name in images}
    assert found == {name: (reads * t.nbytes, 1.0) for name, t in images.items()}


@formats
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_apply(emulated, shape, residual, channels_last):
    kernels = emulated("batch_norm_act")
    p, moved = made(shape, channels_last, residual)
    images = {"x": p.x, "y": moved(p.x), **({"residual": p.residual} if residual else {})}
    vectors = {"scale": p.scale, "shift": p.shift}
    traffic = counted(kernels, {**images, **vectors}, lambda: forward(kernels, p, images["y"]))
    check_images(traffic, images)
    values = LANES if channels_last else 1
    for name in vectors:
        assert traffic["buffers"][name]["requested"] == 4 * values * threads(shape, channels_last, FLIGHT)
    total = sum(t.nbytes for t in (*images.values(), *vectors.values()))
    assert traffic["dram"] <= 1.02 * total and traffic["left_l1"] <= 1.3 * total


@pytest.mark.parametrize(("shape", "efficiency"), PARTIAL, ids=str)
def test_sectors_of_channels_that_are_no_multiple_of_16(emulated, shape, efficiency):
    """A thread's neighbour is its neighbour in memory, whatever C is: apply wastes only where a row of threads ends."""
    kernels = emulated("batch_norm_act")
    p, moved = made(shape, True, False)
    y, parts = moved(p.x), placed(room_for_parts(kernels, p))
    buffers = {"x": p.x, "y": y, "scale": p.scale, "shift": p.shift}
    traffic = counted(kernels, buffers, lambda: forward(kernels, p, y))
    for name in ("x", "y"):
        assert traffic["buffers"][name]["requested"] == y.nbytes and traffic["buffers"][name]["efficiency"] >= 0.96
    vectors = placed(torch.zeros(4, shape[1]).flatten()).view(4, -1)
    traffic = counted(
        kernels, {"x": p.x, "parts": parts, "vectors": vectors}, lambda: statistics(kernels, p, None, parts, vectors)
    )
    assert traffic["buffers"]["x"]["requested"] == p.x.nbytes
    assert traffic["buffers"]["x"]["efficiency"] >= efficiency


@formats
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_statistics_read_x_once(emulated, shape, channels_last):
    kernels = emulated("batch_norm_act")
    p, _ = made(shape, channels_last, False)
    parts = placed(room_for_parts(kernels, p))
    found = placed(torch.full((4 * shape[1],), float("nan"))).view(4, -1)
    traffic = counted(
        kernels, {"x": p.x, "parts": parts, "found": found}, lambda: statistics(kernels, p, None, parts, found)
    )
    assert traffic["buffers"]["x"]["requested"] == p.x.nbytes
    assert traffic["buffers"]["x"]["efficiency"] == 1.0
    written = traffic["buffers"]["parts"]["requested"] / 3  # and read twice
    assert written == 16 * (~parts.isnan()).sum().item() / 2 and written <= parts.nbytes
    assert traffic["buffers"]["found"]["requested"] == 4 * 2 * shape[1]


@formats
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backward(emulated, shape, residual, channels_last):
    kernels = emulated("batch_norm_act")
    p, moved = made(shape, channels_last, residual)
    parts = placed(room_for_parts(kernels, p))
    found = placed(torch.full((4 * shape[1],), float("nan"))).view(4, -1)
    inputs = {"x": p.x, "grad": p.grad, **({"residual": p.residual} if residual else {})}
    vectors = {name: getattr(p, name) for name in ("scale", "shift", "mean", "invstd")}
    traffic = counted(
        kernels, {**inputs, **vectors, "parts": parts, "found": found}, lambda: backward_sums(kernels, p, parts, found)
    )
    check_images(traffic, inputs)
    written = traffic["buffers"]["parts"]["requested"] / 2  # and read once
    assert written == 16 * (~parts.isnan()).sum().item() / 2
    outputs = {"grad_x": moved(p.x), **({"grad_residual": moved(p.x)} if residual else {})}
    traffic = counted(
        kernels,
        {**inputs, **outputs, **vectors, "found": found},
        lambda: backward_input(kernels, p, found[2], found[3], outputs["grad_x"], outputs.get("grad_residual")),
    )
    check_images(traffic, {**inputs, **outputs})
    values = LANES if channels_last else 1
    of_vectors = 4 * values * threads(shape, channels_last, BACKWARD_FLIGHT)
    assert [traffic["buffers"][name]["requested"] for name in ("scale", "shift", "mean")] == [of_vectors] * 3
    assert traffic["buffers"]["found"]["requested"] == 2 * of_vectors
    total = sum(t.nbytes for t in (*inputs.values(), *outputs.values(), *vectors.values(), found))
    assert traffic["dram"] <= 1.02 * total
