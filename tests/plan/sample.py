# SPDX-License-Identifier: Apache-2.0
"""A small program with a step of every kind, and programs taken apart."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor

from fastcnn.accelerate.plan.builder import Builder, Plan, StepNote
from fastcnn.accelerate.plan.planned import lanes
from fastcnn.accelerate.plan.weights import Blob
from fastcnn.accelerate.plan.words import STEPS, ConvBf16, Grouped, Header, PointwiseBf16, Value, encode
from tests.plan import trials
from tests.plan.trials import Trial, Window

Parts = tuple[Header, list[Value], list]


def decode(program: Tensor) -> Parts:
    """What ``words.encode`` was given."""
    words = program.tolist()
    count = len(fields(Header))
    header = Header(*words[:count])
    size = len(fields(Value))
    values = [Value(*words[count + i * size : count + (i + 1) * size]) for i in range(header.values)]
    at, steps = count + header.values * size, []
    while at < len(words):
        steps.append(STEPS[words[at]](*words[at + 2 : at + words[at + 1]]))
        at += words[at + 1]
    return header, values, steps


def edited(program: Tensor, change: Callable[[Header, list[Value], list], object]) -> Tensor:
    """``program`` after ``change`` to its parts."""
    parts = decode(program)
    change(*parts)
    return encode(*parts)


@functools.cache
def sample(width: int | None = None) -> Plan:
    """Takes a picture [N, 3, 9, 8] and a map [N, 10, 5, 4]; gives a vector [N, 7] and a map [N, 20, 5, 4].

    ``width``: floats of a vector, if not those of the kernels in use.
    """
    torch.manual_seed(0)
    builder = Builder(Blob(width or lanes()))
    picture, second = builder.input((3, 9, 8), picture=True), builder.input((10, 5, 4), picture=False)

    def add(trial: Trial, weights: int = 0, **views: object) -> None:
        at = {name: builder.number(view) for name, view in views.items()}
        builder.add(trial.step(builder, at), StepNote("step", "test", 0, weights, weights))

    stem, wide, sums = builder.map(10, 5, 4), builder.map(20, 5, 4), builder.map(10)
    low, high = wide.slice(0, 10), wide.slice(10, 20)
    add(trials.conv(3, 10, 9, 8, Window(stride=(2, 2)), activation="relu"), x=picture, y=stem)
    add(trials.depthwise(10, 5, 4, sums=True, activation="silu"), x=stem, y=low, sums=sums, residual=second)
    add(trials.pointwise(10, 10, 5, 4, gate=True, scale=True, shift=True), x=low, y=high, gate=sums, residual=second)
    block, pooled, mixed, both = (builder.map(20, 5, 4) for _ in range(4))
    add(trials.pool("max", 20, 5, 4, (3, 3), (1, 1), (1, 1)), x=wide, y=pooled)
    add(trials.inverted_residual(20, 30, 20, 5, 4, residual=True), x=pooled, y=block, residual=wide)
    add(trials.elementwise("add", 20, 5, 4, scale=True, activation="hardswish"), x=block, y=mixed, other=wide)
    add(trials.shuffle(20, 4, 5, 4), x=mixed, y=both)
    means, logits = builder.map(20), builder.map(7)
    add(trials.global_pool(20, 5, 4), weights=trials.MUCH, x=both, y=means)
    add(trials.pointwise(20, 7), weights=trials.MUCH, x=means, y=logits)
    builder.make_output(logits, (7,))
    builder.make_output(both, (20, 5, 4))
    assert {type(step) for step in builder.steps} == set(STEPS) - {Grouped, PointwiseBf16, ConvBf16}  # the last two need AMX
    return builder.finish()


def sample_inputs(images: int = 3) -> list[Tensor]:
    return [torch.randn(images, 3, 9, 8), torch.randn(images, 10, 5, 4)]


def index_of(step: type, steps: list) -> int:
    return next(i for i, each in enumerate(steps) if type(each) is step)


def run(program: Tensor, inputs: list[Tensor] | None = None) -> list[Tensor]:
    """The sample's call with another program."""
    plan = sample()
    return torch.ops.fastcnn.run_plan(inputs or sample_inputs(), program, plan.weights, plan.output_shapes)


def flip(program: Tensor, rng: random.Random) -> Tensor:
    """``program`` with one to three words replaced by others that may well be plausible."""
    program = program.clone()
    for _ in range(rng.randint(1, 3)):
        i = rng.randrange(len(program))
        word = int(program[i])
        other = rng.choice([
            rng.randint(-2, 24), word + rng.choice([-16, -1, 1, 16]), int(program[rng.randrange(len(program))]),
            1 << rng.randrange(24), word * 2, rng.randint(-(2**63), 2**63 - 1),
        ])  # fmt: skip
        program[i] = (other + 2**63) % 2**64 - 2**63
    return program
