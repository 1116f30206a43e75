# SPDX-License-Identifier: Apache-2.0
"""conv_bn_act in training in Triton's interpreter: statistics, every gradient, TF32 by caller or switch."""

import functools

import torch

import fastcnn
from fastcnn.testing import assert_close_fp64
from tests.cross import exact

from .compare import compare, draw
from .interpreter import needs_triton, run_checks
from .test_conv_bn_act import _exact, calls


def check_training():
    for label, inputs, _, options, layout, products in calls():
        if "1x1-one" in label or "1x1-wide" in label:  # too few values a channel for a comparison in half
            continue
        inputs.pop("bias")  # its gradient is exactly zero, theirs is noise
        op = functools.partial(fastcnn.ops.conv_bn_act, eps=1e-3, training=True, **options)
        compare(f"{label} training", op, functools.partial(_exact, training=True, **options), inputs, layout, products)


def check_bias_and_running_statistics():
    x, weight, bias = (
        draw(2, 6, 5, 7, dtype=torch.float32),
        draw(9, 6, 1, 1, dtype=torch.float32),
        draw(9, dtype=torch.float32).requires_grad_(),
    )
    mean, var = torch.randn(9), torch.rand(9) + 0.5
    wanted = exact.running(
        exact.convolution(x.double(), weight.double(), bias.detach().double()), mean.double(), var.double(), 0.3
    )
    with fastcnn.use_backend("triton"):
        y = fastcnn.ops.conv_bn_act(x, weight, None, None, mean, var, bias, training=True, momentum=0.3)
        y.square().sum().backward()
    for got, expected in zip((mean, var), wanted):
        assert_close_fp64(got, expected, reduction=70, label="running statistics")
    assert torch.equal(bias.grad, torch.zeros(9))


def check_many_pixels_are_summed_in_parts():
    inputs = {"x": draw(1, 4, 40, 70, dtype=torch.float32), "weight": draw(3, 4, 1, 1, dtype=torch.float32)}
    options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "activation": "identity"}
    compare(
        "parts",
        functools.partial(fastcnn.ops.conv_bn_act, **options),
        functools.partial(_exact, **options),
        inputs,
        "channels_last",
        2800,
    )


def check_tf32_follows_the_switch():
    from fastcnn.triton_kernels._configs import precision

    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for allowed, wanted in ((False, "ieee"), (True, "tf32")):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            assert (precision(torch.float32), precision(torch.float64)) == (wanted, "ieee")
            assert [precision(torch.float32, asked) for asked in (False, True)] == ["ieee", "tf32"]
            assert precision(torch.float64, True) == "ieee"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@needs_triton
def test_in_the_interpreter():
    run_checks(__name__)
