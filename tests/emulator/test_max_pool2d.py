# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of max_pool2d on the emulator: values, gradients, ties, borders, thread orders, traffic."""

import pytest
import torch
import torch.nn.functional as F

from fastcnn.testing import DTYPES, FORMATS, Guarded, assert_close_fp64
from tests.ops.test_max_pool2d import Window

FULL = 1 << 30  # never reached, so that a thread has one row; with 1 it has four
CASES = {
    "stem": ((1, 16, 14, 14), Window(3, 2, 1)),
    "stem-odd": ((2, 24, 9, 13), Window(3, 2, 1)),
    "vgg": ((2, 19, 6, 8), Window(2)),
    "same": ((1, 8, 7, 9), Window(3, 1, 1)),
    "ceil": ((1, 8, 8, 7), Window(3, 2, 0, ceil_mode=True)),
    "gaps": ((1, 8, 11, 10), Window(2, 4)),
    "oblong": ((2, 7, 9, 6), Window((5, 2), (1, 3), (2, 1))),
    "one-pixel": ((3, 17, 1, 1), Window(1)),
    "whole-plane": ((2, 16, 7, 7), Window(7)),
    "one-channel": ((2, 1, 13, 9), Window(3, 2, 1)),
}
cases = pytest.mark.parametrize(("shape", "window"), CASES.values(), ids=CASES)
layouts = pytest.mark.parametrize("layout", FORMATS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
STEM = Window(3, 2, 1)


@pytest.fixture
def kernels(emulated):
    module = emulated("max_pool2d")
    module.set_order(0, 0)
    return module


def pair(value) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def arguments(x: torch.Tensor, window: Window, layout: str, full: int) -> tuple:
    kernel = pair(window.kernel_size)
    sizes = [*x.shape, *kernel, *pair(window.stride or kernel), *pair(window.padding)]
    return sizes, window.ceil_mode, layout == "channels_last", full


def filled(shape, dtype, layout, values=None) -> torch.Tensor:
    values = torch.randn(shape, dtype=torch.float64) if values is None else values
    return torch.empty(shape, dtype=dtype, memory_format=FORMATS[layout]).copy_(values.to(dtype))


def exact(x: torch.Tensor, window: Window, grad: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.double().contiguous().requires_grad_()
    y = F.max_pool2d(x, *window)
    grad = torch.randn(y.shape, dtype=torch.float64) if grad is None else grad.double().contiguous()
    return y.detach(), torch.autograd.grad(y, x, grad)[0]


def forward(kernels, x, window, layout, full=FULL, y=None) -> torch.Tensor:
    if y is None:
        y = filled(exact(x, window)[0].shape, x.dtype, layout, torch.tensor(9e4))
    kernels.max_pool2d(str(x.dtype), x.data_ptr(), y.data_ptr(), *arguments(x, window, layout, full))
    return y


def backward(kernels, grad, x, window, layout, full=FULL, grad_x=None) -> torch.Tensor:
    grad_x = torch.full_like(x, float("nan")) if grad_x is None else grad_x
    kernels.max_pool2d_backward(
        str(x.dtype), grad.data_ptr(), x.data_ptr(), grad_x.data_ptr(), *arguments(x, window, layout, full)
    )
    return grad_x


def check(kernels, x, window, layout, full=FULL, label="") -> torch.Tensor:
    y = forward(kernels, x, window, layout, full)
    assert torch.equal(y.double().nan_to_num(7e4), exact(x, window)[0].nan_to_num(7e4)), label
    grad = filled(y.shape, x.dtype, layout)
    right, magnitude = exact(x, window, grad)[1], exact(x, window, grad.abs())[1]
    got = backward(kernels, grad, x, window, layout, full)
    assert_close_fp64(got, right, reduction=9, magnitude=magnitude, label=f"gradient {label}")
    assert torch.equal(got == 0, right == 0), label
    return y


@cases
@layouts
@dtypes
def test_values(kernels, shape, window, layout, dtype):
    check(kernels, filled(shape, dtype, layout), window, layout)


@cases
@layouts
@pytest.mark.parametrize("value", [None, torch.nan, -torch.inf])
def test_ties_nan_and_infinity(kernels, shape, window, layout, value):
    values = torch.randint(-2, 2, shape).double()
    if value is not None:
        values[torch.rand(shape) < 0.5] = value
    check(kernels, filled(shape, torch.float16, layout, values), window, layout, full=1, label=str(value))


@layouts
@pytest.mark.parametrize("case", ["stem-odd", "oblong", "vgg"])
def test_three_orders_give_the_same_bits(kernels, case, layout, order):
    shape, window = CASES[case]
    x = filled(shape, torch.float16, layout)
    y = forward(kernels, x, window, layout)
    grad = filled(y.shape, torch.float16, layout)
    grad_x = backward(kernels, grad, x, window, layout)
    kernels.set_order(order, 5)
    assert torch.equal(check(kernels, x, window, layout, full=1), y)
    assert torch.equal(backward(kernels, grad, x, window, layout, full=1), grad_x)


@layouts
@dtypes
@pytest.mark.parametrize("offset", [1, 3])
def test_misaligned_tensors(kernels, layout, dtype, offset):
    x = filled((2, 16, 6, 7), dtype, layout)
    y = forward(kernels, x, STEM, layout)
    grad = filled(y.shape, dtype, layout)
    grad_x = backward(kernels, grad, x, STEM, layout)

    def moved(t: torch.Tensor) -> torch.Tensor:
        return t.new_full((t.numel() + 8,), float("nan")).as_strided(t.shape, t.stride(), offset).copy_(t)

    assert torch.equal(forward(kernels, moved(x), STEM, layout), y)
    assert torch.equal(forward(kernels, x, STEM, layout, y=moved(y)), y)
    fresh = torch.zeros_like(grad_x)
    for given, into in (((moved(grad), x), fresh), ((grad, moved(x)), fresh), ((grad, x), moved(fresh))):
        assert torch.equal(backward(kernels, *given, STEM, layout, grad_x=into.zero_()), grad_x)


@layouts
@pytest.mark.parametrize("case", ["stem-odd", "ceil", "oblong", "one-channel"])
@pytest.mark.parametrize("full", [1, FULL])
def test_nothing_outside_is_read_or_written(kernels, case, layout, full):
    shape, window = CASES[case]
    x = Guarded(filled(shape, torch.float16, layout))
    clean = forward(kernels, x.x, window, layout)
    y, grad = Guarded(torch.zeros_like(clean)), Guarded(torch.ones_like(clean))
    grad_x = Guarded(torch.zeros_like(x.x))
    forward(kernels, x.x, window, layout, full, y.x)
    backward(kernels, grad.x, x.x, window, layout, full, grad_x.x)
    assert torch.equal(y.x, clean) and grad_x.x.isfinite().all()
    x.check(), grad.check("grad")
    margin = Guarded.MARGIN
    for guard in (y, grad_x):
        assert guard.buffer[:margin].isnan().all() and guard.buffer[-margin:].isnan().all()


def placed(t: torch.Tensor) -> torch.Tensor:
    storage = torch.zeros(t.numel() + 512, dtype=t.dtype)
    return storage.as_strided(t.shape, t.stride(), -storage.data_ptr() % 512 // t.element_size()).copy_(t)


def counted(kernels, tensors: dict[str, torch.Tensor], call) -> tuple[dict[str, tuple[float, float]], float, float]:
    """(bytes requested, use of sectors) by tensor; bytes that leave L1, DRAM bytes: as shares of the tensors'."""
    kernels.start_traffic([(name, t.data_ptr(), t.nbytes) for name, t in tensors.items()])
    call()
    traffic = kernels.stop_traffic(512 << 10, 528)
    total = sum(t.nbytes for t in tensors.values())
    figures = {name: (b["requested"] / tensors[name].nbytes, b["efficiency"]) for name, b in traffic["buffers"].items()}
    return figures, traffic["left_l1"] / total, traffic["dram"] / total


def inside(size: int, out: int) -> int:
    """Taps of all windows of 3 at stride 2, padded by 1, that lie within ``size`` pixels."""
    return sum(0 <= 2 * o - 1 + i < size for o in range(out) for i in range(3))


@layouts
@pytest.mark.parametrize("full", [1, FULL])
def test_bytes_of_a_stem(kernels, layout, full):
    x = placed(filled((1, 64, 32, 32), torch.float16, layout))
    y = placed(forward(kernels, x, STEM, layout))
    figures, left_l1, dram = counted(kernels, {"x": x, "y": y}, lambda: forward(kernels, x, STEM, layout, full, y))
    assert figures["x"][0] == inside(32, 16) ** 2 / 32**2 <= 2.25 and figures["y"] == (1.0, 1.0)
    assert figures["x"][1] >= (1.0 if layout == "channels_last" else 0.45) and dram <= 1.01
    assert left_l1 <= (1.05 if full == 1 else 1.2), left_l1


@layouts
def test_bytes_of_a_gradient(kernels, layout):
    x = placed(filled((1, 64, 32, 32), torch.float16, layout))
    grad = placed(forward(kernels, x, STEM, layout))
    grad_x = placed(torch.zeros_like(x))
    tensors = {"grad": grad, "x": x, "grad_x": grad_x}
    figures, left_l1, dram = counted(kernels, tensors, lambda: backward(kernels, grad, x, STEM, layout, 1, grad_x))
    assert figures["grad_x"] == (1.0, 1.0) and dram <= 1.01 and left_l1 <= 1.35
    assert figures["x"][0] <= 1 + 9 * 9 / 4 and figures["grad"][0] == inside(32, 16) ** 2 / 16**2 <= 9
