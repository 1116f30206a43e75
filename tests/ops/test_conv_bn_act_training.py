# SPDX-License-Identifier: Apache-2.0
"""conv_bn_act with gradients: training mode, running statistics, eval gradients, second derivatives, opcheck."""

import pytest
import torch
import torch.nn.functional as F

import fastcnn
from fastcnn.ops import conv_bn_act
from fastcnn.testing import Case, arrange, assert_close_fp64, away_from_knots
from tests.cross import exact
from tests.ops.test_conv_bn_act import CASES, NO_PAD, bn_vectors

SMALL = tuple(c for c in CASES if c.N and c.C < 600) + (
    Case("two-values", 2, 9, 1, 1, 5, (1, 1), padding=NO_PAD),
    Case("slices", 2, 6, 60, 61, 20, (1, 1), padding=NO_PAD),
    Case("slices-many-images", 9, 21, 30, 31, 7, (1, 1), padding=NO_PAD),
)
cases = pytest.mark.parametrize("case", SMALL, ids=lambda c: c.name)
layouts = pytest.mark.parametrize("layout", ["nchw", "channels_last"])
modes = pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])


def composite(x, weight, gamma, beta, mean, var, bias, residual, case, training, momentum, eps, activation):
    """The same in torch's own convolution and batch norm."""
    padding = exact.four_paddings(case.padding, x.shape[2:], case.kernel, case.stride, case.dilation)
    z = F.conv2d(F.pad(x, padding), weight, bias, case.stride, 0, case.dilation, case.groups)
    y = F.batch_norm(z, mean, var, gamma, beta, training, momentum, eps)
    return exact.activation(y if residual is None else y + residual, activation)


def inputs(case, dtype, layout, with_bias, with_residual):
    x, weight = arrange(case.x(dtype), layout), case.weight(dtype) / case.reduction**0.5
    gamma, beta, mean, var = bn_vectors(case.out, dtype)
    bias = torch.randn(case.out).to(dtype) if with_bias else None
    shape = exact.convolution(x, weight, None, case.stride, case.padding, case.dilation, case.groups).shape
    residual = arrange(torch.randn(shape).to(dtype), layout) if with_residual else None
    leaves = [t.requires_grad_() for t in (x, weight, gamma, beta, bias, residual) if t is not None]
    return (x, weight, gamma, beta, mean, var, bias, residual), leaves, torch.randn(shape).to(dtype)


def both(case, dtype, layout, training, activation, with_bias, with_residual):
    arguments, leaves, grad = inputs(case, dtype, layout, with_bias, with_residual)
    mean, var = (t.clone() for t in arguments[4:6])
    y = conv_bn_act(*arguments, case.stride, case.padding, case.dilation, case.groups, training, 0.3, 1e-3, activation)
    got = torch.autograd.grad(y, leaves, grad)
    wanted_y = composite(*arguments[:4], mean, var, *arguments[6:], case, training, 0.3, 1e-3, activation)
    wanted = torch.autograd.grad(wanted_y, leaves, grad)
    return (y, *arguments[4:6], *got), (wanted_y, mean, var, *wanted)


@cases
@layouts
@modes
@pytest.mark.parametrize(
    ("activation", "with_bias", "with_residual"),
    [("hardswish", True, True), ("relu", False, False), ("identity", False, True)],
)
def test_output_statistics_and_gradients_against_torch_in_float64(
    case, layout, training, activation, with_bias, with_residual
):
    if training and case.N * case.H * case.W == 1:
        pytest.skip("one value per channel has no variance")
    ours, theirs = both(case, torch.float64, layout, training, activation, with_bias, with_residual)
    for i, (got, wanted) in enumerate(zip(ours, theirs, strict=True)):
        if training and with_bias and i == 7:  # exactly 0 by the formula; torch returns rounding noise
            assert not got.any()
            continue
        scale = max(wanted.abs().max().item(), 1e-3)
        assert (got - wanted).abs().max().item() <= 1e-10 * scale, f"result {i}"
        assert got.shape == wanted.shape


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"]
)
@layouts
@modes
@pytest.mark.parametrize("index", [4, 7, 12, 13, 14, 17], ids=lambda i: SMALL[i].name)
def test_gradients_in_low_precision_are_as_good_as_torchs(index, dtype, layout, training):
    case = SMALL[index]
    arguments, leaves, grad = inputs(case, dtype, layout, False, True)
    settings = (case, training, 0.3, 1e-3, "silu")
    y = conv_bn_act(*arguments, case.stride, case.padding, case.dilation, case.groups, training, 0.3, 1e-3, "silu")
    got = torch.autograd.grad(y, leaves, grad)
    rival = torch.autograd.grad(
        composite(*[None if a is None else a.clone() for a in arguments], *settings), leaves, grad
    )
    wide = [None if a is None else a.detach().double() for a in arguments]
    wide_leaves = [t.requires_grad_() for i, t in enumerate(wide) if t is not None and i not in (4, 5)]
    wanted = torch.autograd.grad(composite(*wide, *settings), wide_leaves, grad.double())
    for i, (g, w, r) in enumerate(zip(got, wanted, rival, strict=True)):
        error, rivals = ((t.double() - w).abs().max().item() / w.abs().max().item() for t in (g, r))
        assert g.dtype is dtype and error <= max(
            {torch.float32: 1e-4}.get(dtype, 2 * torch.finfo(dtype).eps), 5 * rivals
        ), f"gradient {i}: {error}"


def test_weight_gradient_of_a_large_map_is_accurate():
    for layout in ("nchw", "channels_last"):
        x, weight = arrange(torch.randn(4, 24, 96, 96) + 1, layout), torch.randn(16, 24, 1, 1, requires_grad=True)
        grad = arrange(torch.randn(4, 16, 96, 96) + 1, layout)
        (got,) = torch.autograd.grad(conv_bn_act(x, weight), weight, grad)
        (rival,) = torch.autograd.grad(F.conv2d(x, weight), weight, grad)
        wanted = torch.einsum("nohw,nchw->oc", grad.double(), x.double())[:, :, None, None]
        assert_close_fp64(got, wanted, reduction=x.numel() // 24, rival=rival)


@modes
@pytest.mark.parametrize(
    "case",
    [
        Case("p", 2, 4, 3, 3, 5, (1, 1), padding=NO_PAD),
        Case("s", 1, 4, 4, 3, 3, (1, 1), (2, 2), NO_PAD),
        Case("d", 2, 3, 5, 4, 6, groups=3),
        Case("g", 1, 4, 5, 5, 4, (3, 2), (2, 1), "same", groups=2),
    ],
    ids=lambda c: c.name,
)
def test_first_and_second_derivatives_numerically(case, training):
    arguments, leaves, _ = inputs(case, torch.float64, "channels_last", True, True)
    mean, var = arguments[4:6]

    def run(x, weight, gamma, beta, bias, residual):
        statistics = (mean.clone(), var.clone())
        return conv_bn_act(
            x,
            weight,
            gamma,
            beta,
            *statistics,
            bias,
            residual,
            case.stride,
            case.padding,
            case.dilation,
            case.groups,
            training,
            eps=1e-2,
            activation="sigmoid",
        )

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@layouts
def test_gradients_without_batch_norm(layout):
    case = Case("p", 2, 21, 5, 6, 18, (1, 1), padding=NO_PAD)
    for activation in ("identity", "hardsigmoid"):
        x, weight, bias = (
            arrange(case.x(torch.float64), layout).requires_grad_(),
            case.weight(torch.float64).requires_grad_(),
            torch.randn(18, dtype=torch.float64, requires_grad=True),
        )
        residual = away_from_knots(torch.randn(2, 18, 5, 6, dtype=torch.float64)).requires_grad_()
        leaves, grad = (x, weight, bias, residual), torch.randn(2, 18, 5, 6, dtype=torch.float64)
        got = torch.autograd.grad(
            conv_bn_act(x, weight, bias=bias, residual=residual, activation=activation), leaves, grad
        )
        wanted = torch.autograd.grad(exact.activation(F.conv2d(x, weight, bias) + residual, activation), leaves, grad)
        for g, w in zip(got, wanted, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-10)
            assert g.data_ptr() != grad.data_ptr()


def test_each_gradient_alone_equals_the_same_among_all():
    case = Case("p", 2, 9, 4, 5, 12, (1, 1), padding=NO_PAD)
    for training in (True, False):
        for activation in ("relu", "identity"):
            arguments, leaves, grad = inputs(case, torch.float64, "nchw", True, True)
            results = []
            for wanted in (leaves, *([leaf] for leaf in leaves)):
                for leaf in leaves:
                    leaf.requires_grad_(any(leaf is w for w in wanted))
                y = conv_bn_act(
                    *arguments[:4],
                    *(t.clone() for t in arguments[4:6]),
                    *arguments[6:],
                    training=training,
                    activation=activation,
                )
                results.append(torch.autograd.grad(y, wanted, grad))
            for whole, alone in zip(results[0], results[1:], strict=True):
                torch.testing.assert_close(whole, alone[0], rtol=1e-12, atol=1e-12)


def test_running_statistics():
    x, weight = torch.randn(3, 8, 4, 4), torch.randn(6, 8, 1, 1)
    z = F.conv2d(x, weight).double()
    for dtype, momentum in ((torch.float32, 0.1), (torch.float32, 0.0), (torch.float32, 1.0)):
        mean, var = torch.randn(6, dtype=dtype), torch.rand(6, dtype=dtype)
        wanted = exact.running(z, mean.double(), var.double(), momentum)
        conv_bn_act(x, weight, None, None, mean, var, training=True, momentum=momentum)
        for got, exact_value in zip((mean, var), wanted, strict=True):
            torch.testing.assert_close(got, exact_value.to(dtype), rtol=1e-5, atol=1e-6)
    y = conv_bn_act(x, weight, training=True)  # no statistics are tracked
    torch.testing.assert_close(y, F.batch_norm(z, None, None, training=True).float(), rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        conv_bn_act(x, weight, None, None, mean, var, training=True, momentum=1.0)
    assert not mean.requires_grad


def test_an_empty_batch_leaves_the_running_statistics():
    mean, var = torch.randn(6), torch.rand(6)
    before = mean.clone(), var.clone()
    x = torch.zeros(0, 8, 4, 4, requires_grad=True)
    weight = torch.randn(6, 8, 1, 1, requires_grad=True)
    y = conv_bn_act(x, weight, torch.ones(6), torch.zeros(6), mean, var, training=True)
    y.sum().backward()
    assert y.shape == (0, 6, 4, 4) and x.grad.shape == x.shape and not weight.grad.any()
    assert torch.equal(mean, before[0]) and torch.equal(var, before[1])


def test_autocast_updates_float32_statistics_and_returns_float32_gradients():
    leaves = [torch.randn(2, 16, 6, 6), torch.randn(24, 16, 1, 1), torch.rand(24), torch.rand(24)]
    x, weight, gamma, beta = (t.requires_grad_() for t in leaves)
    mean, var = torch.zeros(24), torch.ones(24)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv_bn_act(x, weight, gamma, beta, mean, var, training=True, activation="hardswish")
    y.float().square().sum().backward()
    z = F.conv2d(x.bfloat16(), weight.bfloat16()).double()
    wanted = exact.running(z, torch.zeros(24).double(), torch.ones(24).double(), 0.1)
    assert mean.dtype is torch.float32 and y.dtype is torch.bfloat16
    torch.testing.assert_close(mean.double(), wanted[0].detach(), rtol=2e-2, atol=2e-3)
    torch.testing.assert_close(var.double(), wanted[1].detach(), rtol=2e-2, atol=2e-3)
    assert all(t.grad.dtype is torch.float32 for t in leaves)


@layouts
def test_the_same_gradient_bits_for_any_number_of_threads(layout):
    threads = torch.get_num_threads()
    x, weight = (
        arrange(torch.randn(3, 40, 44, 44), layout).requires_grad_(),
        torch.randn(56, 40, 1, 1, requires_grad=True),
    )
    grad, found = torch.randn(3, 56, 44, 44), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(
                torch.autograd.grad(conv_bn_act(x, weight, training=True, activation="relu"), (x, weight), grad)
            )
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@modes
@pytest.mark.parametrize("kernel", [1, 3])
def test_opcheck(training, kernel):
    x = arrange(torch.randn(2, 6, 5, 5), "channels_last").requires_grad_()
    weight, gamma, beta = (
        torch.randn(8, 6, kernel, kernel, requires_grad=True),
        torch.rand(8, requires_grad=True),
        torch.rand(8, requires_grad=True),
    )
    op = torch.ops.fastcnn.conv_bn_act_train if training else torch.ops.fastcnn.conv_bn_act
    rates = (0.1, 1e-3) if training else (1e-3,)
    mean, var, residual = torch.zeros(8), torch.ones(8), torch.randn(2, 8, 5, 5)
    p = kernel // 2
    torch.library.opcheck(
        op.default, (x, weight, None, gamma, beta, mean, var, residual, [1, 1], [p, p, p, p], [1, 1], 1, *rates, "silu")
    )


def test_compiled_with_a_dynamic_batch():
    def step(x, weight, mean, var):
        return fastcnn.ops.conv_bn_act(
            x, weight, None, None, mean, var, padding="same", stride=2, training=True, activation="relu"
        )

    compiled = torch.compile(step, backend="aot_eager", dynamic=True, fullgraph=True)
    for n in (2, 3):
        x, weight = torch.randn(n, 3, 9, 8), torch.randn(4, 3, 3, 3)
        statistics = [torch.zeros(4), torch.ones(4)], [torch.zeros(4), torch.ones(4)]
        torch.testing.assert_close(compiled(x, weight, *statistics[0]), step(x, weight, *statistics[1]))
        torch.testing.assert_close(statistics[0], statistics[1])
