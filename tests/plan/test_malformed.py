# SPDX-License-Identifier: Apache-2.0
"""Programs and calls that are wrong: each is an error that names run_plan and what is wrong, and touches nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from fastcnn.accelerate.plan.builder import Builder, StepNote
from fastcnn.accelerate.plan.op import AVAILABLE
from fastcnn.accelerate.plan.planned import lanes
from fastcnn.accelerate.plan.weights import Blob
from fastcnn.accelerate.plan.words import (
    Conv,
    Depthwise,
    Elementwise,
    GlobalPool,
    Header,
    Place,
    Pointwise,
    PoolWindow,
    Shuffle,
    Value,
)
from tests.plan.sample import decode, edited, index_of, run, sample, sample_inputs
from tests.plan.trials import conv

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="the CPU library is not built")

OUTRAGEOUS = (-2, 2**40, 2**62, -(2**63), 2**63 - 1)


def refused(call: Callable[[], object], what: str = "") -> None:
    with pytest.raises(RuntimeError, match=rf"fastcnn: run_plan: .*{what}"):
        call()


def set_header(**words: int) -> Callable:
    return lambda header, values, steps: [setattr(header, name, word) for name, word in words.items()]


def set_value(where: Place, /, **words: int) -> Callable:
    def change(header: Header, values: list[Value], steps: list) -> None:
        value = next(value for value in values if value.place == where)
        for name, word in words.items():
            setattr(value, name, word)

    return change


def set_step(which: type, /, **words: int) -> Callable:
    def change(header: Header, values: list[Value], steps: list) -> None:
        step = steps[index_of(which, steps)]
        for name, word in words.items():
            setattr(step, name, word)

    return change


def name_instead(kind: type, field: str, which: Callable[[Value], bool]) -> Callable:
    """The step names the first value of that sort."""

    def change(header: Header, values: list[Value], steps: list) -> None:
        setattr(steps[index_of(kind, steps)], field, next(i for i, value in enumerate(values) if which(value)))

    return change


CASES = {
    "magic": (set_header(magic=1), "does not begin as one does"),
    "version": (set_header(version=7), "is of version 7, this build runs version"),
    "lanes": (set_header(lanes=32), "is packed for vectors of 32 floats"),
    "no inputs": (set_header(inputs=0), "impossible counts"),
    "many steps": (set_header(steps=2**50), "impossible counts"),
    "negative values": (set_header(values=-1), "impossible counts"),
    "one step more": (lambda h, v, s: setattr(h, "steps", h.steps + 1), "shorter than its steps"),
    "one step less": (lambda h, v, s: setattr(h, "steps", h.steps - 1), "longer than its steps"),
    "one input more": (set_header(inputs=3), "takes 3 inputs, got 2"),
    "one output more": (set_header(outputs=3), "no step that writes output 2"),
    "arena of minus one": (set_header(arena=-16), "impossible arena"),
    "arena out of line": (set_header(arena=17), "impossible arena"),
    "no arena": (set_header(arena=0), "outside the arena|a value's buffer"),
    "no kept memory": (set_header(kept=0), "outside the arena|a value's buffer"),
    "weights": (lambda h, v, s: setattr(h, "weights", h.weights + 16), "floats of weights, got"),
    "fewer weights": (lambda h, v, s: setattr(h, "weights", h.weights - 16), "floats of weights, got"),
    "early": (set_header(early=1000), "impossible number of early steps"),
    "all late": (set_header(early=0), "a late step names memory of a single image"),
    "group of none": (set_header(group=0), "impossible group"),
    "group": (set_header(group=65), "impossible group"),
    "no channels": (set_value(Place.ARENA, C=0), "the extents of a value"),
    "no rows": (set_value(Place.INPUT, H=0), "the extents of a value"),
    "channels beyond the pixel": (set_value(Place.ARENA, channel=1), "the channels of a value"),
    "channel before the pixel": (set_value(Place.INPUT, channel=-1), "the channels of a value"),
    "place": (set_value(Place.ARENA, place=9), "a value's place"),
    "buffer out of line": (set_value(Place.ARENA, buffer=8), "a value's buffer"),
    "buffer before the arena": (set_value(Place.ARENA, buffer=-16), "a value's buffer"),
    "buffer behind the arena": (set_value(Place.ARENA, buffer=2**30), "a value's buffer"),
    "tall value": (set_value(Place.ARENA, H=2**20), "outside the arena"),
    "index of an input": (set_value(Place.INPUT, index=2), "a value's input"),
    "index of an output": (set_value(Place.OUTPUT, index=2), "a value's output"),
    "shape of an input": (set_value(Place.INPUT, H=6), "changes|differ|must be|another"),
    "shape of a picture": (set_value(Place.PICTURE, H=10), r"must be \[N, 3, 10, 8\] as in the program, got \[N, 3, 9, 8\]"),
    "shape of an output": (set_value(Place.OUTPUT, pixel=30), "must be"),
    "a value that is not there": (set_step(Pointwise, x=999), "names a value that does not exist"),
    "no operand": (set_step(Conv, x=-1), "names a value that does not exist"),
    "no result": (set_step(Depthwise, y=-1), "names a value that does not exist"),
    "no value to pool": (set_step(GlobalPool, y=-1), "names a value that does not exist"),
    "a picture read": (name_instead(Depthwise, "x", lambda v: v.place == Place.PICTURE), "only a convolution reads a picture"),
    "an input written": (name_instead(Depthwise, "y", lambda v: v.place == Place.INPUT), "writes into an input"),
    "another size": (name_instead(Pointwise, "x", lambda v: v.C == 20 and v.H == 1), "changes the size"),
    "gate of a map": (name_instead(Pointwise, "gate", lambda v: v.C == 10 and v.H == 5), "another size than the channels"),
    "sums of others": (name_instead(Depthwise, "sums", lambda v: v.C == 20 and v.H == 1), "another size than the channels"),
    "residual of others": (name_instead(Pointwise, "residual", lambda v: v.C == 20), "differ in shape"),
    "other of others": (name_instead(Elementwise, "other", lambda v: v.C == 10 and v.H == 5), "differ in shape"),
    "pool of others": (name_instead(PoolWindow, "x", lambda v: v.C == 10 and v.H == 5), "changes the channels"),
    "mean of others": (name_instead(GlobalPool, "x", lambda v: v.C == 10 and v.H == 5), "another size|a late step"),
    "weight out of line": (set_step(Pointwise, weight=8), "outside the blob"),
    "weight behind the blob": (lambda h, v, s: setattr(s[0], "weight", h.weights - 16), "outside the blob"),
    "bias behind the blob": (lambda h, v, s: setattr(s[0], "bias", h.weights), "outside the blob"),
    "no weight": (set_step(Depthwise, weight=-1), "outside the blob"),
    "kernel of none": (set_step(Conv, kernel_h=0), "a window's extents"),
    "long kernel": (set_step(Depthwise, kernel_h=962), "a window's extents"),
    "stride of none": (set_step(Depthwise, stride_w=0), "a window's extents"),
    "dilation of none": (set_step(Conv, dilation_h=0), "a window's extents"),
    "long stride": (set_step(PoolWindow, stride_h=2**24), "a window's stride"),
    "negative padding": (set_step(Conv, pad_left=-1), "a window's padding"),
    "groups": (set_step(Conv, groups=7), "groups that do not divide"),
    "groups of none": (set_step(Conv, groups=0), "groups that do not divide"),
    "memory under a window": (set_step(Conv, dilation_h=2**22, dilation_w=2**20), "need too much memory"),
    "activation": (set_step(Conv, activation=7), "an unknown activation"),
    "prologue": (set_step(Pointwise, prologue=-1), "an unknown activation"),
    "kind of a pool": (set_step(PoolWindow, kind=4), "an unknown pool"),
    "kind of two maps": (set_step(Elementwise, kind=4), "an unknown elementwise step"),
    "two maps of one": (set_step(Elementwise, kind=0), "an unknown elementwise step"),
    "one map of two": (set_step(Elementwise, other=-1), "an unknown elementwise step"),
    "groups of a shuffle": (set_step(Shuffle, groups=3), "the groups of a shuffle"),
    "shuffle of two": (lambda h, v, s: setattr(s[index_of(Shuffle, s)], "second", s[index_of(Shuffle, s)].x), "a shuffle of two maps"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_program_that_is_wrong(name: str) -> None:
    change, what = CASES[name]
    refused(lambda: run(edited(sample().program, change)), what)


def test_the_sample_itself_runs() -> None:
    vector, pixels = run(edited(sample().program, lambda header, values, steps: None))
    assert vector.shape == (3, 7) and pixels.shape == (3, 20, 5, 4)
    assert torch.equal(edited(sample().program, lambda header, values, steps: None), sample().program)


def test_every_word_is_checked() -> None:
    """No word may be outrageous, whatever it means."""
    header, values, steps = decode(sample().program)
    places = [("header", 0, f.name) for f in dataclasses.fields(header)]
    places += [("value", i, f.name) for i, v in enumerate(values) for f in dataclasses.fields(v)]
    places += [("step", i, f.name) for i, s in enumerate(steps) for f in dataclasses.fields(s)]
    for kind, i, field in places:
        for word in OUTRAGEOUS:
            parts = decode(sample().program)
            setattr({"header": [parts[0]], "value": parts[1], "step": parts[2]}[kind][i], field, word)
            try:
                refused(lambda: run(edited(sample().program, lambda *p: _put(p, parts))))  # noqa: B023
            except pytest.fail.Exception as failure:
                raise AssertionError(f"{kind} {i}, {field} = {word} is accepted") from failure


def _put(to: tuple, parts: tuple) -> None:
    to[0].__dict__.update(parts[0].__dict__)
    to[1][:], to[2][:] = parts[1], parts[2]


OPTIONAL = {"residual", "gate", "bias", "scale", "shift", "sums", "expand_bias", "project_bias"}


def test_what_a_step_may_do_without() -> None:
    """-1 where a step has a residual, a bias, a gate...: it runs; elsewhere it is an error."""
    _, _, steps = decode(sample().program)
    for i, step in enumerate(steps):
        for field in dataclasses.fields(step):
            already = getattr(step, field.name) == -1  # two maps of a shuffle, say
            program = edited(sample().program, lambda h, v, s: setattr(s[i], field.name, -1))  # noqa: B023
            if field.name in OPTIONAL or already:
                run(program)
            else:
                refused(lambda: run(program))  # noqa: B023


def test_a_program_cut_short_or_continued() -> None:
    program = sample().program
    for length in range(len(program)):
        refused(lambda: run(program[:length].clone()))  # noqa: B023
    refused(lambda: run(torch.cat([program, program[-1:]])), "is longer than its steps")
    refused(lambda: run(torch.cat([program, program])), "is longer than its steps")


def test_the_length_and_kind_of_a_step() -> None:
    program = sample().program
    at = len(dataclasses.fields(Header)) + int(program[5]) * len(dataclasses.fields(Value))
    for kind, what in (
        (99, "names an unknown step, 99, at step 0"),
        (-1, "an unknown step"),
        (0, "another length than its kind"),
    ):
        changed = program.clone()
        changed[at] = kind
        refused(lambda: run(changed), what)  # noqa: B023
    for length in (0, 1, -1, 16, 18, 2**62):
        changed = program.clone()
        changed[at + 1] = length
        refused(lambda: run(changed))  # noqa: B023


def calls() -> dict[str, tuple[Callable[[], list], str]]:
    plan = sample()
    x, second = sample_inputs()
    op, same = torch.ops.fastcnn.run_plan, (plan.program, plan.weights, plan.output_shapes)
    shapes = plan.output_shapes
    tensor = r"must be a float32 tensor \[N, C, H, W\] or \[N, C\] on the CPU"
    vector = "must be a contiguous (int64|float32) vector on the CPU"
    outputs = r"output_shapes must hold \[1, C\] or \[3, C, H, W\]"
    return {
        "no input": (lambda: op([], *same), "takes 2 inputs, got 0"),
        "an input less": (lambda: op([x], *same), "takes 2 inputs, got 1"),
        "double": (lambda: op([x.double(), second], *same), f"input 0 {tensor}"),
        "half": (lambda: op([x, second.half()], *same), f"input 1 {tensor}"),
        "three dimensions": (lambda: op([x[0], second], *same), f"input 0 {tensor}"),
        "no dimension": (lambda: op([x[0, 0, 0, 0], second], *same), f"input 0 {tensor}"),
        "batches": (lambda: op([x, second[:2]], *same), "inputs must have one batch, got 3 and 2"),
        "height": (lambda: op([x[:, :, 1:], second], *same), r"input 0 must be \[N, 3, 9, 8\].* got \[N, 3, 8, 8\]"),
        "channels": (lambda: op([x[:, 1:], second], *same), "input 0 must be"),
        "width of a map": (lambda: op([x, second[..., 1:]], *same), "input 1 must be"),
        "vector for a map": (lambda: op([x, second.flatten(1)], *same), "input 1 must be"),
        "no channels": (lambda: op([x, second[:, :0]], *same), "input 1 must be"),
        "int32 program": (lambda: op([x, second], plan.program.int(), *same[1:]), f"program {vector}"),
        "matrix program": (lambda: op([x, second], plan.program[None], *same[1:]), f"program {vector}"),
        "strided program": (lambda: op([x, second], plan.program.repeat_interleave(2)[::2], *same[1:]), f"program {vector}"),
        "empty program": (lambda: op([x, second], plan.program[:0], *same[1:]), "shorter than its header"),
        "short weights": (lambda: op([x, second], plan.program, plan.weights[:-1], shapes), "floats of weights, got"),
        "no weights": (lambda: op([x, second], plan.program, plan.weights[:0], shapes), "floats of weights, got 0"),
        "double weights": (lambda: op([x, second], plan.program, plan.weights.double(), shapes), f"weights {vector}"),
        "strided weights": (lambda: op([x, second], plan.program, plan.weights.repeat_interleave(2)[::2], shapes), f"weights {vector}"),
        "no outputs": (lambda: op([x, second], *same[:2], []), "must name the 2 outputs of the program, got 0"),
        "an output less": (lambda: op([x, second], *same[:2], shapes[:2]), "must name the 2 outputs of the program, got 1"),
        "rank": (lambda: op([x, second], *same[:2], [2, 7, 1, *shapes[2:]]), outputs),
        "cut short": (lambda: op([x, second], *same[:2], shapes[:-1]), outputs),
        "negative extent": (lambda: op([x, second], *same[:2], [1, -7, *shapes[2:]]), outputs),
        "extent of none": (lambda: op([x, second], *same[:2], [1, 0, *shapes[2:]]), outputs),
        "overflowing extents": (lambda: op([x, second], *same[:2], [*shapes[:2], 3, 2**31, 2**31, 2**31]), outputs),
        "another vector": (lambda: op([x, second], *same[:2], [1, 8, *shapes[2:]]), "output 0 must be"),
        "another map": (lambda: op([x, second], *same[:2], [*shapes[:2], 3, 20, 4, 5]), "output 1 must be"),
    }  # fmt: skip


@pytest.mark.parametrize("name", calls() if AVAILABLE else [])
def test_a_call_that_is_wrong(name: str) -> None:
    call, what = calls()[name]
    refused(call, what)


def test_memory_that_overflows() -> None:
    """An arena and a batch whose product is 2^64 floats: no small buffer may come of it."""
    refused(lambda: run(edited(sample().program, set_header(arena=2**40))), "no memory for")
    builder = Builder(Blob(lanes()))
    numbers = {"x": builder.number(builder.input((1, 1, 1), picture=True)), "y": builder.number(builder.map(1))}
    builder.add(conv(1, 1, 1, 1).step(builder, numbers), StepNote("step", "test", 0, 0, 0))
    builder.make_output(builder.values[numbers["y"]], (1,))
    plan = builder.finish()
    many = [torch.ones(1, 1, 1, 1).expand(2**24, 1, 1, 1)]
    program = edited(plan.program, set_header(arena=2**40))
    refused(lambda: torch.ops.fastcnn.run_plan(many, program, plan.weights, plan.output_shapes), "no memory for")
