# SPDX-License-Identifier: Apache-2.0
"""se_scale: values, gradients of x and of the four weights, formats, errors."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from fastcnn.ops import se_scale
from fastcnn.testing import DTYPES, LAYOUTS, Guarded, arrange, assert_close_fp64, assert_format
from tests import instruction_sets
from tests.cross import exact

CASES = {  # N, C, H, W, R
    "mobilenet-v3": (2, 72, 14, 14, 24),
    "efficientnet": (5, 96, 7, 9, 4),
    "vector-tails": (3, 33, 5, 7, 9),
    "wide": (4, 480, 3, 3, 120),
    "one-channel": (2, 1, 6, 5, 1),
    "one-pixel": (9, 20, 1, 1, 7),
    "segments": (1, 34, 66, 67, 8),
    "no-hidden": (2, 6, 3, 3, 0),
    "empty-batch": (0, 12, 4, 4, 3),
}
PAIRS = (("relu", "hardsigmoid"), ("silu", "sigmoid"), ("hardswish", "identity"))
NAMES = ("x", "w1", "b1", "w2", "b2")
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
formats = pytest.mark.parametrize("layout", ["nchw", "channels_last"])


def inputs(case, dtype, layout, *, vectors=2, weight_dtype=None):
    N, C, H, W, R = case
    tail = (1, 1) if vectors == 4 else ()
    x = arrange((torch.randn(N, C, H, W, dtype=torch.float64) + 0.5).to(dtype), layout)
    shapes = ((R, C, *tail), (R,), (C, R, *tail), (C,))
    scales = (C**-0.5, 1.0, max(R, 1) ** -0.5, 1.0)
    wanted = weight_dtype or dtype
    weights = ((torch.randn(s, dtype=torch.float64) * f).to(wanted) for s, f in zip(shapes, scales, strict=True))
    return x, *weights


def torchs(x, w1, b1, w2, b2, activation, gate):
    """As torchvision's SqueezeExcitation computes it."""
    pooled = F.adaptive_avg_pool2d(x, 1).flatten(1)
    hidden = exact.activation(F.linear(pooled, w1.flatten(1), b1), activation)
    return x * exact.activation(F.linear(hidden, w2.flatten(1), b2), gate)[:, :, None, None]


def results(function, arguments, activation, gate, grad):
    leaves = [t.detach().clone().requires_grad_() for t in arguments]
    y = function(*leaves, activation, gate)
    return y.detach(), *torch.autograd.grad(y, leaves, grad)


def away_from_gate_knots(arguments, activation):
    """Moves the biases so that no hidden value and no gate lies within 1e-2 of a knot."""
    x, w1, b1, w2, b2 = (t.double() for t in arguments)
    for _ in range(50):
        z1 = x.mean((2, 3)) @ w1.flatten(1).T + b1
        z2 = exact.activation(z1, activation) @ w2.flatten(1).T + b2
        near1, near2 = (sum((z - k).abs() < 1e-2 for k in (-3, 0, 3)).any(0) for z in (z1, z2))
        if not near1.any() and not near2.any():
            break
        b1, b2 = b1 + 0.037 * near1, b2 + 0.037 * near2
    return arguments[0], arguments[1], b1.to(arguments[2].dtype), arguments[3], b2.to(arguments[4].dtype)


@cases
@formats
@dtypes
def test_value_and_gradients(case, layout, dtype):
    for activation, gate in PAIRS:
        arguments = inputs(case, dtype, layout, vectors=2 if activation == "silu" else 4)
        arguments = away_from_gate_knots(arguments, activation)
        grad = torch.randn(case[:4], dtype=torch.float64).to(dtype)
        got = results(se_scale, arguments, activation, gate, grad)
        rival = results(torchs, arguments, activation, gate, grad)
        wanted = results(torchs, [t.double() for t in arguments], activation, gate, grad.double())
        if arguments[0].numel():
            assert_format(got[0], arguments[0])
            assert_format(got[1], arguments[0], "gradient of x")
        for name, value, other, right in zip(("y", *NAMES), got, rival, wanted, strict=True):
            assert value.shape == right.shape and value.dtype is dtype
            assert_close_fp64(value, right, reduction=16, rival=other, label=f"{activation} {gate} {name}")


@formats
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@pytest.mark.parametrize("case", [(2, 5, 3, 4, 3), (3, 19, 2, 2, 6)], ids=str)
def test_gradcheck_twice(case, layout, pair):
    arguments = away_from_gate_knots(inputs(case, torch.float64, layout), pair[0])
    leaves = [t.detach().clone().requires_grad_() for t in arguments]
    if pair == ("relu", "hardsigmoid"):  # torch's double-precision derivative of hardsigmoid is good to 3e-8
        assert torch.autograd.gradcheck(lambda *t: se_scale(*t, *pair), leaves, fast_mode=True)
    else:
        assert torch.autograd.gradcheck(lambda *t: se_scale(*t, *pair), leaves)
    assert torch.autograd.gradgradcheck(lambda *t: se_scale(*t, *pair), leaves, fast_mode=True)


@pytest.mark.parametrize("layout", [*LAYOUTS, "expanded"])
def test_strided_and_misaligned_inputs_change_nothing(layout):
    x, *weights = inputs((3, 18, 6, 5, 4), torch.float32, "nchw")
    given = x[:1].expand(3, -1, -1, -1) if layout == "expanded" else arrange(x, layout)
    strided = [torch.stack((w, w), -1)[..., 1] for w in weights]
    grad = torch.ones(1).expand(3, 18, 6, 5)
    got = results(se_scale, (given, *strided), "relu", "hardsigmoid", grad)
    wanted = results(se_scale, (given.contiguous(), *weights), "relu", "hardsigmoid", grad.contiguous())
    assert_format(se_scale(given, *strided), given)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)
    if layout in ("nchw", "channels_last"):
        guards = [Guarded(t) for t in (given, *weights)]
        assert torch.equal(se_scale(*(g.x for g in guards)), se_scale(given, *weights))
        for guard in guards:
            guard.check()


@formats
def test_a_nan_stays_in_its_sample(layout):
    x, *weights = inputs((3, 21, 5, 4, 6), torch.float32, layout)
    clean = se_scale(x, *weights)
    x[1, 7, 2, 3] = torch.nan
    y = se_scale(x, *weights)
    assert torch.equal(y[0], clean[0]) and torch.equal(y[2], clean[2]) and y[1].isnan().all()


@formats
def test_the_same_bits_every_time_and_for_every_number_of_threads(layout):
    arguments, threads = inputs((5, 100, 33, 40, 30), torch.float32, layout), torch.get_num_threads()
    found = []
    for count in (1, 2, 3, 1):
        torch.set_num_threads(count)
        found.append(results(se_scale, arguments, "silu", "sigmoid", torch.ones(5, 100, 33, 40)))
    torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_in_float32_beside_a_half_x(dtype):
    x, *weights = inputs((2, 24, 7, 7, 6), dtype, "channels_last", weight_dtype=torch.float32)
    leaves = [w.requires_grad_() for w in weights]
    y = se_scale(x, *leaves)
    assert y.dtype is dtype
    assert all(g.dtype is torch.float32 for g in torch.autograd.grad(y.float().sum(), leaves))
    wanted = torchs(x.double(), *(w.detach().double() for w in weights), "relu", "hardsigmoid")
    assert_close_fp64(y, wanted, reduction=4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(se_scale(x, *weights), y)


def test_some_gradients_only_and_flops():
    x, w1, b1, w2, b2 = inputs((2, 12, 4, 4, 3), torch.float32, "nchw")
    w2.requires_grad_()
    with FlopCounterMode(display=False) as counter:
        y = se_scale(x, w1, b1, w2, b2)
    assert counter.get_total_flops() == 2 * 2 * 2 * 12 * 3
    y.sum().backward()
    assert w2.grad.shape == w2.shape and x.grad is None


@formats
def test_opcheck(layout):
    arguments = [t.requires_grad_() for t in inputs((2, 6, 3, 4, 3), torch.float32, layout, vectors=4)]
    torch.library.opcheck(torch.ops.fastcnn.se_scale.default, (*arguments, "silu", "sigmoid"))


ERRORS = {
    "rank": ("x", torch.ones(2, 3), ValueError, r"x must have 4 dimensions \[N, C, H, W\], got \[2, 3\]"),
    "no-pixels": ("x", torch.ones(1, 3, 0, 2), ValueError, r"x must have at least one pixel, got \[1, 3, 0, 2\]"),
    "w1": ("w1", torch.ones(2, 4), ValueError, r"w1 must be \[R, C\] or \[R, C, 1, 1\] with C = 3, got \[2, 4\]"),
    "w1-kernel": ("w1", torch.ones(2, 3, 3, 3), ValueError, r"w1 must be \[R, C\] .* got \[2, 3, 3, 3\]"),
    "b1": ("b1", torch.ones(3), ValueError, r"b1 must be \[R = 2\], got \[3\]"),
    "w2": ("w2", torch.ones(2, 3), ValueError, r"w2 must be \[C, R\] .* with C = 3, R = 2, got \[2, 3\]"),
    "b2": ("b2", torch.ones(1, 3), ValueError, r"b2 must be \[C = 3\], got \[1, 3\]"),
    "no-bias": ("b1", None, TypeError, "b1 must be a Tensor, got NoneType"),
    "dtype": ("w2", torch.ones(3, 2).double(), TypeError, "w2 must have the dtype of x, .* got float64"),
    "activation": ("activation", "gelu", ValueError, "activation must be one of identity, .* got 'gelu'"),
    "gate": ("gate", "softmax", ValueError, "gate must be one of identity, .* got 'softmax'"),
}


@pytest.mark.parametrize(("name", "value", "kind", "words"), ERRORS.values(), ids=ERRORS)
def test_a_wrong_argument_is_named(name, value, kind, words):
    shapes = {"x": (1, 3, 2, 2), "w1": (2, 3), "b1": (2,), "w2": (3, 2), "b2": (3,)}
    given = {key: torch.ones(shape) for key, shape in shapes.items()}
    with pytest.raises(kind, match=f"^se_scale: {words}"):
        se_scale(**{**given, name: value})


@instruction_sets.each
def test_on_the_other_instruction_sets(isa):
    instruction_sets.rerun(__file__, isa, "test_value")
