# SPDX-License-Identifier: Apache-2.0
"""relu, relu6, hardswish, hardsigmoid, silu, sigmoid and identity, elementwise."""

import math

import pytest
import torch
import torch.nn.functional as F

import fastcnn
from fastcnn.testing import DTYPES, LAYOUTS, Guarded, arrange, assert_close_fp64, away_from_knots
from tests import instruction_sets
from tests.cross import exact

TORCH = {
    "identity": lambda x: x.clone(),
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
}
NAMED = [kind for kind in exact.KINDS if kind != "identity"]
KNOTS = (-3.0, 0.0, 3.0, 6.0)
kinds = pytest.mark.parametrize("kind", exact.KINDS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))


def check_value(y, x, kind):
    wanted = exact.activation(x.double(), kind)
    assert_close_fp64(y, wanted, magnitude=wanted.abs().nan_to_num(0, 0, 0), label=kind)


@kinds
@dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_value_and_gradient_in_every_layout(kind, dtype, layout):
    values = away_from_knots(torch.randn(2, 9, 7, 5, dtype=torch.float64) * 4, distance=2e-2).to(dtype)
    x = arrange(values, layout).detach().requires_grad_()
    y = fastcnn.ops.activation(x, kind)
    assert y.dtype is dtype and y.stride() == torch.empty_like(x).stride()
    check_value(y, x, kind)
    grad = arrange(torch.randn(2, 9, 7, 5, dtype=torch.float64).to(dtype), "transposed")
    (got,) = torch.autograd.grad(y, x, grad)
    x64 = x.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(exact.activation(x64, kind), x64, grad.double())
    rival_x = x.detach().requires_grad_()
    (rival,) = torch.autograd.grad(TORCH[kind](rival_x), rival_x, grad)
    assert_close_fp64(got, wanted, magnitude=2 * grad.double().abs(), rival=rival, label=f"gradient of {kind}")
    assert got.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("kind", NAMED)
def test_the_named_functions_are_the_same_op(kind):
    x = torch.randn(3, 33) * 4
    assert torch.equal(getattr(fastcnn.ops, kind)(x), fastcnn.ops.activation(x, kind))


@kinds
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_all_65536_half_values(kind, dtype):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    y, torch_y = fastcnn.ops.activation(x, kind), TORCH[kind](x)
    finite = x.isfinite() & (x.double().abs() < 80)  # beyond, e^x leaves float32, in torch's formula too
    check_value(y[finite], x[finite], kind)
    torch.testing.assert_close(y, torch_y, equal_nan=True, rtol=2 * torch.finfo(dtype).eps, atol=2.0**-24)
    gradients = []
    for function in (lambda t: fastcnn.ops.activation(t, kind), TORCH[kind]):
        leaf = x[finite].clone().requires_grad_()
        gradients.append(torch.autograd.grad(function(leaf).sum(), leaf)[0])
    torch.testing.assert_close(*gradients, rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


@kinds
@dtypes
def test_nan_inf_zero_and_denormals(kind, dtype):
    tiny, big = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    special = [
        math.nan,
        math.inf,
        -math.inf,
        0.0,
        -0.0,
        tiny,
        -tiny,
        tiny / 4,
        -tiny / 4,
        big,
        -big,
        *KNOTS,
        -88.9,
        88.9,
        -104.0,
        104.0,
    ]
    for shift in range(18):  # every special value at every lane and in the tail
        x = torch.tensor(special[shift:] + special[:shift], dtype=dtype)
        y = fastcnn.ops.activation(x, kind)
        torch.testing.assert_close(y, TORCH[kind](x), equal_nan=True, rtol=4 * torch.finfo(dtype).eps, atol=2 * tiny)
    if kind in ("identity", "hardswish"):
        assert math.copysign(1, fastcnn.ops.activation(torch.tensor([-0.0], dtype=dtype), kind).item()) == -1


@kinds
@dtypes
def test_gradient_on_both_sides_of_each_knot(kind, dtype):
    at = torch.tensor(KNOTS, dtype=dtype)
    below, above = (torch.nextafter(at, torch.full_like(at, end)) for end in (-math.inf, math.inf))
    x = torch.cat([below, at, above])
    grad = torch.full_like(x, 3.0)
    gradients = []
    for function in (lambda t: fastcnn.ops.activation(t, kind), TORCH[kind]):
        leaf = x.clone().requires_grad_()
        gradients.append(torch.autograd.grad(function(leaf), leaf, grad)[0])
    step = 4 * max(
        torch.finfo(dtype).eps, torch.finfo(torch.float32).eps
    )  # torch's slopes hold 1/6 in float32, in float64 too: off by 1.5e-8
    torch.testing.assert_close(*gradients, rtol=step, atol=step)


@kinds
@dtypes
def test_value_at_every_tail(kind, dtype):
    for length in (*range(68), *range(124, 135)):  # below, at and above one unrolled step of every instruction set
        x = (torch.randn(length, dtype=torch.float64) * 4).to(dtype)
        grad = torch.randn(length, dtype=torch.float64).to(dtype)
        guards = Guarded(x), Guarded(grad)
        y = torch.ops.fastcnn.activation(guards[0].x, kind)
        slope = torch.ops.fastcnn.activation_backward(guards[1].x, guards[0].x, kind)
        x64 = x.double().requires_grad_()
        wanted = exact.activation(x64, kind)
        (wanted_slope,) = torch.autograd.grad(wanted, x64, grad.double())
        assert_close_fp64(y, wanted, magnitude=wanted.detach().abs(), label=f"{kind} {length}")
        assert_close_fp64(slope, wanted_slope, magnitude=2 * grad.double().abs(), label=f"{kind} {length} backward")
        for guard in guards:
            guard.check()


@instruction_sets.each
def test_on_the_other_instruction_sets(isa):
    instruction_sets.rerun(__file__, isa, "not other_instruction_sets")


PERMUTED = {
    "nhwc": lambda x: x.permute(0, 3, 1, 2),
    "whcn": lambda x: x.permute(3, 2, 1, 0),
    "5d": lambda x: x.unflatten(3, (2, 2)).transpose(1, 4),
    "scalar": lambda x: x[0, 0, 0, 0],
    "1d": lambda x: x.flatten(),
    "expanded": lambda x: x[:1].expand(4, -1, -1, -1),
    "rows": lambda x: x[:, :, ::2],
    "empty": lambda x: x[:, :0],
    "overlapping": lambda x: x.flatten().as_strided((5, 4), (1, 2)),
    "flipped": lambda x: x.flip(3),
    "one-channel": lambda x: x[:, :1],
}


@pytest.mark.parametrize("name", PERMUTED)
def test_strides_are_those_that_torch_gives(name):
    x = PERMUTED[name](torch.randn(3, 5, 6, 4) * 3)
    y, wanted = (
        fastcnn.ops.activation(x, "silu"),
        F.silu(x) if x.numel() else torch.empty_like(x),
    )  # torch's iterator gives 0 strides to an empty one
    assert y.shape == wanted.shape and y.stride() == wanted.stride()
    check_value(y, x, "silu")
    assert not y.numel() or y.data_ptr() != x.data_ptr()


@kinds
def test_many_threads_give_the_bits_of_one(kind):
    x = torch.randn(5 * 32768 + 13) * 4
    guard, threads = Guarded(x), torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 4):
            torch.set_num_threads(count)
            results.append(fastcnn.ops.activation(guard.x, kind))
    finally:
        torch.set_num_threads(threads)
    guard.check()
    assert all(torch.equal(result, results[0]) for result in results)
    check_value(results[0], x, kind)


@kinds
def test_gradcheck(kind):
    x = away_from_knots(torch.randn(3, 7, dtype=torch.float64) * 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: fastcnn.ops.activation(t, kind), x)
    assert torch.autograd.gradgradcheck(lambda t: fastcnn.ops.activation(t, kind), x)


@pytest.mark.parametrize("name", ["activation", *NAMED])
@pytest.mark.parametrize(
    "x, error, words",
    [
        (torch.ones(3, dtype=torch.int32), TypeError, "x must be float32, float64, float16 or bfloat16, got int32"),
        (torch.ones(3, dtype=torch.complex64), TypeError, "got complex64"),
        (torch.ones(3, dtype=torch.bool), TypeError, "got bool"),
        (torch.eye(3).to_sparse(), TypeError, r"x must be a dense \(strided\) tensor, got a sparse_coo"),
        ([1.0, 2.0], TypeError, "x must be a Tensor, got list"),
        (None, TypeError, "x must be a Tensor, got NoneType"),
    ],
    ids=["int", "complex", "bool", "sparse", "list", "none"],
)
def test_a_wrong_input_is_named(name, x, error, words):
    with pytest.raises(error, match=f"^{name}: .*{words}"):
        fastcnn.ops.activation(x, "relu") if name == "activation" else getattr(fastcnn.ops, name)(x)


@pytest.mark.parametrize("kind", ["gelu", "", "ReLU", None, 3])
def test_an_unknown_kind_is_named_with_those_there_are(kind):
    with pytest.raises(ValueError, match="^activation: kind must be one of identity, relu, relu6, .*, got "):
        fastcnn.ops.activation(torch.ones(2), kind)


def test_the_backward_op_has_no_derivative_of_its_own():
    grad = torch.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="activation_backward.*create_graph"):
        torch.ops.fastcnn.activation_backward(grad, torch.ones(3), "silu").sum().backward()
