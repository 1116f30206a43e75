# SPDX-License-Identifier: Apache-2.0
"""The operators that execute plans, ``torch.ops.fastcnn.run_plan`` and ``run_plan_profile``.

The compiled CPU library defines them (``csrc/cpu/run_plan.cpp``); without it there are none, and no program is planned.

``run_plan(Tensor[] inputs, Tensor program, Tensor weights, int[] output_shapes) -> Tensor[]``: inputs are float32
``[N, C, H, W]`` or ``[N, C]`` on the CPU; program is int64 (``words.py``), weights the packed blob (``weights.py``), and
output_shapes ``[rank, extents...]`` of each output without the batch. Results are channels_last. RuntimeError names what
does not fit, before anything is read. ``run_plan_profile`` returns the seconds of every step too. Both are for inference:
an input that requires a gradient is an error. Results are the same bits for the same batch and number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..._library import CPU, LIB

AVAILABLE = CPU.loaded


def shapes_of(flat: list[int]) -> list[tuple[int, ...]]:
    """The outputs' shapes without the batch, from ``[rank, extents..., rank, extents...]``."""
    found = []
    at = 0
    while at < len(flat):
        found.append(tuple(flat[at + 1 : at + 1 + flat[at]]))
        at += 1 + flat[at]
    return found


def _fake(inputs: list[Tensor], program: Tensor, weights: Tensor, output_shapes: list[int]) -> list[Tensor]:
    results = []
    for shape in shapes_of(output_shapes):
        y = inputs[0].new_empty((inputs[0].shape[0], *shape))
        results.append(y.contiguous(memory_format=torch.channels_last) if len(shape) == 3 else y)
    return results


def _fake_profile(
    inputs: list[Tensor], program: Tensor, weights: Tensor, output_shapes: list[int]
) -> tuple[list[Tensor], Tensor]:
    return _fake(inputs, program, weights, output_shapes), weights.new_empty(0, dtype=torch.float64)


def _no_gradient(ctx: object, *grads: object) -> None:
    raise RuntimeError("run_plan: is for inference only and has no gradient; differentiate the original model")


if AVAILABLE:
    RUN_PLAN = torch.ops.fastcnn.run_plan.default
    RUN_PLAN_PROFILE = torch.ops.fastcnn.run_plan_profile.default
    for _op, _shape_function in ((RUN_PLAN, _fake), (RUN_PLAN_PROFILE, _fake_profile)):
        torch.library.register_fake(_op, _shape_function, lib=LIB)
        torch.library.register_autograd(_op, _no_gradient, lib=LIB)
