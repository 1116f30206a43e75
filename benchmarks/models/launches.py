# SPDX-License-Identifier: Apache-2.0
"""What the Triton launchers do for the lists of op_lists.py: `python -m benchmarks.models.launches [--write]`.

Each op of a list is given to its launcher with meta tensors of batch 256; the kernels do not run, they note the tensors
that they are given. Each tensor counts once a launch, weights too; each aten call that moves data counts its inputs and
outputs. Where a launcher lacks what a list assumes, the way round it is counted: no sums come with the depthwise
convolution, so the squeeze reads its map again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.models import op_lists
from benchmarks.models.op_lists import Op, Shape
from benchmarks.report import section_main
from fastcnn import _triton

BATCH = 256
MODULES = sorted(set(_triton.OPS.values())) + ["_reduce"]
MOVES_NOTHING = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "promote_types")


class Launch(NamedTuple):
    """A kernel or an aten call that moves data, and the bytes of its tensors."""

    name: str
    bytes: int


def _bytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tree_leaves(tensors) if isinstance(t, Tensor))


class _Kernel:
    """In place of a compiled kernel: ``kernel[grid](...)`` notes its tensors."""

    def __init__(self, name: str, found: list[Launch]) -> None:
        self.name, self.found = name, found

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **kwargs: self.found.append(Launch(self.name, _bytes((args, kwargs))))


class _Library(TorchDispatchMode):
    def __init__(self, found: list[Launch]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        moved = _bytes((args, kwargs, () if name == "copy_" else result))  # the result of copy_ is its first argument
        if moved and not (func.is_view or name in MOVES_NOTHING):
            self.found.append(Launch(f"aten::{name}", moved))
        return result


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Every launch of the Triton launchers and every aten call inside the block, none of them run."""
    found: list[Launch] = []
    replaced = []
    for stem in MODULES:
        _triton.launcher("activation")  # mounts the package
        __import__(f"{_triton._PACKAGE}.{stem}")
        module = sys.modules[f"{_triton._PACKAGE}.{stem}"]
        for name, value in vars(module).items():
            if name.endswith("_kernel"):
                replaced.append((module, name, value))
    try:
        for module, name, _ in replaced:
            setattr(module, name, _Kernel(name, found))
        with _Library(found):
            yield found
    finally:
        for module, name, value in replaced:
            setattr(module, name, value)


def _map(shape: Shape, into: int = 0, dtype: torch.dtype = torch.float16) -> Tensor:
    """[BATCH, *shape] in channels_last, the last channels of a map of ``into`` channels."""
    size = (BATCH, max(into, shape[0]), *shape[1:])
    wide = torch.empty(size, dtype=dtype, device="meta", memory_format=torch.channels_last)
    return wide[:, size[1] - shape[0] :]


def _vector(length: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.empty(length, dtype=dtype, device="meta")


def _convolution(op: Op) -> None:
    groups = op.x[0] if op.kind == "depthwise" else 1
    weight = torch.empty(op.y[0], op.x[0] // groups, op.kernel, op.kernel, dtype=torch.float16, device="meta",
                         memory_format=torch.channels_last)  # fmt: skip
    padding = 0 if op.kernel == 2 else op.kernel // 2
    gate = torch.empty(BATCH, op.x[0], device="meta") if op.gate else None
    pre_scale, pre_shift = (_vector(op.x[0]) if op.prologue else None for _ in range(2))
    _triton.launcher("conv_bn_act")(
        _map(op.x), weight, _vector(op.y[0]), None, None, None, None, _map(op.y) if op.residual else None,
        [op.stride] * 2, [padding] * 4, [1, 1], groups, 0.0, op.activation, out=_map(op.y, op.into), gate=gate,
        pre_scale=pre_scale, pre_shift=pre_shift,
    )  # fmt: skip


def _squeeze_and_gate(op: Op, before: Op) -> None:
    pixel_sums = sys.modules[f"{_triton._PACKAGE}.global_avg_pool"].pixel_sums
    scales = sys.modules[f"{_triton._PACKAGE}.se_scale"].scales
    (C, _, _), R = op.x, op.hidden
    pooled = torch.empty(BATCH, C, device="meta")
    pixel_sums(_map(before.y), True, pooled, 1.0)
    layers = (torch.empty(shape, dtype=torch.float16, device="meta") for shape in ((R, C), (R,), (C, R), (C,)))
    scales(pooled, *layers, "relu", "hardsigmoid")


def _shuffle_concat(op: Op) -> None:
    quarter = (op.x[0] // 2, *op.x[1:])
    inputs = _map(quarter, op.into), _map(quarter, op.into)
    _triton.launcher("channel_shuffle_concat")(*inputs, out=_map(op.y, op.into))


def record(name: str) -> list[Launch]:
    """The launches for one batch of a network of op_lists."""
    ops = op_lists.op_list(name)
    with recorded() as found:
        for before, op in zip([None, *ops], ops):
            _run(op, before)
    return found


def _run(op: Op, before: Op | None) -> None:
    if op.kind in ("gemm", "implicit gemm", "depthwise"):
        _convolution(op)
    elif op.kind == "se gate":
        _squeeze_and_gate(op, before)
    elif op.kind == "shuffle concat":
        _shuffle_concat(op)
    elif op.kind == "global pool":
        _triton.launcher("global_avg_pool")(_map(op.x))
    elif op.kind == "batch norm":
        vectors = [_vector(op.x[0]) for _ in range(4)]
        _triton.launcher("batch_norm_act")(_map(op.x), *vectors, None, 1e-5, op.activation)
    else:
        window = [op.kernel] * 2, [op.stride] * 2, [op.kernel // 2] * 2, False
        _triton.launcher("max_pool2d")(_map(op.x), *window, out=_map(op.y, op.into))


def megabytes(launches: list[Launch]) -> float:
    """Of one image of the batch."""
    return sum(launch.bytes for launch in launches) / BATCH / 1e6


def table() -> str:
    lines = ["| network | list MB | Triton launchers MB | list launches | Triton launches | of these aten's |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for name in op_lists.NETS:
        ops = op_lists.op_list(name)
        found = record(name)
        library = sum(launch.name.startswith("aten::") for launch in found)
        moved = f"{op_lists.megabytes(ops):.1f} | {megabytes(found):.1f}"
        lines.append(f"| {name} | {moved} | {len(ops)} | {len(found)} | {library} |")
    return "\n".join(lines)


if __name__ == "__main__":
    section_main("launches", table, __doc__)
