# SPDX-License-Identifier: Apache-2.0
"""Convolution + batch norm + residual + activation in Triton's interpreter: GEMM and implicit GEMM, eval."""

import functools

import pytest
import torch

import fastcnn
from fastcnn.testing import Case, arrange, assert_close_fp64
from tests.cross import exact

from .compare import HALF_AND_SINGLE, compare, draw
from .interpreter import needs_triton, run_checks

POINT = ((1, 1), (1, 1), (0, 0, 0, 0))
# channels beyond a block and in tails, more pixels than a program, strides, paddings, dilations, groups, depthwise
CASES = (
    (Case("1x1", 2, 24, 7, 9, 40, *POINT), "relu6", "channels_last", True),
    (Case("1x1-tails", 1, 67, 5, 3, 7, *POINT), "hardswish", "nchw", True),
    (Case("1x1-wide", 1, 5, 3, 3, 131, *POINT), "silu", "channels_last", False),
    (Case("1x1-one", 2, 1, 3, 4, 1, *POINT), "sigmoid", "transposed", True),
    (Case("1x1-stride", 2, 16, 5, 6, 24, (1, 1), (2, 3), (0, 0, 0, 0)), "relu", "channels_last", True),
    (Case("3x3", 2, 9, 6, 7, 12), "identity", "nchw", True),
    (Case("3x3-stride", 1, 70, 7, 8, 18, (3, 3), (2, 1)), "hardsigmoid", "channels_last", False),
    (Case("1x7-same", 2, 8, 5, 9, 6, (1, 7), (1, 2), "same"), "relu", "sliced", True),
    (Case("5x3-dilated", 1, 3, 12, 11, 20, (5, 3), (1, 2), (0, 3, 2, 1), (2, 3)), "hardswish", "channels_last", True),
    (Case("groups", 2, 24, 5, 5, 36, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 3), "silu", "channels_last", True),
    (Case("groups-nchw", 1, 6, 5, 5, 4, (2, 3), (1, 1), (1, 0, 0, 1), (1, 1), 2), "relu", "nchw", False),
    (Case("depthwise", 2, 20, 5, 6, 20, groups=20), "relu6", "channels_last", True),
)


def _exact(x, weight, bn_weight=None, bn_bias=None, running_mean=None, running_var=None, bias=None, residual=None, *,
           stride, padding, dilation, groups, activation, training=False):  # fmt: skip
    z = exact.convolution(x, weight, bias, stride, padding, dilation, groups)
    if training or running_mean is not None:
        z = exact.batch_norm(z, running_mean, running_var, bn_weight, bn_bias, training, 1e-3)
    return exact.activation(z if residual is None else z + residual, activation)


def calls():
    """(label, the arguments that have gradients, BN statistics, options, layout, products in the longest sum)."""
    for number, (case, activation, layout, has_residual) in enumerate(CASES):
        for dtype in HALF_AND_SINGLE:
            vector = torch.float32 if number % 2 else dtype
            options = {
                "stride": case.stride,
                "padding": case.padding,
                "dilation": case.dilation,
                "groups": case.groups,
                "activation": activation,
            }
            weight = draw(case.out, case.C // case.groups, *case.kernel, dtype=dtype, scale=case.reduction**-0.5)
            inputs = {
                "x": draw(case.N, case.C, case.H, case.W, dtype=dtype),
                "weight": weight,
                "bias": draw(case.out, dtype=vector),
            }
            if number % 4:
                inputs |= {"bn_weight": draw(case.out, dtype=vector), "bn_bias": draw(case.out, dtype=vector)}
            statistics = {
                "running_mean": draw(case.out, dtype=vector),
                "running_var": torch.rand(case.out).add(0.5).to(vector),
            }
            if has_residual:
                with fastcnn.use_backend("reference"):
                    shape = fastcnn.ops.conv_bn_act(inputs["x"], weight, **options).shape
                inputs["residual"] = draw(*shape, dtype=dtype)
            products = case.N * case.H * case.W * max(case.reduction, case.out)
            yield f"{case.name} {activation} {layout}", inputs, statistics, options, layout, products


def check_eval():
    for label, inputs, statistics, options, layout, products in calls():
        op = functools.partial(fastcnn.ops.conv_bn_act, eps=1e-3, **options)
        compare(label, op, functools.partial(_exact, **options), inputs, layout, products, statistics)


def check_without_batch_norm():
    for label, inputs, _, options, layout, products in list(calls())[::4]:
        plain = {name: value for name, value in inputs.items() if not name.startswith("bn_")}
        compare(
            f"{label} plain",
            functools.partial(fastcnn.ops.conv_bn_act, **options),
            functools.partial(_exact, **options),
            plain,
            layout,
            products,
        )


def check_weights_in_channels_last_and_float64():
    x, weight = draw(1, 6, 5, 4, dtype=torch.float64), draw(5, 6, 3, 3, dtype=torch.float64)
    options = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1, "activation": "silu"}
    wanted = _exact(x, weight, **options)
    for layout in ("nchw", "channels_last"):
        with fastcnn.use_backend("triton"):
            y = fastcnn.ops.conv_bn_act(
                arrange(x, "channels_last"), arrange(weight, layout), padding=1, activation="silu"
            )
        assert_close_fp64(y, wanted, reduction=54, label=f"weight {layout}")


def check_prologues_and_slices():
    from fastcnn.triton_kernels.conv_bn_act import launch_conv_bn_act

    for memory_format in (torch.contiguous_format, torch.channels_last):
        for kernel, padding in (((1, 1), (0, 0, 0, 0)), ((3, 3), (1, 1, 1, 1))):
            for dtype in HALF_AND_SINGLE:
                x = draw(2, 12, 5, 6, dtype=dtype).contiguous(memory_format=memory_format)
                weight = draw(10, 12, *kernel, dtype=dtype, scale=0.1)
                gate, scale, shift = torch.rand(2, 12), torch.randn(12), torch.randn(12) + 0.5
                whole = torch.full((2, 24, 5, 6), 7.0, dtype=dtype).contiguous(memory_format=memory_format)
                plain = (None, None, None, None, None, None, (1, 1), padding, (1, 1), 1, 0.0, "relu")
                with_gate = x.double() * gate.double()[:, :, None, None]
                with_norm = (x.double() * scale.double().view(1, -1, 1, 1) + shift.double().view(1, -1, 1, 1)).clamp(
                    min=0
                )
                for given, prologue in (
                    (with_gate, {"gate": gate}),
                    (with_norm, {"pre_scale": scale, "pre_shift": shift}),
                ):
                    got = launch_conv_bn_act(x, weight, *plain, out=whole[:, 8:18], **prologue)
                    rounded = given.to(dtype).double()  # what the multiplication takes
                    wanted = exact.convolution(rounded, weight.double(), None, 1, padding).clamp(min=0)
                    label = f"{list(prologue)} {kernel} {memory_format}"
                    magnitude = exact.convolution_magnitude(rounded, weight.double(), None, 1, padding)
                    # an element at a tie of its rounding may round the other way in float32
                    rival = wanted + torch.finfo(dtype).eps * rounded.abs().max() * weight.abs().max() / 2
                    assert_close_fp64(got, wanted, reduction=108, magnitude=magnitude, rival=rival, label=label)
                    assert bool((whole[:, :8] == 7).all()) and bool((whole[:, 18:] == 7).all()), label
                    part = launch_conv_bn_act(whole[:, 8:20], weight, *plain)  # from a slice
                    wanted = exact.convolution(whole[:, 8:20].double(), weight.double(), None, 1, padding)
                    assert_close_fp64(part, wanted.clamp(min=0), reduction=108, label=f"{label}: from a slice")


def _forward_and_gradients(label, x, weight, layout, **geometry):
    options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "activation": "identity", **geometry}
    op, wanted = (functools.partial(f, **options) for f in (fastcnn.ops.conv_bn_act, _exact))
    compare(label, op, wanted, {"x": x, "weight": weight}, layout, x.numel())


def check_groups():
    for layout in ("channels_last", "nchw"):
        x, weight = draw(1, 12, 4, 5, dtype=torch.float32), draw(9, 4, 2, 1, dtype=torch.float32)
        _forward_and_gradients(f"groups {layout}", x, weight, layout, groups=3)


def check_prologues_with_groups():
    from fastcnn.triton_kernels.conv_bn_act import launch_conv_bn_act

    for layout, groups in (("channels_last", 3), ("nchw", 3), ("channels_last", 12)):
        x = arrange(draw(2, 12, 4, 5, dtype=torch.float32), layout)
        weight, gate, scale, shift = draw(24, 12 // groups, 3, 3, dtype=torch.float32), *torch.rand(3, 12).unbind()
        geometry = (1, 1), (1, 1, 1, 1), (1, 1), groups
        got = launch_conv_bn_act(x, weight, *(None,) * 6, *geometry, 0.0, "identity", gate=torch.stack((gate, scale)))
        given = x.double() * torch.stack((gate, scale)).double()[:, :, None, None]
        wanted = exact.convolution(given, weight.double(), None, 1, 1, 1, groups)
        assert_close_fp64(got, wanted, reduction=108, magnitude=20.0, label=f"gate, {groups} groups {layout}")
        got = launch_conv_bn_act(
            x, weight, *(None,) * 6, *geometry, 0.0, "identity", pre_scale=scale, pre_shift=shift
        )  # fmt: skip
        given = (x.double() * scale.double().view(1, -1, 1, 1) + shift.double().view(1, -1, 1, 1)).clamp(min=0)
        wanted = exact.convolution(given, weight.double(), None, 1, 1, 1, groups)
        assert_close_fp64(got, wanted, reduction=108, magnitude=20.0, label=f"shift, {groups} groups {layout}")


def check_paddings():
    """TensorFlow's SAME puts the odd pixel right and to the bottom; four different sides."""
    for layout in ("channels_last", "nchw"):
        x = draw(1, 5, 6, 8, dtype=torch.float32)
        for kernel, stride, padding in (((3, 3), 2, "same"), ((2, 4), 1, "same"), ((4, 3), 1, (0, 1, 3, 2))):
            weight = draw(4, 5, *kernel, dtype=torch.float32)
            _forward_and_gradients(f"{kernel} {padding} {layout}", x, weight, layout, stride=stride, padding=padding)


def check_gradient_of_a_stride():
    for layout in ("channels_last", "nchw"):
        x, weight = draw(1, 6, 7, 9, dtype=torch.float32), draw(5, 6, 3, 3, dtype=torch.float32)
        _forward_and_gradients(f"stride {layout}", x, weight, layout, stride=(2, 3), padding=1)


def check_what_the_launcher_is_given():
    from fastcnn.triton_kernels.conv_bn_act import launch_conv_bn_act

    x, weight, vector = torch.zeros(2, 4, 3, 3), torch.ones(6, 4, 1, 1), torch.zeros(4)
    plain = (x, weight, *(None,) * 6, (1, 1), (0, 0, 0, 0), (1, 1), 1, 0.0, "identity")
    for wrong, message in (
        ({"out": torch.zeros(2, 5, 3, 3)}, r"out must be \[2, 6, 3, 3\], got \[2, 5, 3, 3\]"),
        ({"out": torch.zeros(2, 3, 3, 6).permute(0, 3, 2, 1)}, "out must be a map or a channel slice of one"),
        ({"gate": torch.zeros(4, 2)}, r"gate must be \[2, 4\], got \[4, 2\]"),
        ({"pre_scale": vector, "pre_shift": vector[:3]}, r"pre_shift must be \[4\], got \[3\]"),
        ({"pre_scale": vector}, "pre_shift must be given too, got None"),
        ({"pre_shift": vector}, "pre_scale must be given too, got None"),
    ):
        with pytest.raises(ValueError, match=f"conv_bn_act: {message}"):
            launch_conv_bn_act(*plain, **wrong)


def check_empty():
    x = torch.zeros(0, 4, 3, 3, requires_grad=True)
    for kernel in (1, 3):
        weight = torch.ones(2, 4, kernel, kernel, requires_grad=True)
        with fastcnn.use_backend("triton"):
            y = fastcnn.ops.conv_bn_act(x, weight, activation="relu")
            grads = torch.autograd.grad(y.sum(), (x, weight))
        assert y.shape == (0, 2, 4 - kernel, 4 - kernel)
        assert grads[0].shape == x.shape and torch.equal(grads[1], torch.zeros_like(weight))


@needs_triton
def test_in_the_interpreter():
    run_checks(__name__)
