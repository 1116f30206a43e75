# SPDX-License-Identifier: Apache-2.0
"""conv_bn_act in eval: every kind of convolution against float64, formats, memory safety, autocast."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import fastcnn
from fastcnn.ops import conv_bn_act
from fastcnn.testing import DTYPES, LAYOUTS, Case, Guarded, arrange, assert_close_fp64, assert_format
from tests import instruction_sets
from tests.cross import exact

NO_PAD = (0, 0, 0, 0)


def pointwise(name: str, C: int, out: int, H: int = 5, W: int = 9, N: int = 2, **more) -> Case:
    return Case(name, N, C, H, W, out, (1, 1), padding=NO_PAD, **more)


# Channels and pixels on both sides of a vector (4, 8, 16), panel (32, 48, 64) and tile of rows; depth past one slice.
CASES = (
    *(
        pointwise(f"tail-{C}-{out}", C, out)
        for C, out in ((1, 7), (7, 1), (13, 16), (16, 13), (24, 67), (67, 112), (112, 24))
    ),
    pointwise("49-pixels", 40, 100, 7, 7),
    pointwise("one-pixel", 33, 21, 1, 1, N=5),
    pointwise("one-pixel-batch-1", 160, 50, 1, 1, N=1),
    pointwise("deep", 1100, 20, 3, 7),
    pointwise("deep-wide", 700, 130, 7, 7, N=1),
    pointwise("many-pixels", 5, 18, 61, 67, N=1),
    pointwise("blocks", 300, 70, 28, 28, N=1),
    pointwise("strided", 19, 34, 9, 8, stride=(2, 3)),
    pointwise("empty-batch", 8, 6, N=0),
    Case("stem", 2, 3, 17, 15, 16, stride=(2, 2)),
    Case("stem-same", 1, 3, 16, 18, 12, stride=(2, 2), padding="same"),
    # few input channels: rows of several tiles and panels, every way of reading columns, padding wider than the kernel
    Case("stem-wide", 1, 3, 11, 131, 24, stride=(2, 2)),
    Case("stem-7x7", 1, 3, 30, 77, 70, (7, 7), (2, 2), (3, 3, 3, 3)),
    Case("stem-11x11", 1, 3, 47, 51, 10, (11, 11), (4, 4), (2, 2, 2, 2)),
    Case("stem-rows-dilated", 2, 4, 13, 50, 33, (3, 5), (3, 1), (4, 1, 0, 2), (2, 1)),
    Case("stem-columns-dilated", 1, 3, 9, 20, 8, dilation=(1, 2)),
    Case("stem-far-padding", 1, 2, 3, 3, 5, padding=(5, 7, 6, 4)),
    Case("stem-stride-over-kernel", 2, 3, 23, 27, 9, (2, 2), (5, 5), NO_PAD),
    Case("stem-1x1-padded", 1, 2, 4, 5, 6, (1, 1), (1, 2), (1, 3, 2, 0)),
    Case("grouped", 2, 12, 9, 7, 18, groups=3),
    Case("depthwise", 2, 20, 9, 11, 20, groups=20),
    Case("depthwise-s2-same", 2, 9, 10, 10, 9, (5, 5), (2, 2), "same", groups=9),
    Case("multiplier", 1, 6, 8, 8, 12, groups=6),
    Case("row-1x7", 1, 8, 9, 10, 6, (1, 7), padding=(3, 3, 0, 0)),
    Case("asymmetric", 1, 8, 9, 10, 6, (2, 3), padding=(2, 0, 1, 0), dilation=(1, 2)),
    Case("1x1-padded", 1, 8, 5, 5, 6, (1, 1), padding=(1, 1, 1, 1)),
    Case("empty-batch-dense", 0, 4, 6, 6, 8),
)
cases = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
layouts = pytest.mark.parametrize("layout", ["nchw", "channels_last"])


def bn_vectors(channels: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """weight, bias, running_mean, running_var; a gamma of 0 and negative ones among them."""
    weight = torch.randn(channels, dtype=torch.float64)
    weight[0] = 0.0
    return [
        v.to(dtype)
        for v in (
            weight,
            torch.randn(channels).double(),
            torch.randn(channels).double(),
            torch.rand(channels).double() + 0.3,
        )
    ]


def exact_sum(x, weight, bias, case):
    return exact.convolution(
        x.double(),
        weight.double(),
        None if bias is None else bias.double(),
        case.stride,
        case.padding,
        case.dilation,
        case.groups,
    )


def exact_eval(x, weight, vectors, bias, residual, case, eps, activation):
    gamma, beta, mean, var = (v.double().view(1, -1, 1, 1) for v in vectors)
    y = (exact_sum(x, weight, bias, case) - mean) / (var + eps).sqrt() * gamma + beta
    return exact.activation(y if residual is None else y + residual.double(), activation)


def magnitude(x, weight, vectors, bias, case, eps):
    gamma, beta, mean, var = (v.double().view(1, -1, 1, 1) for v in vectors)
    total = exact_sum(x.abs(), weight.abs(), None if bias is None else bias.abs(), case) + mean.abs()
    return total * gamma.abs() / (var + eps).sqrt() + beta.abs() + 1


def torch_eval(x, weight, vectors, bias, residual, case, eps, activation):
    """What a user would write in torch, in the dtype of x."""
    left, right, top, bottom = exact.four_paddings(case.padding, x.shape[2:], case.kernel, case.stride, case.dilation)
    z = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, case.stride, 0, case.dilation, case.groups)
    gamma, beta, mean, var = (v.to(x.dtype) for v in vectors)
    y = F.batch_norm(z, mean, var, gamma, beta, False, 0.0, eps)
    return fastcnn.ops.activation(y if residual is None else y + residual, activation)


@cases
@dtypes
@layouts
def test_eval_against_float64(case, dtype, layout):
    x, weight = arrange(case.x(dtype), layout), case.weight(dtype) / case.reduction**0.5
    for activation, bias, with_residual, float_vectors in (
        ("relu6", False, False, True),
        ("hardswish", True, True, False),
        ("silu", False, True, True),
    ):
        vectors = bn_vectors(case.out, torch.float32 if float_vectors and dtype is not torch.float64 else dtype)
        added = torch.randn(case.out).to(dtype) if bias else None
        shape = exact_sum(x, weight, None, case).shape
        residual = arrange(torch.randn(shape).to(dtype), layout) if with_residual else None
        y = conv_bn_act(
            x,
            weight,
            *vectors,
            added,
            residual,
            case.stride,
            case.padding,
            case.dilation,
            case.groups,
            eps=1e-3,
            activation=activation,
        )
        assert y.dtype is dtype
        assert_format(y, x)
        wanted = exact_eval(x, weight, vectors, added, residual, case, 1e-3, activation)
        rival = torch_eval(x, weight, vectors, added, residual, case, 1e-3, activation)
        assert_close_fp64(
            y,
            wanted,
            reduction=case.reduction,
            magnitude=magnitude(x, weight, vectors, added, case, 1e-3),
            rival=rival,
            label=activation,
        )


@cases
@layouts
def test_without_batch_norm(case, layout):
    x, weight, bias = arrange(case.x(torch.float64), layout), case.weight(torch.float64), torch.randn(case.out).double()
    for added in (None, bias):
        for activation in ("identity", "relu"):
            y = conv_bn_act(
                x,
                weight,
                bias=added,
                stride=case.stride,
                padding=case.padding,
                dilation=case.dilation,
                groups=case.groups,
                activation=activation,
            )
            torch.testing.assert_close(
                y, exact.activation(exact_sum(x, weight, added, case), activation), rtol=1e-11, atol=1e-11
            )
            assert_format(y, x)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("index", [3, 7, 16, 19, 24])
def test_layouts_expansion_and_surroundings(layout, index):
    case = CASES[index]
    x, weight = case.x(), case.weight()
    residual, vectors = torch.randn(exact_sum(x, weight, None, case).shape), bn_vectors(case.out, torch.float32)

    def run(x, weight, vectors, residual):
        return conv_bn_act(
            x,
            weight,
            *vectors,
            None,
            residual,
            case.stride,
            case.padding,
            case.dilation,
            case.groups,
            activation="relu",
        )

    wanted = exact_eval(x, weight, vectors, None, residual, case, 1e-5, "relu")
    guards = [Guarded(arrange(t, layout if t.dim() == 4 else "sliced")) for t in (x, weight, *vectors, residual)]
    y = run(guards[0].x, guards[1].x, [g.x for g in guards[2:6]], guards[6].x)
    for guard in guards:
        guard.check()
    assert_close_fp64(y, wanted, reduction=case.reduction, magnitude=magnitude(x, weight, vectors, None, case, 1e-5))
    assert_format(y, arrange(x, layout))
    expanded = x[:1].expand_as(x) if x.shape[0] else x
    assert_close_fp64(
        run(expanded, weight, vectors, residual),
        exact_eval(expanded, weight, vectors, None, residual, case, 1e-5, "relu"),
        reduction=case.reduction,
        magnitude=magnitude(expanded, weight, vectors, None, case, 1e-5),
    )


@layouts
def test_the_same_bits_every_time_and_for_any_number_of_threads(layout):
    threads = torch.get_num_threads()
    try:
        for C, out, H in ((48, 96, 28), (640, 130, 7)):
            x, weight, residual = (
                arrange(t, layout)
                for t in (torch.randn(2, C, H, H), torch.randn(out, C, 1, 1), torch.randn(2, out, H, H))
            )
            found = []
            for n in (1, 2, 3, 1):
                torch.set_num_threads(n)
                found.append(conv_bn_act(x, weight, *bn_vectors_of_ones(out), None, residual, activation="silu"))
            assert all(torch.equal(found[0], y) for y in found)
    finally:
        torch.set_num_threads(threads)


def bn_vectors_of_ones(channels: int) -> list[torch.Tensor]:
    return [torch.ones(channels), torch.zeros(channels), torch.zeros(channels), torch.ones(channels)]


def test_nan_and_inf_travel_and_stay_in_their_pixel():
    x = torch.randn(1, 20, 6, 6)
    x[0, 3, 2, 2], x[0, 5, 4, 1] = math.nan, math.inf
    for layout in ("nchw", "channels_last"):
        y = conv_bn_act(arrange(x, layout), torch.rand(33, 20, 1, 1), activation="relu6")
        assert y[0, :, 2, 2].isnan().all() and (y[0, :, 4, 1] == 6).all()
        assert y.isnan().sum() == 33


def test_eps_zero_and_parts_of_batch_norm_left_out():
    x, weight = torch.randn(2, 8, 5, 5, dtype=torch.float64), torch.randn(6, 8, 1, 1, dtype=torch.float64)
    gamma, beta, mean, var = bn_vectors(6, torch.float64)
    for g, b in ((None, beta), (gamma, None), (None, None)):
        y = conv_bn_act(x, weight, g, b, mean, var, eps=0.0)
        torch.testing.assert_close(
            y, F.batch_norm(F.conv2d(x, weight), mean, var, g, b, False, 0.0, 0.0), rtol=1e-11, atol=1e-11
        )


def test_autocast_casts_activations_and_leaves_the_vectors():
    x, weight = torch.randn(2, 16, 6, 6), torch.randn(24, 16, 1, 1)
    vectors = bn_vectors(24, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv_bn_act(x, weight, *vectors, activation="relu")
        again = conv_bn_act(y, torch.randn(24, 24, 1, 1), *vectors, residual=y)
    assert y.dtype is again.dtype is torch.bfloat16
    assert torch.equal(y, conv_bn_act(x.bfloat16(), weight.bfloat16(), *vectors, activation="relu"))


def test_flops_are_those_of_the_convolution():
    x, weight = torch.randn(2, 8, 6, 6, requires_grad=True), torch.randn(12, 8, 1, 1, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        conv_bn_act(x, weight, *bn_vectors(12, torch.float32), activation="relu").sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 2 * 12 * 36 * 8


@instruction_sets.each
def test_on_the_other_instruction_sets(isa):
    for part in ("", "_large", "_training"):
        instruction_sets.rerun(__file__.replace(".py", f"{part}.py"), isa, "not other_instruction_sets")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_channel_slice_is_read_in_place(memory_format: torch.memory_format) -> None:
    for dtype, stride in itertools.product((torch.float32, torch.bfloat16), (1, 2)):
        whole, weight = torch.randn(3, 50, 6, 5, dtype=dtype).to(memory_format=memory_format), torch.randn(19, 21, 1, 1, dtype=dtype)
        x = whole[:, 13:34]
        want = fastcnn.ops.conv_bn_act(x.clone(memory_format=memory_format), weight, stride=stride)
        assert torch.equal(fastcnn.ops.conv_bn_act(x, weight, stride=stride), want)
