# SPDX-License-Identifier: Apache-2.0
"""max_pool2d: values, where the gradient goes, ties, NaN and -inf, windows at the borders, formats, errors."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from fastcnn.ops import max_pool2d
from fastcnn.testing import DTYPES, LAYOUTS, Guarded, arrange, assert_close_fp64, assert_format
from tests import instruction_sets


class Window(NamedTuple):
    kernel_size: int | tuple[int, int]
    stride: int | tuple[int, int] | None = None
    padding: int | tuple[int, int] = 0
    dilation: int = 1
    ceil_mode: bool = False


CASES = {
    "stem": ((2, 64, 28, 28), Window(3, 2, 1)),
    "stem-odd": ((2, 24, 15, 13), Window(3, 2, 1)),
    "vgg": ((2, 19, 12, 14), Window(2)),
    "same": ((1, 33, 9, 11), Window(3, 1, 1)),
    "ceil": ((2, 21, 14, 13), Window(3, 2, 0, ceil_mode=True)),
    "ceil-of-less-than-a-window": ((2, 19, 2, 2), Window(3, 2, 0, ceil_mode=True)),
    "ceil-drops-the-last": ((1, 5, 6, 7), Window(2, 3, 1, ceil_mode=True)),
    "gaps": ((1, 18, 11, 10), Window(2, 4)),
    "oblong": ((2, 7, 9, 12), Window((5, 2), (1, 3), (2, 1))),
    "wide-kernel": ((1, 9, 17, 40), Window((1, 13), (1, 1), (0, 6))),
    "one-pixel": ((3, 17, 1, 1), Window(1)),
    "padded-pixel": ((2, 8, 1, 1), Window(3, 2, 1)),
    "whole-plane": ((2, 40, 7, 7), Window(7)),
    "one-channel": ((2, 1, 13, 9), Window(3, 2, 1)),
    "many-channels": ((1, 529, 6, 5), Window(3, 2, 1)),
    "long-row": ((1, 70, 3, 300), Window(3, 2, 1)),
    "empty-batch": ((0, 8, 5, 5), Window(3, 2, 1)),
    "no-channels": ((2, 0, 5, 5), Window(2)),
}
cases = pytest.mark.parametrize(("shape", "window"), CASES.values(), ids=CASES)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
formats = pytest.mark.parametrize("layout", ["nchw", "channels_last"])


def torchs(x: torch.Tensor, window: Window, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Result and gradient of torch's own op in float64, which is exact but for the order of a sum of a few."""
    x = x.detach().double().contiguous().requires_grad_()
    if x.numel() == 0:
        return grad.double(), x.detach()
    y = F.max_pool2d(x, *window)
    return y.detach(), torch.autograd.grad(y, x, grad.double().contiguous())[0]


def check(x: torch.Tensor, window: Window, label: str = "") -> torch.Tensor:
    x = x.detach().requires_grad_()
    y = max_pool2d(x, *window)
    grad = torch.randn(y.shape, dtype=torch.float64).to(x.dtype)
    wanted, right = torchs(x, window, grad)
    assert y.dtype is x.dtype and y.shape == wanted.shape, label
    if x.numel():
        assert y.stride() == F.max_pool2d(x.detach(), *window).stride(), label
    assert torch.equal(y.double().nan_to_num(7e4), wanted.nan_to_num(7e4)), label
    (got,) = torch.autograd.grad(y, x, grad)
    _, magnitude = torchs(x, window, grad.abs())
    assert_close_fp64(got, right, reduction=9, magnitude=magnitude, label=f"gradient {label}")
    assert torch.equal(got == 0, right == 0), f"the pixels that have a gradient {label}"
    if x.numel():
        assert_format(got, x, f"gradient {label}")
    return y


@cases
@formats
@dtypes
def test_value_and_gradient(shape, window, layout, dtype):
    check(arrange(torch.randn(shape, dtype=torch.float64).to(dtype), layout), window)


@cases
@formats
def test_value_and_gradient_with_ties(shape, window, layout):
    """Few values, so that most windows have several maxima: the first takes the gradient."""
    check(arrange(torch.randint(-2, 2, shape).float(), layout), window)


@cases
@formats
@pytest.mark.parametrize("value", [torch.nan, -torch.inf, torch.inf])
def test_value_and_gradient_of_special_values(shape, window, layout, value):
    x = torch.randn(shape)
    x[torch.rand(shape) < 0.4] = value
    check(arrange(x, layout), window, str(value))
    check(arrange(torch.full(shape, value), layout), window, f"nothing but {value}")


@formats
def test_a_nan_stays_in_its_windows(layout):
    x = arrange(torch.randn(2, 37, 8, 9), layout)
    clean = max_pool2d(x, 3, 2, 1)
    x[1, 36, 3, 5] = torch.nan
    y = max_pool2d(x, 3, 2, 1)
    assert y.isnan().nonzero().tolist() == [[1, 36, h, w] for h in (1, 2) for w in (2, 3)]
    assert torch.equal(y.nan_to_num(7.0), torch.where(y.isnan(), 7.0, clean))


@formats
def test_gradcheck_twice(layout):
    x = arrange(torch.randperm(2 * 5 * 6 * 7).view(2, 5, 6, 7).double(), layout).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: max_pool2d(t, 3, 2, 1), x)
    assert torch.autograd.gradgradcheck(lambda t: max_pool2d(t, 3, 2, 1) ** 2, x, eps=1e-4)


@pytest.mark.parametrize("layout", [*LAYOUTS, "expanded"])
def test_strided_and_misaligned_inputs(layout):
    x = torch.randn(3, 21, 6, 5)
    x = x[..., :1].expand(-1, -1, -1, 5) if layout == "expanded" else arrange(x, layout)
    y = check(x, Window(3, 2, 1))
    if layout in ("nchw", "channels_last"):
        guard = Guarded(x)
        assert torch.equal(max_pool2d(guard.x, 3, 2, 1), y)
        guard.check()


@pytest.mark.parametrize("grad", ["expanded", "strided", "channels_last"])
@formats
def test_gradients_of_any_stride(grad, layout):
    x = arrange(torch.randn(2, 20, 6, 8), layout).requires_grad_()
    upstream = {
        "expanded": torch.tensor(0.5).expand(2, 20, 3, 4),
        "strided": torch.randn(2, 40, 3, 4)[:, ::2],
        "channels_last": torch.randn(2, 20, 3, 4).contiguous(memory_format=torch.channels_last),
    }[grad]
    (got,) = torch.autograd.grad(max_pool2d(x, 3, 2, 1), x, upstream)
    torch.testing.assert_close(got, torchs(x, Window(3, 2, 1), upstream)[1].float())


@formats
def test_the_same_bits_every_time_and_for_every_number_of_threads(layout):
    x, threads = arrange(torch.randn(3, 24, 61, 60), layout).requires_grad_(), torch.get_num_threads()
    results = []
    for count in (1, 2, 3, 1):
        torch.set_num_threads(count)
        y = max_pool2d(x, 3, 2, 1)
        results.append((y, *torch.autograd.grad(y, x, torch.linspace(0.1, 1, y.numel()).view(y.shape))))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_without_a_batch():
    x = torch.randn(5, 7, 8)
    assert torch.equal(max_pool2d(x, 2), F.max_pool2d(x, 2))


def test_autocast_leaves_the_dtype_as_torchs_does():
    x = torch.randn(1, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert max_pool2d(x, 2).dtype is F.max_pool2d(x, 2).dtype is torch.float32
        assert max_pool2d(x.bfloat16(), 2).dtype is torch.bfloat16


def test_nothing_but_x_is_kept_for_the_backward():
    kept = []
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        max_pool2d(x, 3, 2, 1)
    assert [t.data_ptr() for t in kept] == [x.data_ptr()]


@formats
def test_opcheck(layout):
    x = arrange(torch.randn(2, 6, 7, 8), layout).requires_grad_()
    torch.library.opcheck(torch.ops.fastcnn.max_pool2d.default, (x, [3, 3], [2, 2], [1, 1], True))


X = torch.ones(2, 6, 4, 5)
ERRORS = {
    "rank": ((X[0, 0], 2), ValueError, r"x must have 4 dimensions \[N, C, H, W\], got \[4, 5\]"),
    "no-pixels": ((X[:, :, :0], 1), ValueError, r"x must have at least one pixel, got \[2, 6, 0, 5\]"),
    "dtype": ((X.int(), 2), TypeError, "x must be float32, float64, float16 or bfloat16, got int32"),
    "list": (([1.0], 2), TypeError, "x must be a Tensor, got list"),
    "kernel": ((X, 0), ValueError, "kernel_size must be at least 1 and below 2.31, got 0"),
    "three-kernels": ((X, (1, 2, 3)), ValueError, r"kernel_size must be an int or two ints \(h, w\), got \(1, 2, 3\)"),
    "stride": ((X, 2, 0), ValueError, "stride must be at least 1 and below 2.31, got 0"),
    "padding": ((X, 3, 2, 2), ValueError, "padding must be at most half of kernel_size = 3, got 2"),
    "negative-padding": ((X, 3, 2, -1), ValueError, "padding must be at least 0 and below 2.31, got -1"),
    "too-large": ((X, (5, 3)), ValueError, "kernel_size must fit the padded input, got 5x3 for 4x5"),
    "huge": ((X, 5000), ValueError, "kernel_size must be at most 2.24 pixels, got 5000"),
    "dilation": ((X, 2, 2, 0, 2), ValueError, "dilation must be 1, got 2; torch.nn.functional.max_pool2d takes others"),
    "ceil-mode": ((X, 2, 2, 0, 1, 1), TypeError, "ceil_mode must be a bool, got int"),
}


@pytest.mark.parametrize(("arguments", "kind", "words"), ERRORS.values(), ids=ERRORS)
def test_a_wrong_argument_is_named(arguments, kind, words):
    with pytest.raises(kind, match=f"^max_pool2d: {words}"):
        max_pool2d(*arguments)


@pytest.mark.parametrize("size", range(1, 12))
def test_output_sizes_are_torchs(size):
    for kernel in range(1, 6):
        for stride in range(1, 5):
            for padding in range(kernel // 2 + 1):
                for ceil_mode in (False, True):
                    if size + 2 * padding >= kernel:
                        x, window = torch.randn(1, 2, size, size), Window(kernel, stride, padding, 1, ceil_mode)
                        assert torch.equal(max_pool2d(x, *window), F.max_pool2d(x, *window)), window


@instruction_sets.each
def test_on_the_other_instruction_sets(isa):
    instruction_sets.rerun(__file__, isa, "test_value")
