# SPDX-License-Identifier: Apache-2.0
"""conv_bn_act on results beyond the caches: they are streamed, whole lines a row."""

import pytest
import torch

from fastcnn.ops import conv_bn_act
from fastcnn.testing import Case, arrange, assert_close_fp64
from tests.ops.test_conv_bn_act import bn_vectors, exact_eval, layouts, magnitude, pointwise

LARGE = (
    pointwise("1x1", 9, 64, 130, 128, N=1),
    pointwise("1x1-deep", 520, 64, 128, 128, N=1),
    pointwise("1x1-strided", 9, 64, 257, 255, N=1, stride=(2, 2)),
    Case("stem", 1, 3, 258, 256, 64, stride=(2, 2)),
    Case("stem-residual", 1, 2, 160, 144, 48),
)


@pytest.mark.parametrize("case", LARGE, ids=lambda c: c.name)
@pytest.mark.parametrize("activation", ["relu6", "silu"])
@layouts
def test_large_results(case, activation, layout):
    x, weight = arrange(case.x(torch.float32), layout), case.weight(torch.float32) / case.reduction**0.5
    vectors, geometry = bn_vectors(case.out, torch.float32), (case.stride, case.padding)
    wanted = exact_eval(x, weight, vectors, None, torch.zeros(()), case, 1e-5, activation)
    residual = arrange(torch.randn(wanted.shape), layout)
    if case.stride == (1, 1):
        wanted = exact_eval(x, weight, vectors, None, residual, case, 1e-5, activation)
    y = conv_bn_act(x, weight, *vectors, None, residual if case.stride == (1, 1) else None, *geometry, activation=activation)
    assert y.numel() * 4 >= 2**22
    assert_close_fp64(y, wanted, reduction=case.reduction, magnitude=magnitude(x, weight, vectors, None, case, 1e-5))


@layouts
@pytest.mark.parametrize("kernel", [(1, 5), (3, 3)], ids=str)
def test_bfloat16_with_one_column_of_output(kernel, layout):
    """oneDNN's own result holds random values there."""
    case = Case("one-column", 1, 8, 9, 1, 17, kernel, (2, 2), "same")
    x, weight = arrange(case.x(torch.bfloat16), layout), case.weight(torch.bfloat16)
    wide = [t.double().requires_grad_() for t in (x, weight)]
    wanted = conv_bn_act(*wide, stride=2, padding="same")
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight)]
    y = conv_bn_act(*leaves, stride=2, padding="same")
    torch.testing.assert_close(y.double(), wanted, rtol=0.01, atol=0.05)
    grad = torch.randn(y.shape).bfloat16()
    found = torch.autograd.grad(y, leaves, grad)
    for got, want in zip(found, torch.autograd.grad(wanted, wide, grad.double()), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=0.01, atol=0.1)
