# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of h-swish on the emulator: values, tails, misaligned tensors, thread orders, traffic."""

import pytest
import torch

from fastcnn.testing import DTYPES, Guarded, assert_close_fp64
from tests.emulator.activation import Walled, assert_moves_every_byte_once, filled, placed

KERNELS = "hardswish"


def run(kernels, x, grad=None, y=None):
    y = placed(torch.full_like(x, float("nan"))) if y is None else y
    kernels.hardswish(str(x.dtype), 0 if grad is None else grad.data_ptr(), x.data_ptr(), y.data_ptr(), x.numel())
    return y


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 7, 8, 255, 256 * 8, 256 * 8 + 5])
def test_values(kernels, dtype, count, order):
    kernels.set_order(order, count)
    x, grad = filled(count, dtype), placed(torch.randn(count).to(dtype), 0)
    x64 = x.double().requires_grad_()
    wanted = torch.nn.functional.hardswish(x64)
    (slope,) = torch.autograd.grad(wanted, x64, grad.double())
    assert_close_fp64(run(kernels, x), wanted, magnitude=wanted.detach().abs())
    assert_close_fp64(run(kernels, x, grad), slope, magnitude=2 * grad.double().abs())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("which", ["x", "grad", "y"])
def test_misaligned_tensors_take_the_scalar_path(kernels, dtype, which):
    offset = {name: int(name == which) for name in ("x", "grad", "y")}
    x, grad = filled(100, dtype, offset["x"]), placed(torch.randn(100).to(dtype), offset["grad"])
    around = Guarded(placed(torch.zeros(100, dtype=dtype), offset["y"]))
    wanted = torch.ops.aten.hardswish_backward(grad.double(), x.double())
    got = run(kernels, x, grad, around.x if which != "y" else placed(torch.zeros(100, dtype=dtype), 1))
    assert_close_fp64(got, wanted, magnitude=2 * grad.double().abs())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_else_is_written(kernels, dtype):
    walled = Walled(torch.empty(77, dtype=dtype))
    run(kernels, filled(77, dtype), y=walled.y)
    walled.check()


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_every_byte_moves_once_in_full_sectors(kernels, backward):
    x, grad, y = (placed(torch.randn(4096 * 3).half(), 0) for _ in range(3))
    buffers = {"x": x, "y": y, **({"grad": grad} if backward else {})}
    assert_moves_every_byte_once(kernels, buffers, lambda: run(kernels, x, grad if backward else None, y))
