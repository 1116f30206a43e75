# SPDX-License-Identifier: Apache-2.0
"""global_avg_pool: values, accuracy over many pixels, formats, gradients, errors."""

import pytest
import torch
import torch.nn.functional as F

from fastcnn.ops import global_avg_pool
from fastcnn.testing import DTYPES, LAYOUTS, Guarded, arrange, assert_close_fp64, assert_format
from tests import instruction_sets
from tests.cross import exact

CASES = {
    "head": (2, 1280, 7, 7),
    "vector-tails": (3, 33, 5, 6),
    "blocks-of-channels": (1, 529, 3, 3),
    "one-channel": (2, 1, 13, 9),
    "one-pixel": (2, 17, 1, 1),
    "segments": (2, 70, 50, 41),
    "long-row": (1, 2, 1, 5003),
    "empty-batch": (0, 8, 3, 3),
    "no-channels": (2, 0, 3, 3),
}
cases = pytest.mark.parametrize("shape", CASES.values(), ids=CASES)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
formats = pytest.mark.parametrize("layout", ["nchw", "channels_last"])


@cases
@formats
@dtypes
def test_value_and_gradient(shape, layout, dtype):
    x = arrange((torch.randn(shape, dtype=torch.float64) + 1).to(dtype), layout).requires_grad_()
    y, wanted = global_avg_pool(x), exact.global_avg_pool(x.detach().double())
    assert y.dtype is dtype and y.stride() == F.adaptive_avg_pool2d(x, 1).stride()
    assert_close_fp64(y, wanted, reduction=4, magnitude=x.detach().double().abs().mean() if x.numel() else 0.0)
    grad = torch.randn(y.shape, dtype=torch.float64).to(dtype)
    (got,) = torch.autograd.grad(y, x, grad)
    right = (grad.double() / max(shape[2] * shape[3], 1)).expand(shape)
    assert_close_fp64(got, right, magnitude=right.abs(), label="gradient")
    if x.numel():
        assert_format(got, x, "gradient")


@formats
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_value_over_a_hundred_thousand_pixels(layout, offset):
    x = arrange(torch.randn(1, 19, 320, 331) + offset, layout)
    wanted = exact.global_avg_pool(x.double())
    assert_close_fp64(global_avg_pool(x), wanted, reduction=1, magnitude=x.double().abs().mean())


def test_value_of_bfloat16_is_summed_in_float32():
    x = torch.full((1, 3, 64, 64), 1.0078125, dtype=torch.bfloat16)
    assert global_avg_pool(x).flatten().tolist() == [1.0078125] * 3


@formats
def test_gradcheck_twice(layout):
    x = arrange(torch.randn(2, 5, 3, 4, dtype=torch.float64), layout).requires_grad_()
    assert torch.autograd.gradcheck(global_avg_pool, x)
    assert torch.autograd.gradgradcheck(lambda t: global_avg_pool(t) ** 2, x)


@pytest.mark.parametrize("layout", [*LAYOUTS, "expanded"])
def test_strided_and_misaligned_inputs(layout):
    x = torch.randn(3, 21, 6, 5)
    x = x[..., :1].expand(-1, -1, -1, 5) if layout == "expanded" else arrange(x, layout)
    torch.testing.assert_close(global_avg_pool(x), x.mean((2, 3), keepdim=True))
    assert global_avg_pool(x).stride() == F.adaptive_avg_pool2d(x, 1).stride()
    if layout in ("nchw", "channels_last"):
        guard = Guarded(x)
        assert torch.equal(global_avg_pool(guard.x), global_avg_pool(x))
        guard.check()


@pytest.mark.parametrize("grad", ["expanded", "strided", "channels_last"])
@formats
def test_gradients_of_any_stride(grad, layout):
    x = arrange(torch.randn(2, 20, 3, 3), layout).requires_grad_()
    upstream = {
        "expanded": torch.tensor(0.5).expand(2, 20, 1, 1),
        "strided": torch.randn(2, 40, 1, 1)[:, ::2],
        "channels_last": torch.randn(2, 20, 1, 1).contiguous(memory_format=torch.channels_last),
    }[grad]
    (got,) = torch.autograd.grad(global_avg_pool(x), x, upstream)
    torch.testing.assert_close(got, (upstream / 9).expand_as(x))


@formats
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_nan_stays_in_its_plane(value, layout):
    x = arrange(torch.randn(2, 37, 6, 7), layout)
    clean = global_avg_pool(x)
    x[1, 36, 5, 6] = value
    y = global_avg_pool(x)
    assert (~y.isfinite()).nonzero().tolist() == [[1, 36, 0, 0]]
    assert torch.equal(y[0], clean[0]) and torch.equal(y[1, :36], clean[1, :36])


@formats
def test_the_same_bits_every_time_and_for_every_number_of_threads(layout):
    x, threads = arrange(torch.randn(3, 72, 60, 61), layout), torch.get_num_threads()
    results = []
    for count in (1, 2, 3, 1):
        torch.set_num_threads(count)
        results.append(global_avg_pool(x))
    torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


@formats
def test_opcheck(layout):
    x = arrange(torch.randn(2, 6, 3, 4), layout).requires_grad_()
    torch.library.opcheck(torch.ops.fastcnn.global_avg_pool.default, (x,))


ERRORS = {
    "rank": (torch.ones(6, 2, 2), ValueError, r"x must have 4 dimensions \[N, C, H, W\], got \[6, 2, 2\]"),
    "no-pixels": (torch.ones(2, 3, 0, 4), ValueError, r"x must have at least one pixel, got \[2, 3, 0, 4\]"),
    "dtype": (torch.ones(1, 6, 2, 2).int(), TypeError, "x must be float32, float64, float16 or bfloat16, got int32"),
    "list": ([1.0], TypeError, "x must be a Tensor, got list"),
}


@pytest.mark.parametrize(("x", "kind", "words"), ERRORS.values(), ids=ERRORS)
def test_a_wrong_argument_is_named(x, kind, words):
    with pytest.raises(kind, match=f"^global_avg_pool: {words}"):
        global_avg_pool(x)


@instruction_sets.each
def test_on_the_other_instruction_sets(isa):
    instruction_sets.rerun(__file__, isa, "test_value")
