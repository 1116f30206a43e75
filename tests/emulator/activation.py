# SPDX-License-Identifier: Apache-2.0
"""Tensors for the emulated elementwise kernels, and what a call of them moves."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from fastcnn.testing import away_from_knots


def placed(values: Tensor, offset: int = 0) -> Tensor:
    """``values`` that start ``offset`` elements after a 512-byte boundary."""
    storage = torch.full((values.numel() + offset + 512,), float("nan"), dtype=values.dtype)
    start = -storage.data_ptr() % 512 // values.element_size() + offset
    part = storage[start : start + values.numel()]
    return part.copy_(values)


def filled(count: int, dtype: torch.dtype, offset: int = 0) -> Tensor:
    """Values around the knots of the activations, not on them."""
    values = away_from_knots(torch.randn(count, dtype=torch.float64) * 3, distance=2e-2).to(dtype)
    return placed(values, offset)


class Walled:
    """Room for ``like``, NaN, between walls of ones thick enough for a kernel that writes far too much."""

    def __init__(self, like: Tensor) -> None:
        self.count = like.numel()
        self.start = (5 * self.count // 512 + 1) * 512
        self.storage = placed(torch.ones(2 * self.start + self.count, dtype=like.dtype))
        self.storage[self.start : self.start + self.count] = float("nan")
        offset = self.storage.storage_offset() + self.start
        self.y = self.storage.as_strided(like.shape, like.stride(), offset)

    def check(self) -> None:
        """All of the room and nothing of the walls is written."""
        walls = torch.cat([self.storage[: self.start], self.storage[self.start + self.count :]])
        assert (walls == 1).all() and self.y.isfinite().all()


def assert_moves_every_byte_once(kernels: ModuleType, buffers: dict[str, Tensor], run: Callable[[], object]) -> None:
    """In full sectors, and in requests of 512 bytes a warp."""
    kernels.start_traffic([(name, t.data_ptr(), t.nbytes) for name, t in buffers.items()])
    run()
    traffic = kernels.stop_traffic(512 << 10, 528)
    total = sum(t.nbytes for t in buffers.values())
    assert {name: (b["requested"], b["efficiency"]) for name, b in traffic["buffers"].items()} == {
        name: (t.nbytes, 1.0) for name, t in buffers.items()
    }
    assert traffic["left_l1"] == traffic["dram"] == total
    assert traffic["requests"] == total / 512
