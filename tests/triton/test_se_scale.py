# SPDX-License-Identifier: Apache-2.0
"""Squeeze-and-excitation in Triton's interpreter: forward and every gradient."""

import functools
import math

import torch

import fastcnn
from fastcnn.testing import arrange, assert_close_fp64
from tests.cross import exact

from .compare import HALF_AND_SINGLE, compare, draw
from .interpreter import needs_triton, run_checks

# more channels than a layer's block, more squeezed ones too; tails; one pixel
CASES = (
    ((2, 24, 5, 3), 6, "relu", "hardsigmoid", "channels_last"),
    ((2, 24, 5, 3), 6, "silu", "sigmoid", "nchw"),
    ((1, 75, 1, 1), 35, "relu", "sigmoid", "channels_last"),
    ((3, 5, 9, 4), 1, "hardswish", "hardsigmoid", "transposed"),
)


def check_forward_and_backward():
    for number, (shape, squeezed, activation, gate, layout) in enumerate(CASES):
        for dtype in (torch.float64, *HALF_AND_SINGLE, torch.bfloat16):
            C, kind = shape[1], torch.float32 if number % 2 and dtype is not torch.float64 else dtype
            tail = (1, 1) if number % 2 else ()
            inputs = {
                "x": draw(*shape, dtype=dtype),
                "w1": draw(squeezed, C, *tail, dtype=kind, scale=C**-0.5),
                "b1": draw(squeezed, dtype=kind),
                "w2": draw(C, squeezed, *tail, dtype=kind, scale=squeezed**-0.5),
                "b2": draw(C, dtype=kind),
            }
            x_products = math.prod(shape)  # what the gradient of b1 sums
            op = functools.partial(fastcnn.ops.se_scale, activation=activation, gate=gate)
            wanted = functools.partial(exact.se_scale, kind=activation, gate=gate)
            compare(f"{shape} {activation} {gate} {layout}", op, wanted, inputs, layout, x_products)


def check_the_gate_alone():
    for layout in ("nchw", "channels_last"):
        x = arrange(draw(2, 24, 5, 3, dtype=torch.float16), layout)
        layers = [draw(*shape, dtype=torch.float32) for shape in ((6, 24, 1, 1), (6,), (24, 6, 1, 1), (24,))]
        with fastcnn.use_backend("triton"):
            found = fastcnn.ops.se_gate(x, *layers, "silu", "sigmoid")
            assert fastcnn.ops.se_gate(x[:0], *layers).shape == (0, 24)
        assert found.dtype is torch.float32 and found.shape == (2, 24)
        one = torch.ones(2, 24, 1, 1, dtype=torch.float64)
        mean, wide = x.double().mean((2, 3), keepdim=True), [t.double() for t in layers]
        wanted = exact.se_scale(mean, *wide, "silu", "sigmoid") / torch.where(mean == 0, one, mean)
        assert_close_fp64(found, wanted.flatten(1), reduction=30, magnitude=1.0, label=layout)


def check_the_gate_behind_its_convolution():
    for number, layout in enumerate(("nchw", "channels_last")):
        x, weight = arrange(draw(2, 6, 7, 5, dtype=torch.float32), layout), draw(6, 1, 3, 3, dtype=torch.float32)
        layers = [draw(*shape, dtype=torch.float32) for shape in ((4, 6), (4,), (6, 4), (6,))]
        bias = (None, layers[3])[number]
        with fastcnn.use_backend("triton"):
            y, scale = fastcnn.ops.depthwise_se_gate(x, weight, bias, *layers, 2, 1, 1, "silu", "relu", "sigmoid")
            wanted = fastcnn.ops.depthwise_conv2d(x, weight, bias, 2, 1, 1, "silu")
            gates = fastcnn.ops.se_gate(wanted, *layers, "relu", "sigmoid")
        assert torch.equal(y, wanted) and y.stride() == wanted.stride() and torch.equal(scale, gates)


def check_empty():
    with fastcnn.use_backend("triton"):
        y = fastcnn.ops.se_scale(
            torch.zeros(0, 2, 3, 3), torch.zeros(1, 2), torch.zeros(1), torch.zeros(2, 1), torch.zeros(2)
        )
    assert y.shape == (0, 2, 3, 3)


@needs_triton
def test_in_the_interpreter():
    run_checks(__name__)
