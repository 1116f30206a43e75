# SPDX-License-Identifier: Apache-2.0
"""Sums whose chunks have many tiles, in Triton's interpreter: as on maps that have more tiles than programs run."""

import functools
from collections.abc import Callable
from unittest import mock

import torch

import fastcnn
from fastcnn.testing import assert_close_fp64, away_from_knots
from tests.cross import exact

from .compare import compare, draw
from .interpreter import needs_triton, run_checks

LAYOUTS = ("nchw", "channels_last")


def _one_program(check: Callable[[], None]) -> Callable[[], None]:
    @functools.wraps(check)
    def run() -> None:
        from fastcnn.triton_kernels import _host, global_avg_pool

        with mock.patch.object(_host, "_PROGRAMS", 1), mock.patch.object(global_avg_pool, "_PROGRAMS", 1):
            check()

    return run


@_one_program
def check_batch_norm():
    for layout, shape in zip(LAYOUTS, ((3, 2, 39, 41), (3, 70, 9, 7))):
        N, C, H, W = shape
        x = draw(*shape, dtype=torch.float32) + 3
        mean, var = torch.randn(C), torch.rand(C) + 0.5
        wanted = exact.running(x.double(), mean.double(), var.double(), 0.3)
        inputs = {"x": x, "weight": draw(C, dtype=torch.float32), "bias": draw(C, dtype=torch.float32)}

        def op(x, weight, bias):
            return fastcnn.ops.batch_norm_act(x, None, None, weight, bias, training=True, eps=1e-3, activation="silu")

        def reference(x, weight, bias):
            return exact.activation(exact.batch_norm(x, None, None, weight, bias, True, 1e-3), "silu")

        compare(f"batch_norm_act {layout}", op, reference, inputs, layout, N * H * W)
        with fastcnn.use_backend("triton"):
            fastcnn.ops.batch_norm_act(x, mean, var, training=True, momentum=0.3)
        for name, got, expected in zip(("mean", "variance"), (mean, var), wanted):
            assert_close_fp64(got, expected, reduction=N * H * W, magnitude=4.0, label=f"running {name} {layout}")


@_one_program
def check_pooling():
    for layout, shape in zip(LAYOUTS, ((2, 3, 47, 49), (2, 70, 9, 11))):
        x = draw(*shape, dtype=torch.float32) + 1
        compare(f"pool {layout}", fastcnn.ops.global_avg_pool, exact.global_avg_pool, {"x": x}, layout, 2303)


@_one_program
def check_depthwise():
    for layout, shape in zip(LAYOUTS, ((2, 3, 39, 41), (2, 70, 9, 7))):
        C = shape[1]
        inputs = {
            "x": away_from_knots(draw(*shape, dtype=torch.float32)),
            "weight": draw(C, 1, 2, 2, dtype=torch.float32),
            "bias": draw(C, dtype=torch.float32),
        }

        def reference(x, weight, bias):
            return exact.convolution(x, weight, bias, 1, 0, 1, x.shape[1])

        compare(f"depthwise {layout}", fastcnn.ops.depthwise_conv2d, reference, inputs, layout, 2 * 39 * 41 * 4)


@needs_triton
def test_in_the_interpreter():
    run_checks(__name__)
