# SPDX-License-Identifier: Apache-2.0
"""Depthwise convolution in Triton's interpreter: awkward kernels, tails, every activation, gradients, slices."""

import functools
import itertools

import pytest
import torch

import fastcnn
from fastcnn.testing import DEPTHWISE_CASES, LAYOUTS, arrange, assert_close_fp64, away_from_knots
from tests.cross import exact

from .compare import compare, draw
from .interpreter import needs_triton, run_checks


def _exact(x, weight, bias, residual=None, *, stride, padding, dilation, activation):
    z = exact.convolution(x, weight, bias, stride, padding, dilation, x.shape[1])
    return exact.activation(z if residual is None else z + residual, activation)


def check_forward_and_backward():
    layouts = itertools.cycle(LAYOUTS)
    for number, case in enumerate(DEPTHWISE_CASES):
        if case.N == 0:
            continue
        large = case.C * case.H * case.W > 3000 or case.kernel[0] * case.kernel[1] > 20
        case = case._replace(N=1) if large else case
        for layout, dtype in (
            ("channels_last", torch.float32),
            ("nchw", torch.float16),
            (next(layouts), torch.float32),
        )[: 3 - large]:
            geometry = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation}
            activation = exact.KINDS[number % len(exact.KINDS)]
            inputs = {
                "x": draw(case.N, case.C, case.H, case.W, dtype=dtype),
                "weight": draw(case.out, 1, *case.kernel, dtype=dtype),
            }
            inputs["bias"] = draw(case.out, dtype=torch.float32 if number % 2 else dtype)
            if number % 3:
                with fastcnn.use_backend("reference"):
                    shape = fastcnn.ops.depthwise_conv2d(**inputs, **geometry).shape
                inputs["residual"] = draw(*shape, dtype=dtype)
            op = functools.partial(fastcnn.ops.depthwise_conv2d, activation=activation, **geometry)
            wanted = functools.partial(_exact, activation=activation, **geometry)
            products = case.N * case.H * case.W * case.reduction
            compare(f"{case.name} {activation} {layout}", op, wanted, inputs, layout, products)


def check_the_epilogue():
    for layout in ("nchw", "channels_last"):
        x, residual = draw(1, 20, 6, 7, dtype=torch.float32), draw(1, 20, 6, 7, dtype=torch.float32)
        weight, bias = draw(20, 1, 3, 3, dtype=torch.float32), draw(20, dtype=torch.float32)
        wanted = _exact(
            *(t.double() for t in (x, weight, bias, residual)), stride=1, padding=1, dilation=1, activation="relu6"
        )
        with fastcnn.use_backend("triton"):
            given = (arrange(x, layout), weight, bias, 1, 1, 1, "relu6", arrange(residual, layout))
            y = fastcnn.ops.depthwise_conv2d(*given)
        assert_close_fp64(y, wanted, reduction=9, magnitude=20.0, label=layout)


def check_a_large_kernel():
    for layout in ("nchw", "channels_last"):
        inputs = {"x": draw(1, 9, 8, 7, dtype=torch.float32), "weight": draw(9, 1, 11, 5, dtype=torch.float32)}
        op = functools.partial(fastcnn.ops.depthwise_conv2d, padding=(2, 2, 5, 5))
        wanted = functools.partial(_exact, bias=None, stride=1, padding=(2, 2, 5, 5), dilation=1, activation="identity")
        compare(f"11x5 {layout}", op, wanted, inputs, layout, 11 * 5 * 56)


def check_bfloat16_and_float64():
    for dtype in (torch.bfloat16, torch.float64):
        x, weight = draw(1, 12, 6, 5, dtype=dtype), draw(12, 1, 3, 3, dtype=dtype)
        wanted = exact.activation(exact.convolution(x.double(), weight.double(), None, 2, 1, 1, 12), "silu")
        with fastcnn.use_backend("triton"):
            y = fastcnn.ops.depthwise_conv2d(x, weight, None, 2, 1, activation="silu")
        magnitude = exact.convolution_magnitude(x.double(), weight.double(), None, 2, 1, 1, 12)
        assert_close_fp64(y, wanted, reduction=9, magnitude=magnitude, label="silu")


def check_into_a_channel_slice():
    from fastcnn.triton_kernels.depthwise_conv2d import launch_depthwise_conv2d

    x, weight = draw(2, 8, 5, 6, dtype=torch.float32), draw(8, 1, 3, 3, dtype=torch.float32)
    wanted = exact.convolution(x.double(), weight.double(), None, 1, 1, 1, 8)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        whole = torch.full((2, 20, 5, 6), 7.0).contiguous(memory_format=memory_format)
        given = x.contiguous(memory_format=memory_format)
        plain = (given, weight, None, None, (1, 1), (1, 1, 1, 1), (1, 1), "identity")
        with pytest.raises(ValueError, match=r"depthwise_conv2d: out must be \[2, 8, 5, 6\], got \[2, 9, 5, 6\]"):
            launch_depthwise_conv2d(*plain, out=whole[:, 5:14])
        launch_depthwise_conv2d(*plain, out=whole[:, 5:13])
        assert_close_fp64(whole[:, 5:13], wanted, reduction=9, label=f"slice {memory_format}")
        assert bool((whole[:, :5] == 7).all()) and bool((whole[:, 13:] == 7).all())


def check_empty_and_deterministic():
    x = away_from_knots(draw(2, 16, 9, 9, dtype=torch.float32)).requires_grad_()
    weight = draw(16, 1, 3, 3, dtype=torch.float32).requires_grad_()
    found = []
    with fastcnn.use_backend("triton"):
        assert fastcnn.ops.depthwise_conv2d(x.detach()[:0], weight.detach()).shape == (0, 16, 7, 7)
        for _ in range(2):
            y = fastcnn.ops.depthwise_conv2d(x, weight, activation="relu")
            found.append(torch.autograd.grad(y, (x, weight), torch.ones_like(y)))
    assert all(torch.equal(a, b) for a, b in zip(*found))


@needs_triton
def test_in_the_interpreter():
    run_checks(__name__)
