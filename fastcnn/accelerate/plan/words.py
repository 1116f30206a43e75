# SPDX-License-Identifier: Apache-2.0
"""The words of a program for ``run_plan``: the structs of ``csrc/cpu/plan/program.h``, field by field."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

MAGIC = 0x6E6E6366
VERSION = 1
NONE = -1
ALIGNMENT = 16  # floats
ACTIVATIONS = ("identity", "relu", "relu6", "hardswish", "hardsigmoid", "silu", "sigmoid")


class Place(IntEnum):
    ARENA = 0
    KEPT = 1
    INPUT = 2
    OUTPUT = 3
    PICTURE = 4


class Pool(IntEnum):
    MAX = 0
    MEAN = 1
    MEAN_OF_VALID = 2
    ADAPTIVE_MEAN = 3


class Binary(IntEnum):
    NONE = 0
    ADD = 1
    MULTIPLY = 2
    SUBTRACT = 3


@dataclass
class Header:
    magic: int
    version: int
    lanes: int
    inputs: int
    outputs: int
    values: int
    steps: int
    arena: int
    kept: int
    weights: int
    early: int
    group: int


@dataclass
class Value:
    place: int
    index: int
    buffer: int
    channel: int
    C: int
    H: int
    W: int
    pixel: int


@dataclass
class Pointwise:
    x: int
    y: int
    residual: int
    gate: int
    weight: int
    bias: int
    scale: int
    shift: int
    prologue: int
    activation: int


@dataclass
class Conv:
    x: int
    y: int
    residual: int
    weight: int
    bias: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    pad_top: int
    pad_left: int
    dilation_h: int
    dilation_w: int
    groups: int
    activation: int


@dataclass
class Depthwise:
    x: int
    y: int
    residual: int
    sums: int
    weight: int
    bias: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    pad_top: int
    pad_left: int
    dilation_h: int
    dilation_w: int
    activation: int


@dataclass
class GlobalPool:
    x: int
    y: int


@dataclass
class PoolWindow:
    x: int
    y: int
    kind: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    pad_top: int
    pad_left: int


@dataclass
class Elementwise:
    x: int
    other: int
    y: int
    kind: int
    scale: int
    shift: int
    activation: int
    residual: int = NONE


@dataclass
class Shuffle:
    x: int
    second: int
    y: int
    groups: int


@dataclass
class InvertedResidual:
    x: int
    y: int
    residual: int
    sums: int
    expand: int
    expand_bias: int
    weight: int
    bias: int
    project: int
    project_bias: int
    channels: int
    kernel: int
    stride: int
    pad_top: int
    pad_left: int
    expand_activation: int
    middle: int
    activation: int


@dataclass
class Grouped:
    x: int
    y: int
    residual: int
    weight: int
    bias: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    pad_top: int
    pad_left: int
    dilation_h: int
    dilation_w: int
    group: int
    activation: int


# in the order of enum Op
class PointwiseBf16(Pointwise):
    """With operands rounded to bfloat16."""


class ConvBf16(Conv):
    """With operands rounded to bfloat16."""


STEPS = (
    Pointwise, Conv, Depthwise, GlobalPool, PoolWindow, Elementwise, Shuffle, InvertedResidual, PointwiseBf16, ConvBf16,
    Grouped,
)  # fmt: skip
READS = ("x", "residual", "gate", "other", "second")  # the fields that name values
WRITES = ("y", "sums")


def values_of(step: object, fields: tuple[str, ...]) -> list[int]:
    """The values that ``step`` names in these fields."""
    found = [getattr(step, field, NONE) for field in fields]
    return [each for each in found if each != NONE]


def encode(header: Header, values: list[Value], steps: list) -> Tensor:
    """The program as ``run_plan`` takes it: int64."""
    words = list(dataclasses.astuple(header))
    for value in values:
        words += dataclasses.astuple(value)
    for step in steps:
        arguments = dataclasses.astuple(step)
        words += [STEPS.index(type(step)), 2 + len(arguments), *arguments]
    return torch.tensor(words, dtype=torch.int64)
