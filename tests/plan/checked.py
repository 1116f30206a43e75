# SPDX-License-Identifier: Apache-2.0
"""Runs a trial and holds it against float64, its neighbours against what they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from fastcnn.testing import assert_close_fp64
from tests.plan.trials import MARGINS, Maps, Trial, canary, inputs_of, plan_of


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check(trial: Trial, images: int, count: int, layout: str, maps: Maps | None = None) -> None:
    """The step's results against float64, for this batch and number of threads. ``maps``: other operands than random ones."""
    maps = trial.draw(images) if maps is None else maps
    plan = plan_of(trial, layout)
    with threads(count):
        call = (inputs_of(trial, maps, layout), plan.program, plan.weights, plan.output_shapes)
        results = torch.ops.fastcnn.run_plan(*call)
        again = torch.ops.fastcnn.run_plan(*call)
    compare(trial, maps, results, layout)
    for name, whole, second in zip(trial.writes, results, again, strict=True):
        assert torch.equal(whole.nan_to_num(7e7), second.nan_to_num(7e7)), f"{name}: a second call gives other bits"
        assert whole.is_contiguous(memory_format=torch.channels_last)


def compare(trial: Trial, maps: Maps, results: list[Tensor], layout: str) -> None:
    """The results of the trial's plan on these operands against float64, and the canaries beside them."""
    wanted = trial.exact({name: x.double() for name, x in maps.items()})
    rival = trial.exact(maps)
    before, _ = (0, 0) if layout == "dense" else MARGINS
    for name, whole in zip(trial.writes, results, strict=True):
        C = trial.writes[name][0]
        got, exact = whole[:, before : before + C], wanted[name]
        many = name == "sums" and whole.shape[0] > 0
        magnitude = wanted["y"].abs().sum((2, 3), keepdim=True) if many else None
        reduction = wanted["y"][0, 0].numel() * trial.reduction if many else trial.reduction
        assert_close_fp64(got, exact, reduction=reduction, magnitude=magnitude, rival=rival[name], label=name)
        left = canary(whole.shape[0], *whole.shape[1:])
        for neighbours, those in (
            (whole[:, :before], left[:, :before]),
            (whole[:, before + C :], left[:, before + C :]),
        ):
            assert torch.equal(neighbours, those), f"{name}: channels beside its own were written to"
