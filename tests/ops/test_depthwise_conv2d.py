# SPDX-License-Identifier: Apache-2.0
"""depthwise_conv2d: forward and gradients against float64 on awkward shapes, memory, autocast, errors, every build."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from fastcnn.ops import depthwise_conv2d
from fastcnn.testing import (
    DEPTHWISE_CASES,
    DTYPES,
    LAYOUTS,
    Case,
    Guarded,
    arrange,
    assert_close_fp64,
    assert_format,
    away_from_knots,
)
from tests import instruction_sets
from tests.cross import exact


def depthwise(name: str, C: int, H: int, W: int, k: int | tuple, N: int = 1, m: int = 1, **more) -> Case:
    return Case(name, N, C, H, W, C * m, (k, k) if isinstance(k, int) else k, groups=C, **more)


# Beside the shared cases: both sides of every tile (2 rows x 4 columns; rows in groups of 4; 6144 elements a plane).
CASES = (
    *DEPTHWISE_CASES,
    depthwise("wide-3x3", 17, 9, 70, 3),
    depthwise("wide-3x3-s2", 48, 31, 67, 3, stride=(2, 2)),
    depthwise("wide-5x5", 20, 13, 50, 5, padding=(2, 2, 2, 2)),
    depthwise("wide-5x5-s2", 16, 22, 61, 5, stride=(2, 2), padding=(1, 2, 1, 2)),
    depthwise("7x7-s1", 33, 11, 10, 7, padding=(3, 3, 3, 3)),
    depthwise("7x7-s2-same", 32, 13, 12, 7, stride=(2, 2), padding="same"),
    depthwise("tall-blocks", 3, 203, 41, 3),
    depthwise("many-channels", 530, 5, 6, 3),
    depthwise("no-padding-s2", 35, 12, 13, 3, stride=(2, 2), padding=(0, 0, 0, 0)),
    depthwise("odd-left-padding-s2", 18, 9, 18, 5, stride=(2, 2), padding=(3, 0, 0, 3)),
    depthwise("padding-exceeds-kernel", 16, 3, 3, 3, padding=(4, 5, 6, 7)),
    depthwise("short-than-kernel", 9, 2, 3, 5, padding=(2, 2, 2, 2)),
    depthwise("multiplier-2-wide", 16, 9, 33, 3, m=2),
    depthwise("multiplier-4-s2", 3, 8, 8, 5, m=4, stride=(2, 2), padding=(2, 2, 2, 2)),
    depthwise("dilated-stride", 21, 17, 16, 3, stride=(2, 3), dilation=(3, 2), padding=(2, 1, 3, 0)),
    depthwise("stride-beyond-kernel", 16, 12, 13, 2, stride=(4, 7), padding=(0, 0, 0, 0)),
    depthwise("absurd-stride", 5, 2, 3, 3, stride=(10**6, 10**6), padding=(10**6, 10**6 - 1, 10**6, 10**6)),
)
BY_NAME = {case.name: case for case in CASES}
cases = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
formats = pytest.mark.parametrize("layout", ["nchw", "channels_last"])


def sum_of(case, x, weight, bias=None, residual=None):
    """The pre-activation, differentiable and in the dtype of its arguments."""
    if case.name == "absurd-stride":  # only the last of 2 x 2 windows meets x
        y = F.pad((x * weight[:, 0, :2, :3]).sum((2, 3), keepdim=True), (1, 0, 1, 0))
        y = y if bias is None else y + bias.view(1, -1, 1, 1)
    else:
        y = exact.convolution(x, weight, bias, case.stride, case.padding, case.dilation, case.groups)
    return y if residual is None else y + residual


def run(case, x, weight, bias=None, residual=None, activation="identity"):
    return depthwise_conv2d(x, weight, bias, case.stride, case.padding, case.dilation, activation, residual)


def torch_sum(case, x, weight, bias, residual):
    left, right, top, bottom = exact.four_paddings(case.padding, x.shape[2:], case.kernel, case.stride, case.dilation)
    return (
        F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, case.stride, 0, case.dilation, case.groups)
        + residual
    )


@cases
@dtypes
@formats
def test_forward_against_float64(case, dtype, layout):
    x, weight, bias = arrange(case.x(dtype), layout), case.weight(dtype), torch.randn(case.out).to(dtype)
    residual = arrange(torch.randn(sum_of(case, x, weight).shape).to(dtype), layout)
    wide = [t.double() for t in (x, weight, bias, residual)]
    magnitude = sum_of(case, *(t.abs() for t in wide))
    for activation, inputs in (("identity", 2), ("relu6", 3), ("hardswish", 4), ("silu", 4)):
        y = run(case, *(x, weight, bias, residual)[:inputs], activation=activation)
        assert y.dtype is dtype
        assert_format(y, x)
        wanted = exact.activation(sum_of(case, *wide[:inputs]), activation)
        assert_close_fp64(y, wanted, reduction=case.reduction, magnitude=magnitude, label=activation)


@cases
@dtypes
@formats
def test_gradients_against_float64(case, dtype, layout):
    inputs = [arrange(case.x(dtype), layout), case.weight(dtype), torch.randn(case.out).to(dtype)]
    inputs.append(arrange(torch.randn(sum_of(case, *inputs[:2]).shape).to(dtype), layout))
    ours, wide = (
        [t.detach().clone().requires_grad_() for t in group] for group in (inputs, [t.double() for t in inputs])
    )
    y = run(case, *ours)
    grad = torch.randn(y.shape).to(dtype)
    got = torch.autograd.grad(y, ours, grad)
    wanted = torch.autograd.grad(sum_of(case, *wide), wide, grad.double())
    sizes = torch.autograd.grad(
        sum_of(case, *(t.abs() for t in wide)), wide, grad.double().abs()
    )  # the same sums over absolute values, up to signs
    terms = grad.numel() // case.out
    for name, a, b, size, count in zip(
        ("x", "weight", "bias", "residual"), got, wanted, sizes, (case.reduction * case.out // case.C, terms, terms, 1)
    ):
        assert a.dtype is dtype
        assert_close_fp64(a, b, reduction=count, magnitude=size.abs(), label=f"grad of {name}")
    assert_format(got[0], inputs[0], "grad of x")
    again = torch.autograd.grad(run(case, *ours), ours, grad)
    assert all(torch.equal(a, b) for a, b in zip(got, again)), "two runs differ"


@pytest.mark.parametrize("activation", ["relu", "hardswish", "silu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@formats
def test_gradients_through_an_activation(layout, dtype, activation):
    case = BY_NAME["mobile-5x5-s2"]
    inputs = [arrange(case.x(dtype), layout), case.weight(dtype) / 5, torch.randn(case.out).to(dtype)]
    z = sum_of(case, *(t.double() for t in inputs))
    inputs.append((away_from_knots(z, distance=0.05) - z).to(dtype))
    ours, rival, wide = ([t.detach().to(d).requires_grad_() for t in inputs] for d in (dtype, dtype, torch.float64))
    grad = torch.randn(z.shape).to(dtype)
    got = torch.autograd.grad(run(case, *ours, activation=activation), ours, grad)
    theirs = torch.autograd.grad(exact.activation(torch_sum(case, *rival), activation), rival, grad)
    wanted = torch.autograd.grad(exact.activation(sum_of(case, *wide), activation), wide, grad.double())
    for a, t, b in zip(got, theirs, wanted):
        assert_close_fp64(a, b, reduction=case.reduction, rival=t)


@pytest.mark.parametrize(
    "case", [BY_NAME[n] for n in ("even-4x6", "same-s2-even", "multiplier-2")], ids=lambda c: c.name
)
@formats
def test_gradcheck(case, layout):
    case = case._replace(N=1, C=3, groups=3, out=3 * (case.out // case.C), H=6, W=5)
    x, weight, bias = case.x(torch.float64), case.weight(torch.float64), torch.randn(case.out).double()
    residual = torch.randn(sum_of(case, x, weight).shape).double()
    inputs = [arrange(x, layout), weight, bias, residual]
    for t in inputs:
        t.requires_grad_()
    for activation in ("identity", "silu"):
        torch.autograd.gradcheck(lambda *a: run(case, *a, activation=activation), inputs)
        torch.autograd.gradgradcheck(lambda *a: run(case, *a, activation=activation), inputs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["mobile-5x5-s2", "even-4x6", "multiplier-2", "one-pixel", "wide-3x3"])
def test_layouts_expansion_and_surroundings(name, layout):
    case = BY_NAME[name]
    x, weight, bias = case.x(), case.weight(), torch.randn(case.out)
    residual = torch.randn(sum_of(case, x, weight).shape)
    guards = [Guarded(arrange(t, layout if t.dim() == 4 else "sliced")) for t in (x, weight, bias, residual)]
    wide = [t.double() for t in (x, weight, bias, residual)]
    magnitude = sum_of(case, *(t.abs() for t in wide))
    y = run(case, *(g.x for g in guards))
    for guard in guards:
        guard.check()
    assert_close_fp64(y, sum_of(case, *wide), reduction=case.reduction, magnitude=magnitude)
    assert_format(y, arrange(x, layout))
    expanded = run(case, x[:1].expand(3, -1, -1, -1), weight[:, :, :1, :1].expand_as(weight))
    wanted = sum_of(case, wide[0][:1].expand(3, -1, -1, -1), wide[1][:, :, :1, :1].expand_as(weight))
    assert_close_fp64(expanded, wanted, reduction=case.reduction, magnitude=magnitude.max())


def test_nan_and_inf_reach_their_own_windows_only():
    x = torch.zeros(1, 16, 9, 33)
    x[0, 3, 4, 20], x[0, 5, 0, 0] = torch.nan, torch.inf
    for layout in ("nchw", "channels_last"):
        y = depthwise_conv2d(arrange(x, layout), torch.ones(16, 1, 3, 3), padding=1, activation="relu6")
        wanted = torch.zeros_like(y)
        wanted[0, 3, 3:6, 19:22], wanted[0, 5, :2, :2] = torch.nan, 6.0
        torch.testing.assert_close(y, wanted, equal_nan=True)


def test_without_a_batch():
    x, weight = torch.randn(6, 7, 8), torch.randn(6, 1, 3, 3)
    residual = torch.randn(6, 7, 8)
    y = depthwise_conv2d(x, weight, padding=1, residual=residual)
    torch.testing.assert_close(y, F.conv2d(x, weight, padding=1, groups=6) + residual)


def test_shifted_borders_and_swapped_kernels_show():
    case = BY_NAME["even-4x6"]
    x, weight = case.x(torch.float64), case.weight(torch.float64)
    wanted, (left, right, top, bottom) = sum_of(case, x, weight), case.padding
    mutants = [torch.zeros_like(wanted), run(case._replace(padding=(left - 1, right + 1, top, bottom)), x, weight)]
    mutants.append(run(case._replace(padding=(left, right, top + 1, bottom - 1)), x, weight))
    mutants.append(run(case, x, weight.flip(3)))
    for mutant in mutants:
        with pytest.raises(AssertionError, match="differ"):
            assert_close_fp64(mutant, wanted, reduction=case.reduction)


def test_autocast():
    x, weight, bias = (
        torch.randn(1, 8, 6, 6),
        torch.randn(8, 1, 3, 3, requires_grad=True),
        torch.randn(8, requires_grad=True),
    )
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise_conv2d(x, weight, bias, residual=torch.randn(1, 8, 4, 4), activation="relu")
        mixed = depthwise_conv2d(x.bfloat16(), weight)
    assert y.dtype is mixed.dtype is torch.bfloat16
    y.sum().backward()
    assert weight.grad.dtype is bias.grad.dtype is torch.float32


def test_half_types_take_a_float_bias():
    x, weight, bias = torch.randn(1, 8, 6, 6).half(), torch.randn(8, 1, 3, 3).half(), torch.full((8,), 2.0**-13)
    y = depthwise_conv2d(x * 0, weight, bias.requires_grad_())
    assert y.dtype is torch.float16 and bool((y == 2.0**-13).all())
    assert torch.autograd.grad(y.sum(), bias)[0].dtype is torch.float32


def test_flops():
    x, weight = torch.randn(2, 8, 6, 6, requires_grad=True), torch.randn(8, 1, 3, 3, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        y = depthwise_conv2d(x, weight, padding=1)
    assert counter.get_total_flops() == 2 * y.numel() * 9
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * 2 * y.numel() * 9


X, WEIGHT = torch.randn(2, 4, 6, 6), torch.randn(4, 1, 3, 3)


@pytest.mark.parametrize(("changes", "error", "text"), [
    ({"x": X[0, 0]}, ValueError, r"x must have 4 dimensions \[N, C, H, W\], got \[6, 6\]"),
    ({"x": X.long()}, TypeError, "x must be float32, float64, float16 or bfloat16, got int64"),
    ({"x": X.numpy()}, TypeError, "x must be a Tensor, got ndarray"),
    ({"x": X[:, :0]}, ValueError, r"x must have at least one channel, got \[2, 0, 6, 6\]"),
    ({"weight": WEIGHT.double()}, TypeError, "weight must have the dtype of x, float32, got float64"),
    ({"weight": WEIGHT.to("meta")}, ValueError, "weight must be on the device of x, cpu, got meta"),
    ({"weight": torch.ones(6, 1, 3, 3)}, ValueError, r"weight must be \[C \* m, .* with C = 4, got \[6, 1, 3, 3\]"),
    ({"weight": torch.ones(4, 2, 3, 3)}, ValueError, r"weight must be \[C \* m, 1, kH, kW\] .* got \[4, 2, 3, 3\]"),
    ({"weight": torch.ones(4, 3, 3)}, ValueError, r"weight must be \[C \* m, 1, kH, kW\] .* got \[4, 3, 3\]"),
    ({"weight": None}, ValueError, r"weight must be \[C \* m, 1, kH, kW\] .* got None"),
    ({"weight": WEIGHT[:, :, :0]}, ValueError, r"weight must have a kernel of at least 1x1, got \[4, 1, 0, 3\]"),
    ({"weight": torch.ones(4, 1, 7, 7)}, ValueError, "weight must fit the padded input: .* 7x7, the padded x 6x6"),
    ({"dilation": 3}, ValueError, "weight must fit the padded input: the dilated kernel is 7x7"),
    ({"bias": torch.ones(5)}, ValueError, r"bias must be \[C \* m\], got \[5\]"),
    ({"bias": torch.ones(4).double()}, TypeError, "bias must have the dtype of x, float32 or float32, got float64"),
    ({"residual": torch.ones(2, 4, 6, 6)}, ValueError, r"residual must be the shape of the output, got \[2, 4, 6, 6\]"),
    ({"residual": torch.ones(2, 4, 4, 4).half()}, TypeError, "residual must have the dtype of x, float32, got float16"),
    ({"stride": 0}, ValueError, "stride must be at least 1 and below 2\\^31, got 0"),
    ({"stride": (1, 2, 3)}, ValueError, r"stride must be an int or two ints \(h, w\), got \(1, 2, 3\)"),
    ({"dilation": (1, -1)}, ValueError, r"dilation must be at least 1 and below 2\^31, got \(1, -1\)"),
    ({"padding": -1}, ValueError, r"padding must be at least 0 and below 2\^31, got -1"),
    ({"padding": 2**31}, ValueError, r"padding must be at least 0 and below 2\^31"),
    ({"padding": "full"}, ValueError, "padding must be numbers, 'same' or 'valid', got 'full'"),
    ({"activation": "gelu"}, ValueError, "activation must be one of identity, .* got 'gelu'"),
])  # fmt: skip
def test_errors_name_the_argument(changes, error, text):
    with pytest.raises(error, match=f"^depthwise_conv2d: {text}"):
        depthwise_conv2d(**{"x": X, "weight": WEIGHT, **changes})


@instruction_sets.each
def test_on_the_other_instruction_sets(isa):
    instruction_sets.rerun(__file__, isa, "float64 and not float16")
