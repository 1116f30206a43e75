# SPDX-License-Identifier: Apache-2.0
"""Every step of a plan against float64 in plain torch: awkward sizes, batches, slices, numbers of threads."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import fields

import pytest
import torch

from fastcnn.accelerate.plan import words
from fastcnn.accelerate.plan.op import AVAILABLE
from tests import instruction_sets
from tests.plan import trials
from tests.plan.checked import check
from tests.plan.draws import DRAWS
from tests.plan.trials import ACTIVATIONS, LAYOUTS, Window, plan_of

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="the CPU library is not built")

BATCHES = (0, 1, 2, 3, 5)
each_kind = pytest.mark.parametrize("kind", DRAWS)


def check_drawn(kind: str, seed: str, C: int, H: int, W: int) -> None:
    rng = random.Random(f"{kind} {seed}")
    torch.manual_seed(rng.randrange(2**31))
    trial = DRAWS[kind](rng, C, H, W)
    images, count, layout = rng.choice(BATCHES), rng.choice((1, 2, 2, 3)), rng.choice(LAYOUTS)
    try:
        check(trial, images, count, layout)
    except Exception as error:
        message = f"{kind} {seed}: {trial.reads} -> {trial.writes}, batch {images}, {count} threads, {layout}: {error}"
        raise AssertionError(message) from error


def sizes(rng: random.Random, count: int) -> Iterator[tuple[int, int, int]]:
    for _ in range(count):
        yield rng.randint(1, 67), rng.randint(1, 15), rng.randint(1, 15)


@each_kind
def test_random(kind: str) -> None:
    for i, size in enumerate(sizes(random.Random(kind), 120)):
        check_drawn(kind, f"short {i}", *size)


@pytest.mark.long
@each_kind
def test_every_size(kind: str) -> None:
    for size in itertools.product(range(1, 68), range(1, 16), range(1, 16)):
        check_drawn(kind, f"long {size}", *size)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("images", [0, 1, 3])
def test_every_activation(images: int, layout: str, count: int) -> None:
    for name in ACTIVATIONS:
        check(trials.pointwise(9, 35, 3, 5, residual=True, activation=name), images, count, layout)
        check(trials.pointwise(35, 9, 3, 5, gate=True, scale=True, shift=True, prologue=name), images, count, layout)
        check(trials.conv(6, 18, 5, 4, residual=True, groups=2, activation=name), images, count, layout)
        check(trials.depthwise(19, 5, 4, residual=True, sums=True, activation=name), images, count, layout)
        check(trials.elementwise("add", 19, 5, 4, activation=name), images, count, layout)


# Sizes at which a kernel takes another way: many rows, weights that leave L2, maps of one pixel, depths beyond a block.
LARGE = {
    "rows": lambda: trials.pointwise(16, 24, 60, 61, activation="relu6"),
    "gated rows": lambda: trials.pointwise(130, 40, 30, 31, gate=True, prologue="hardswish"),
    "far weights": lambda: trials.pointwise(600, 700, 5, 5, scale=True, shift=True, prologue="relu"),
    "linear": lambda: trials.pointwise(1283, 1001, 1, 1),
    "stem": lambda: trials.conv(3, 32, 57, 63, Window(stride=(2, 2)), activation="relu", picture=True),
    "7x7 stem": lambda: trials.conv(3, 64, 57, 63, Window((7, 7), (2, 2), (3, 3, 3, 3)), picture=True),
    "deep conv": lambda: trials.conv(200, 130, 7, 9, residual=True),
    "blocks of windows": lambda: trials.conv(200, 259, 9, 7, residual=True, activation="silu"),
    "grouped blocks": lambda: trials.conv(256, 258, 7, 9, Window(stride=(2, 1)), groups=2, activation="relu"),
    "grouped": lambda: trials.conv(128, 128, 14, 15, groups=32),
    "long window": lambda: trials.conv(5, 7, 40, 33, Window((31, 29), padding=(14, 15, 15, 15))),
    "depthwise": lambda: trials.depthwise(144, 57, 56, sums=True, activation="silu"),
    "depthwise 5x5": lambda: trials.depthwise(240, 29, 28, Window((5, 5), (2, 2), (2, 2, 2, 2)), sums=True),
    "tall depthwise": lambda: trials.depthwise(3, 200, 2, Window((61, 1), padding=(0, 0, 30, 30))),
    "inverted residual": lambda: trials.inverted_residual(24, 144, 24, 57, 56, residual=True),
    "without projection": lambda: trials.inverted_residual(
        40, 240, 240, 28, 27, 5, 2, (2, 2, 2, 2), project=False, sums=True
    ),
    "global pool": lambda: trials.global_pool(961, 12, 13),
    "pool": lambda: trials.pool("max", 64, 56, 57, (3, 3), (2, 2), (1, 1), True),
}


@pytest.mark.parametrize("name", LARGE)
def test_large(name: str) -> None:
    for images, count, layout in itertools.product((1, 3), (1, 2), ("dense", "arena")):
        check(LARGE[name](), images, count, layout)


@each_kind
def test_what_is_not_finite_passes_through(kind: str) -> None:
    """NaN and infinities stand where float64 has them, and nowhere else."""
    for i, (C, H, W) in enumerate(sizes(random.Random(f"{kind} again"), 25)):
        rng = random.Random(f"{kind} {i}")
        trial = DRAWS[kind](rng, C, H, W)
        maps = trial.draw(2)
        for _ in range(3):
            place = tuple(rng.randrange(extent) for extent in maps["x"].shape)
            maps["x"][place] = rng.choice([math.nan, math.inf, -math.inf])
        check(trial, 2, 1 + i % 2, "dense", maps)


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_a_picture_is_read_as_it_lies(order: torch.memory_format) -> None:
    """In either memory format, as every second pixel of a wider one, and as one picture shown thrice."""
    trial = trials.conv(3, 17, 9, 8, picture=True)
    x = torch.randn(3, 3, 9, 8)
    wide = torch.full((3, 3, 18, 16), math.nan)
    wide[:, :, ::2, 1::2] = x
    for given in (x.contiguous(memory_format=order), wide[:, :, ::2, 1::2], x[:1].expand(3, -1, -1, -1), x.flip(0)):
        check(trial, 3, 2, "dense", {"x": given})


def test_the_layout_called_late_is_late() -> None:
    header = words.Header(*plan_of(trials.global_pool(3, 4, 5), "late").program[: len(fields(words.Header))].tolist())
    assert header.early < header.steps and header.group > 1 and header.kept > 0 and header.arena > 0


@instruction_sets.each
def test_on_the_other_instruction_sets(isa: str) -> None:
    instruction_sets.rerun(__file__, isa, "not other_instruction_sets and not every_size")
