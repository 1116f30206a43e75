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
