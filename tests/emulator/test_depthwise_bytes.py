# SPDX-License-Identifier: Apache-2.0
"""What depthwise 3x3, fp16, NHWC moves, counted on the emulator: a model of the memory, not a measurement.

(a) input bytes requested, (b) use of the 32-byte sectors that a warp's request touches, (c) bytes that leave L1, and
DRAM bytes behind an L2 of 0.5 MB with 528 blocks in flight, both against the bytes of the tensors.
"""

from typing import NamedTuple

import pytest
import torch

from fastcnn.testing import Case, assert_close_fp64
from tests.emulator.depthwise import problem

L2_BYTES, BLOCKS_IN_FLIGHT = 512 << 10, 528
STRIP, ROWS = {1: 4, 2: 2}, 7  # DepthwiseTile::kStrip and kRows
REQUESTED = {1: 1.90, 2: 1.35}
LEFT_L1, DRAM = 1.30, 1.15


def shape(N: int, H: int, C: int, stride: int = 1, W: int = 0) -> Case:
    W = W or H
    return Case(f"{N}x{H}x{W}x{C}-s{stride}", N, C, H, W, C, stride=(stride, stride), groups=C)


SHAPES = [
    shape(1, 112, 32),
    shape(1, 112, 96, 2),
    shape(2, 56, 144),
    shape(2, 28, 192),
    shape(2, 14, 384),
    shape(2, 7, 960),
]
# C * 2 bytes end in the middle of a sector: the least use of the sectors that is allowed
PARTIAL = [(shape(1, 56, 72, 2), 0.87), (shape(1, 28, 120), 0.87), (shape(1, 15, 24, W=13), 0.75)]


class Figures(NamedTuple):
    requested: float
    written: float
    efficiency: dict[str, float]
    left_l1: float
    dram: float


def counted(kernels, made, run) -> tuple[Figures, torch.Tensor]:
    """``run(y)`` calls the kernel; every tensor starts at a multiple of 512 bytes, as on a device."""
    y = made.output()
    named = {"x": made.x, "weight": made.weight, "shift": made.shift, "y": y}
    kernels.set_order(0, 0)
    kernels.start_traffic([(name, t.data_ptr(), t.nbytes) for name, t in named.items()])
    run(y)
    traffic = kernels.stop_traffic(L2_BYTES, BLOCKS_IN_FLIGHT)
    total, buffers = sum(t.nbytes for t in named.values()), traffic["buffers"]
    return Figures(
        buffers["x"]["requested"] / made.x.nbytes,
        buffers["y"]["requested"] / y.nbytes,
        {name: buffers[name]["efficiency"] for name in ("x", "y")},
        traffic["left_l1"] / total,
        traffic["dram"] / total,
    ), y


def excess(case: Case, figures: Figures, efficiency: float) -> dict[str, float]:
    """What is beyond its bound, by the bound's letter."""
    (stride, _), tile = case.stride, figures
    halo = 3 - stride
    of_tile = (1 + halo / (stride * STRIP[stride])) * (1 + halo / (stride * ROWS))
    return {
        **({"a": tile.requested} if tile.requested > min(REQUESTED[stride], of_tile) else {}),
        **({"a-written": tile.written} if tile.written != 1 else {}),
        **({"b": min(tile.efficiency.values())} if min(tile.efficiency.values()) < efficiency else {}),
        **({"c": tile.left_l1} if tile.left_l1 > LEFT_L1 else {}),
        **({"c-dram": tile.dram} if tile.dram > DRAM else {}),
    }


@pytest.mark.parametrize(
    ("case", "efficiency"), [*((case, 1.0) for case in SHAPES), *PARTIAL], ids=lambda p: getattr(p, "name", "")
)
def test_bytes(emulated, case, efficiency, record_property):
    kernels = emulated("depthwise_conv2d")
    made = problem(case, torch.float16, True, "relu6", "shift")
    figures, y = counted(kernels, made, lambda y: made.run(kernels, y))
    record_property("figures", figures._asdict())
    exact, magnitude = made.exact()
    assert_close_fp64(y, exact, reduction=9, magnitude=magnitude)
    assert excess(case, figures, efficiency) == {}


@pytest.mark.parametrize("case", SHAPES[1::2], ids=lambda case: case.name)
@pytest.mark.parametrize("along_w", [False, True], ids=["naive", "lanes-along-w"])
def test_the_bounds_turn_down_poor_kernels(emulated, case, along_w):
    kernels = emulated("depthwise_conv2d")
    made = problem(case, torch.float16, True, "identity", "shift")._replace(shift=torch.zeros(case.C))
    N, C, H, W, stride = case.N, case.C, case.H, case.W, case.stride[0]
    figures, y = counted(
        kernels,
        made,
        lambda y: kernels.naive_depthwise(
            made.x.data_ptr(), made.weight.data_ptr(), y.data_ptr(), N, C, H, W, stride, along_w
        ),
    )
    exact, magnitude = made.exact()
    assert_close_fp64(y, exact, reduction=9, magnitude=magnitude)
    wrong = excess(case, figures, 1.0)
    assert "b" in wrong if along_w else {"a", "c"} <= set(wrong), figures
