# SPDX-License-Identifier: Apache-2.0
"""channel_shuffle and its inverse: a permutation, bit for bit, in every format and dtype."""

import pytest
import torch
import torch.nn.functional as F

from fastcnn.ops import channel_shuffle, channel_shuffle_concat
from fastcnn.testing import DTYPES, LAYOUTS, Guarded, arrange, assert_format
from tests import instruction_sets
from tests.cross import exact

CASES = {
    "shufflenet-v2": (2, 116, 14, 14, 2),
    "shufflenet-v1-g3": (2, 240, 7, 7, 3),
    "g4": (1, 68, 5, 6, 4),
    "g8": (2, 88, 3, 9, 8),
    "g5-generic": (2, 35, 4, 4, 5),
    "g7-of-77": (1, 77, 3, 3, 7),
    "one-group": (2, 9, 4, 5, 1),
    "a-group-per-channel": (2, 9, 4, 5, 9),
    "two-channels": (3, 2, 3, 3, 2),
    "one-pixel": (4, 24, 1, 1, 2),
    "plane-of-64-bytes": (2, 6, 4, 4, 3),
    "empty-batch": (0, 6, 4, 4, 2),
    "no-channels": (2, 0, 4, 4, 2),
    "no-pixels": (2, 6, 0, 4, 3),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
formats = pytest.mark.parametrize("layout", ["nchw", "channels_last"])


@cases
@formats
@dtypes
def test_value_is_that_of_torch_bit_for_bit(case, layout, dtype):
    *shape, groups = case
    x = arrange(torch.randn(shape, dtype=torch.float64).to(dtype), layout)
    y = channel_shuffle(x, groups)
    assert torch.equal(y, exact.channel_shuffle(x, groups)) and torch.equal(y, F.channel_shuffle(x, groups))
    assert y.dtype is dtype
    if x.numel():
        assert y.data_ptr() != x.data_ptr()
        assert_format(y, x)
        assert y.stride() == F.channel_shuffle(x, groups).stride()
    assert torch.equal(channel_shuffle(y, groups, inverse=True), x)
    assert torch.equal(channel_shuffle(x, groups, inverse=True), exact.channel_shuffle(x, groups, inverse=True))


@formats
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_value_keeps_every_bit_of_a_nan(layout, dtype):
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    info = torch.iinfo(width)
    bits = arrange(torch.randint(info.min, info.max, (2, 52, 5, 5), dtype=width), layout)
    y = channel_shuffle(bits.view(dtype), 2)
    assert torch.equal(y.view(width), exact.channel_shuffle(bits, 2))


@formats
@pytest.mark.parametrize("depth", range(1, 40))
def test_value_at_every_tail(depth, layout):
    for groups in (2, 3, 4, 8):
        guard = Guarded(arrange(torch.randn(2, depth * groups, 2, 3), layout))
        y = channel_shuffle(guard.x, groups)
        assert torch.equal(y, exact.channel_shuffle(guard.x, groups))
        assert torch.equal(channel_shuffle(y, groups, inverse=True), guard.x)
        guard.check()


@pytest.mark.parametrize("layout", [*LAYOUTS, "expanded", "other-format-gradient"])
def test_strided_inputs(layout):
    x = torch.randn(3, 30, 5, 4)
    if layout == "expanded":
        x = x[:1].expand(3, -1, -1, -1)
    elif layout == "other-format-gradient":
        x = x.contiguous(memory_format=torch.channels_last)
    else:
        x = arrange(x, layout)
    x.requires_grad_()
    y = channel_shuffle(x, 5)
    assert torch.equal(y, exact.channel_shuffle(x, 5))
    assert_format(y, x)
    grad = torch.randn(3, 30, 5, 4)
    (got,) = torch.autograd.grad(y, x, grad)
    assert torch.equal(got, exact.channel_shuffle(grad, 5, inverse=True))


@pytest.mark.parametrize("shape", [(2, 6, 5), (2, 6, 3, 4, 5), (1, 6, 2, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("order", ["contiguous", "channels_last_3d", "transposed"])
def test_other_ranks_are_those_of_torch(shape, order):
    x = torch.randn(shape)
    if order == "transposed":
        x = x.transpose(1, -1).contiguous().transpose(1, -1)
    elif order == "channels_last_3d" and x.dim() == 5:
        x = x.contiguous(memory_format=torch.channels_last_3d)
    y, wanted = channel_shuffle(x, 3), F.channel_shuffle(x, 3)
    assert torch.equal(y, wanted) and y.stride() == wanted.stride()
    assert torch.equal(channel_shuffle(y, 3, inverse=True), x)


@formats
def test_gradcheck_twice_and_the_gradient_is_the_inverse(layout):
    x = arrange(torch.randn(2, 6, 3, 2, dtype=torch.float64), layout).requires_grad_()
    for inverse in (False, True):
        assert torch.autograd.gradcheck(lambda t, i=inverse: channel_shuffle(t, 3, i), x)
        assert torch.autograd.gradgradcheck(lambda t, i=inverse: channel_shuffle(t, 3, i), x)
    y = channel_shuffle(x, 2)
    (grad,) = torch.autograd.grad(y, x, y.detach())
    assert torch.equal(grad, x) and grad.stride() == x.stride()


@formats
def test_the_same_for_every_number_of_threads(layout):
    x, threads = arrange(torch.randn(4, 116, 28, 28), layout), torch.get_num_threads()
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(channel_shuffle(x, 2))
    torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


@formats
def test_opcheck(layout):
    x = arrange(torch.randn(2, 6, 3, 4), layout).requires_grad_()
    torch.library.opcheck(torch.ops.fastcnn.channel_shuffle.default, (x, 3))


CONCATS = {
    "shufflenet-v2": (2, 58, 14, 14),
    "odd": (3, 7, 5, 3),
    "one-channel": (2, 1, 4, 4),
    "one-pixel": (4, 24, 1, 1),
    "one-image": (1, 12, 6, 5),
    "empty-batch": (0, 6, 4, 4),
    "no-channels": (2, 0, 4, 4),
    "no-pixels": (2, 6, 0, 4),
}
concats = pytest.mark.parametrize("shape", CONCATS.values(), ids=CONCATS)


@concats
@formats
@dtypes
def test_value_of_concat_is_the_shuffle_of_the_concat(shape, layout, dtype):
    x1, x2 = (arrange(torch.randn(shape, dtype=torch.float64).to(dtype), layout) for _ in range(2))
    y = channel_shuffle_concat(x1, x2)
    assert torch.equal(y, exact.channel_shuffle(torch.cat((x1, x2), 1), 2)) and y.dtype is dtype
    if y.numel():
        assert_format(y, x1)


@concats
@formats
def test_value_of_concat_on_halves_and_other_strides(shape, layout):
    n, c, h, w = shape
    both = arrange(torch.randn(n, 2 * c, h, w), layout)
    by, through = both.chunk(2, dim=1) if c else (both, both)
    other = arrange(torch.randn(shape), "nchw" if layout == "channels_last" else "channels_last")
    padded = torch.randn(n, c, h + 1, w + 2)[:, :, 1:, 1:-1]
    for x1, x2 in ((by, through), (through, by), (by, other), (other, through), (padded, by), (by[..., :1], padded[..., :1])):
        assert torch.equal(channel_shuffle_concat(x1, x2), exact.channel_shuffle(torch.cat((x1, x2), 1), 2))


@formats
@pytest.mark.parametrize("channels", range(1, 40))
def test_value_of_concat_at_every_tail(channels, layout):
    guards = [Guarded(arrange(torch.randn(2, channels, 2, 3), layout)) for _ in range(2)]
    y = channel_shuffle_concat(*(g.x for g in guards))
    assert torch.equal(y, exact.channel_shuffle(torch.cat([g.x for g in guards], 1), 2))
    for guard in guards:
        guard.check()


@formats
def test_concat_gradients_and_opcheck(layout):
    x1, x2 = (arrange(torch.randn(2, 3, 3, 2, dtype=torch.float64), layout).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(channel_shuffle_concat, (x1, x2))
    assert torch.autograd.gradgradcheck(channel_shuffle_concat, (x1, x2))
    y = channel_shuffle_concat(x1, x2)
    grads = torch.autograd.grad(y, (x1, x2), y.detach())
    assert torch.equal(grads[0], x1) and torch.equal(grads[1], x2)
    torch.library.opcheck(torch.ops.fastcnn.channel_shuffle_concat.default, (x1, x2))


@formats
def test_concat_is_the_same_for_every_number_of_threads(layout):
    x1, x2 = (arrange(torch.randn(4, 58, 28, 28), layout) for _ in range(2))
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(channel_shuffle_concat(x1, x2))
    torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


X = torch.ones(1, 6, 2, 2)
CONCAT_ERRORS = {
    "shape": (X, X[:, :4], ValueError, r"x2 must have the shape of x1, \[1, 6, 2, 2\], got \[1, 4, 2, 2\]"),
    "broadcast": (X, X[..., :1], ValueError, "x2 must have the shape of x1"),
    "rank": (X[0], X[0], ValueError, "x1 must have 4 dimensions"),
    "dtype": (X, X.half(), TypeError, "x2 must have the dtype of x1, torch.float32, got torch.float16"),
    "integers": (X, X.int(), TypeError, "x2 must be float32, float64, float16 or bfloat16, got int32"),
    "device": (X, X.to("meta"), ValueError, "x2 must be on the device of x1, cpu, got meta"),
    "list": (X, [1.0], TypeError, "x2 must be a Tensor, got list"),
}


@pytest.mark.parametrize(("x1", "x2", "kind", "words"), CONCAT_ERRORS.values(), ids=CONCAT_ERRORS)
def test_a_wrong_argument_of_concat_is_named(x1, x2, kind, words):
    with pytest.raises(kind, match=f"^channel_shuffle_concat: {words}"):
        channel_shuffle_concat(x1, x2)


ERRORS = {
    "not-a-divisor": (X, 4, ValueError, "groups must be positive and divide C = 6, got 4"),
    "zero": (X, 0, ValueError, "groups must be positive and divide C = 6, got 0"),
    "negative": (X, -2, ValueError, "groups must be positive and divide C = 6, got -2"),
    "float": (X, 2.0, TypeError, "groups must be an int, got float"),
    "bool": (X, True, TypeError, "groups must be an int, got bool"),
    "rank": (X[0, 0], 2, ValueError, r"x must have at least 3 dimensions \[N, C, \*\], got \[2, 2\]"),
    "dtype": (X.int(), 2, TypeError, "x must be float32, float64, float16 or bfloat16, got int32"),
    "sparse": (X.to_sparse(), 2, TypeError, "x must be a dense .* got a sparse_coo one"),
    "list": ([1.0], 2, TypeError, "x must be a Tensor, got list"),
}


@pytest.mark.parametrize(("x", "groups", "kind", "words"), ERRORS.values(), ids=ERRORS)
def test_a_wrong_argument_is_named(x, groups, kind, words):
    with pytest.raises(kind, match=f"^channel_shuffle: {words}"):
        channel_shuffle(x, groups)


@instruction_sets.each
def test_on_the_other_instruction_sets(isa):
    instruction_sets.rerun(__file__, isa, "test_value")
