# SPDX-License-Identifier: Apache-2.0
"""The arguments of tests/cross/samples.py on the GPU, and the backends that are there."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fastcnn import backends
from fastcnn.testing import UNIT
from tests.cross.samples import samples

DEVICE = "cuda"


def moved(x: Tensor, device: str = DEVICE) -> Tensor:
    """The same strides and the same distance from an aligned address."""
    storage = x.untyped_storage()
    there = torch.empty(len(storage), dtype=torch.uint8, device=device)
    there.copy_(torch.empty(0, dtype=torch.uint8).set_(storage))
    return torch.empty(0, dtype=x.dtype, device=device).set_(
        there.untyped_storage(), x.storage_offset(), x.size(), x.stride()
    )


def samples_on(device: str, name: str, dtype: torch.dtype, layout: str, **options) -> Iterator[tuple]:
    for arguments in samples(name, dtype, layout, **options):
        yield tree_map(lambda t: moved(t, device) if isinstance(t, Tensor) else t, arguments)


def here(op: str) -> list[str]:
    """The backends beside the reference that have a kernel for the op."""
    names = ("cuda", "triton")
    return [name for name in names if backends.BACKENDS[name].missing() is None and backends.BACKENDS[name].has(op)]


def assert_agree(results: list[Tensor], wanted: list[Tensor], arguments: tuple, label: str) -> None:
    """Both in the dtype of the arguments; tests/ops compare with float64."""
    involved = [t for t in (*arguments, *wanted) if isinstance(t, Tensor) and t.numel()]
    scale = max((t.double().abs().max().item() for t in involved), default=0.0)
    for mine, theirs in zip(results, wanted, strict=True):
        assert mine.dtype is theirs.dtype and mine.shape == theirs.shape and mine.device == theirs.device, label
        # scales of depthwise_se_gate are float32, of a map before its rounding or after it
        dtype = arguments[0].dtype if label.startswith("depthwise_se_gate") else mine.dtype
        wide = torch.promote_types(dtype, torch.float32)
        step = 64 * UNIT[wide] + (2 * UNIT[dtype] if dtype is not wide else 0.0)
        torch.testing.assert_close(
            mine.double(), theirs.double(), rtol=0, atol=step * scale, msg=lambda text: f"{label}: {text}"
        )
