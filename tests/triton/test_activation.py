# SPDX-License-Identifier: Apache-2.0
"""Every activation in Triton's interpreter, against float64 and torch's own choices at knots, NaN and infinity."""

import itertools

import torch

import fastcnn
from fastcnn.testing import DTYPES, LAYOUTS, arrange, assert_close_fp64, away_from_knots
from tests.cross import exact

from .interpreter import needs_triton, run_checks

# around one program of 1024 elements: within, exactly, one more
SHAPES = ((2, 3, 5, 7), (4, 16, 4, 4), (1, 25, 41, 1), (0, 3, 2, 2))


def check_forward_and_backward():
    for number, (kind, dtype, shape) in enumerate(itertools.product(exact.KINDS, DTYPES, SHAPES)):
        layout = LAYOUTS[number % len(LAYOUTS)]
        values = away_from_knots(torch.randn(shape, dtype=torch.float64) * 3, distance=2e-2).to(dtype)
        grad = torch.randn(shape, dtype=torch.float64).to(dtype)
        x = arrange(values, layout).detach().requires_grad_()
        x64 = values.double().requires_grad_()
        wanted = exact.activation(x64, kind)
        (slope,) = torch.autograd.grad(wanted, x64, grad.double())
        with fastcnn.use_backend("triton"):
            y = fastcnn.ops.activation(x, kind)
            (got,) = torch.autograd.grad(y, x, arrange(grad, layout))
        label = f"{kind} {shape} {layout}"
        assert y.dtype is dtype and y.stride() == torch.empty_like(x).stride() == got.stride(), label
        assert_close_fp64(y, wanted, magnitude=wanted.detach().abs(), label=label)
        assert_close_fp64(got, slope, magnitude=2 * grad.double().abs(), label=f"{label}: gradient")


def check_knots_and_special_values():
    nan, inf = float("nan"), float("inf")
    special = torch.tensor([nan, inf, -3.0, 0.0, 3.0, 6.0, -1e30, 1e30])
    for kind in exact.KINDS:
        with fastcnn.use_backend("reference"):
            wanted = fastcnn.ops.activation(special, kind)
            slope = torch.ops.fastcnn.activation_backward(torch.ones(8), special, kind)
        with fastcnn.use_backend("triton"):
            y = fastcnn.ops.activation(special, kind)
            got = torch.ops.fastcnn.activation_backward(torch.ones(8), special, kind)
        same = {"rtol": 1e-6, "atol": 0, "equal_nan": True}
        torch.testing.assert_close(y, wanted, msg=lambda text, kind=kind: f"{kind}: {text}", **same)
        # torch's derivatives differ among themselves at NaN; ours are checked where x is a number
        finite = special.isfinite()
        torch.testing.assert_close(got[finite], slope[finite], msg=lambda text, kind=kind: f"{kind}: {text}", **same)


@needs_triton
def test_in_the_interpreter():
    run_checks(__name__)
