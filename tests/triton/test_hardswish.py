# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of h-swish in Triton's interpreter (asked for before Triton is imported), against float64."""

import os
import subprocess
import sys

import pytest

from fastcnn import _triton
from tests.packaging.tools import ROOT

CHECKS = """
import itertools, torch, fastcnn
from fastcnn.testing import DTYPES, LAYOUTS, arrange, assert_close_fp64, away_from_knots

shapes = [(2, 3, 5, 7), (1, 1, 1, 1), (3, 31, 11, 1), (0, 3, 2, 2)]
for dtype, shape, layout in itertools.product(DTYPES, shapes, LAYOUTS):
    values = away_from_knots(torch.randn(shape, dtype=torch.float64) * 3, distance=2e-2).to(dtype)
    grad = torch.randn(shape, dtype=torch.float64).to(dtype)
    x = arrange(values, layout).detach().requires_grad_()
    x64 = values.double().requires_grad_()
    wanted = torch.nn.functional.hardswish(x64)
    (slope,) = torch.autograd.grad(wanted, x64, grad.double())
    with fastcnn.use_backend("triton"):
        y = fastcnn.ops.hardswish(x)
        (got,) = torch.autograd.grad(y, x, arrange(grad, layout))
    label = f"{shape} {layout}"
    assert y.dtype is dtype and y.stride() == torch.empty_like(x).stride() == got.stride(), label
    assert_close_fp64(y, wanted, magnitude=wanted.detach().abs(), label=label)
    assert_close_fp64(got, slope, magnitude=2 * grad.double().abs(), label=f"{label}: gradient")
nan, inf = float("nan"), float("inf")
special = torch.tensor([nan, inf, -3.0, 3.0, 0.0, -1e30])
same = dict(rtol=1e-6, atol=0, equal_nan=True)
with fastcnn.use_backend("triton"):
    y = fastcnn.ops.hardswish(special)
    slope = torch.ops.fastcnn.hardswish_backward(torch.ones(6), special)
torch.testing.assert_close(y, torch.tensor([nan, inf, 0.0, 3.0, 0.0, 0.0]), **same)
torch.testing.assert_close(slope, torch.tensor([nan, 1.0, 0.0, 1.0, 0.5, 0.0]), **same)
"""


@pytest.mark.skipif(_triton.why_not() is not None, reason=f"Triton is not usable: {_triton.why_not()}")
def test_forward_and_backward_in_the_interpreter():
    env = {
        **os.environ,
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", CHECKS], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
