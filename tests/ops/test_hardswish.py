# SPDX-License-Identifier: Apache-2.0
"""hardswish as an op of its own; the kernel shared with the other activations is tested in test_activation.py."""

import pytest
import torch
import torch.nn.functional as F

import fastcnn
from fastcnn.testing import DTYPES, LAYOUTS, arrange, assert_close_fp64, away_from_knots
from tests.cross import exact

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


@dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 33, 7, 5), (1, 1, 1, 1), (0, 3, 4, 4), (3, 113, 1, 1)], ids=str)
def test_value_and_gradient(dtype, layout, shape):
    values = away_from_knots(torch.randn(shape, dtype=torch.float64) * 3, distance=2e-2).to(dtype)
    x = arrange(values, layout).detach().requires_grad_()
    y = fastcnn.ops.hardswish(x)
    assert y.dtype is dtype and y.stride() == torch.empty_like(x).stride()
    x64 = x.detach().double().requires_grad_()
    wanted = exact.activation(x64, "hardswish")
    assert_close_fp64(y, wanted, magnitude=wanted.detach().abs(), label="hardswish")
    grad = torch.randn(shape, dtype=torch.float64).to(dtype)
    (got,) = torch.autograd.grad(y, x, grad)
    (slope,) = torch.autograd.grad(wanted, x64, grad.double())
    assert_close_fp64(got, slope, magnitude=2 * grad.double().abs(), label="gradient")


@dtypes
def test_exactly_zero_below_minus_three_and_the_input_above_three(dtype):
    steps = torch.linspace(0, 4, 101, dtype=torch.float64).to(dtype)
    low, high = -3 - steps, 3 + steps
    assert (fastcnn.ops.hardswish(low) == 0).all()
    assert_close_fp64(fastcnn.ops.hardswish(high), high.double(), magnitude=high.double().abs() / 4, label="above 3")


def test_the_slope_at_the_knots_is_that_of_torch():
    x = torch.tensor([-3.0, 3.0])
    slopes = []
    for function in (fastcnn.ops.hardswish, F.hardswish):
        leaf = x.clone().requires_grad_()
        slopes.append(torch.autograd.grad(function(leaf).sum(), leaf)[0])
    assert slopes[0].tolist() == slopes[1].tolist()


def test_gradcheck_twice():
    x = away_from_knots(torch.randn(4, 5, dtype=torch.float64) * 3).requires_grad_()
    assert torch.autograd.gradcheck(fastcnn.ops.hardswish, x)
    assert torch.autograd.gradgradcheck(fastcnn.ops.hardswish, x)


def test_a_gradient_that_is_expanded():
    x = (torch.randn(2, 3, 4, 5) * 3).requires_grad_()
    fastcnn.ops.hardswish(x).sum().backward()
    assert_close_fp64(
        x.grad, torch.func.grad(lambda t: exact.activation(t, "hardswish").sum())(x.detach().double()), magnitude=1.0
    )


@pytest.mark.parametrize(
    "x, words",
    [
        (torch.ones(3, dtype=torch.int64), "got int64"),
        (torch.eye(2).to_sparse(), "got a sparse_coo"),
        (3.0, "got float"),
    ],
    ids=["int", "sparse", "number"],
)
def test_a_wrong_input_is_named(x, words):
    with pytest.raises(TypeError, match=f"^hardswish: x must be .*{words}"):
        fastcnn.ops.hardswish(x)


def test_the_backward_op_has_no_derivative_of_its_own():
    with pytest.raises(RuntimeError, match="hardswish_backward.*create_graph"):
        torch.ops.fastcnn.hardswish_backward(torch.ones(3, requires_grad=True), torch.ones(3)).sum().backward()
