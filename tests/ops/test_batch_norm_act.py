# SPDX-License-Identifier: Apache-2.0
"""batch_norm_act: eval and training, values, statistics, gradients, formats, errors."""

import pytest
import torch
import torch.nn.functional as F

from fastcnn.ops import batch_norm_act
from fastcnn.testing import DTYPES, LAYOUTS, Guarded, arrange, assert_close_fp64, assert_format, away_from_knots
from tests import instruction_sets
from tests.cross import exact

CASES = {
    "mobile": (2, 24, 14, 14),
    "vector-tails": (3, 33, 5, 7),
    "one-channel": (4, 1, 9, 11),
    "one-pixel": (9, 113, 1, 1),
    "rows-of-49": (16, 7, 7, 7),
    "long-row": (1, 5, 1, 9001),      # more than two chunks of a channel
    "segments": (1, 31, 66, 71),      # two segments
    "two-values": (1, 6, 1, 2),
}
EPS = 1e-3
cases = pytest.mark.parametrize("shape", CASES.values(), ids=CASES)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
formats = pytest.mark.parametrize("layout", ["nchw", "channels_last"])
modes = pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])


def inputs(shape, dtype, layout, *, vector_dtype=None, residual=True):
    """x, residual, running mean and variance, weight, bias; every channel has its own mean and scale."""
    C = shape[1]
    wide = vector_dtype or torch.promote_types(dtype, torch.float32)
    spread = torch.rand(C, 1, 1, dtype=torch.float64) + 0.5
    centre = torch.randn(C, 1, 1, dtype=torch.float64)
    x = arrange((torch.randn(shape, dtype=torch.float64) * spread + centre).to(dtype), layout)
    added = arrange(torch.randn(shape, dtype=torch.float64).to(dtype), layout) if residual else None
    mean, weight, bias = (torch.randn(C, dtype=torch.float64).to(wide) for _ in range(3))
    return x, added, mean, (torch.rand(C, dtype=torch.float64) + 0.5).to(wide), weight, bias


def double(tensor):
    return None if tensor is None else tensor.detach().double()


def exactly(x, added, mean, var, weight, bias, training, activation):
    z = exact.batch_norm(double(x), double(mean), double(var), double(weight), double(bias), training, EPS)
    return exact.activation(z if added is None else z + double(added), activation)


def torchs(x, added, mean, var, weight, bias, training, activation):
    y = F.batch_norm(x, mean, var, weight, bias, training, 0.3, EPS)
    return exact.activation(y if added is None else y + added, activation)


@cases
@formats
@dtypes
@modes
def test_value_and_running_statistics(shape, layout, dtype, training):
    for activation, with_residual in (("identity", False), ("relu6", True), ("silu", True)):
        x, added, mean, var, weight, bias = inputs(shape, dtype, layout, residual=with_residual)
        moved, spread = mean.clone(), var.clone()
        y = batch_norm_act(x, moved, spread, weight, bias, added, training, 0.3, EPS, activation)
        assert y.dtype is dtype
        assert_format(y, x)
        rival = torchs(x, added, mean.clone(), var.clone(), weight, bias, training, activation)
        wanted = exactly(x, added, mean, var, weight, bias, training, activation)
        assert_close_fp64(y, wanted, reduction=4, rival=rival, label=activation)
        pair = exact.running(double(x), double(mean), double(var), 0.3) if training else (double(mean), double(var))
        for name, got, right in zip(("running_mean", "running_var"), (moved, spread), pair, strict=True):
            assert_close_fp64(got, right, reduction=16, magnitude=right.abs() + double(x).abs().mean(), label=name)


@formats
@pytest.mark.parametrize("shape", [(4, 40, 56, 56), (16, 96, 7, 7), (2, 3, 300, 301)], ids=str)
@pytest.mark.parametrize("offset", [0.0, 1e3, -1e5])
def test_value_of_the_statistics_when_the_mean_is_far_from_zero(shape, layout, offset):
    x = arrange(torch.randn(shape) * (torch.rand(shape[1], 1, 1) + 0.1) + offset, layout)
    op = torch.ops.fastcnn.batch_norm_act_train
    _, mean, invstd, *_ = op(x, None, None, None, None, None, 0.1, EPS, "identity")
    _, torch_mean, torch_invstd = torch.native_batch_norm(x, None, None, None, None, True, 0.1, EPS)
    values = x.double().transpose(0, 1).flatten(1)
    assert_close_fp64(mean, values.mean(1), reduction=1, magnitude=values.abs().mean(), rival=torch_mean, label="mean")
    wanted = (values.var(1, correction=0) + EPS).rsqrt()
    assert_close_fp64(invstd, wanted, reduction=4, rival=torch_invstd, label="invstd")


@pytest.mark.parametrize("order", ["rising", "outlier-first", "constant"])
@formats
def test_value_of_the_variance_when_the_first_pixels_mislead(order, layout):
    """The centre that the sums start from comes from the first pixels."""
    x = torch.randn(2, 20, 40, 50)
    if order == "rising":
        x += torch.arange(2.0).view(2, 1, 1, 1) * 1e4 + torch.arange(2000.0).view(1, 1, 40, 50)
    elif order == "outlier-first":
        x[0, :, 0, 0] = 1e6
    else:
        x = torch.full_like(x, 3.3)
    x = arrange(x, layout)
    _, mean, invstd, *_ = torch.ops.fastcnn.batch_norm_act_train(x, None, None, None, None, None, 0.1, EPS, "identity")
    values = x.double().transpose(0, 1).flatten(1)
    assert_close_fp64(mean, values.mean(1), reduction=16, magnitude=values.abs().mean(), label="mean")
    assert_close_fp64(invstd, (values.var(1, correction=0) + EPS).rsqrt(), reduction=4, label="invstd")


@pytest.mark.parametrize("shape", [(3, 5, 3, 4), (2, 33, 2, 3), (16, 3, 1, 1)], ids=str)
@formats
@modes
@pytest.mark.parametrize("activation", ["identity", "relu", "hardswish", "silu"])
def test_gradcheck_twice(shape, layout, training, activation):
    x, added, mean, var, weight, bias = inputs(shape, torch.float64, layout)
    if activation in ("relu", "hardswish"):
        weight, bias, added = torch.full_like(weight, 0.01), torch.full_like(bias, 1.0), added * 0.01
    leaves = [t.requires_grad_() for t in (x, weight, bias, added)]

    def function(x, weight, bias, added):
        return batch_norm_act(x, mean.clone(), var.clone(), weight, bias, added, training, 0.3, EPS, activation)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def gradients(function, x, added, mean, var, weight, bias, training, activation, grad):
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias, added)]
    y = function(leaves[0], leaves[3], mean.clone(), var.clone(), leaves[1], leaves[2], training, activation)
    return torch.autograd.grad(y, leaves, grad)


def ours(x, added, mean, var, weight, bias, training, activation):
    return batch_norm_act(x, mean, var, weight, bias, added, training, 0.3, EPS, activation)


@cases
@formats
@modes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_value_of_the_gradients(shape, layout, training, dtype):
    for activation in ("identity", "silu", "hardswish"):
        x, added, mean, var, weight, bias = inputs(shape, dtype, layout)
        z = exactly(x, added, mean, var, weight, bias, training, "identity")
        added = arrange((added.double() + away_from_knots(z, distance=0.1) - z).to(dtype), layout)
        grad = torch.randn(shape, dtype=torch.float64).to(dtype)
        arguments = (mean, var, weight, bias, training, activation)
        got = gradients(ours, x, added, *arguments, grad)
        rival = gradients(torchs, x, added, *arguments, grad)
        wide = (double(t) for t in (x, added, mean, var, weight, bias))
        wanted = gradients(torchs, *wide, training, activation, grad.double())
        assert got[0].stride() == x.stride() and got[3].stride() == x.stride()
        for name, value, other, right in zip(("x", "weight", "bias", "residual"), got, rival, wanted, strict=True):
            size = 8 * right.abs().max() + grad.double().abs().max()
            assert_close_fp64(value, right, reduction=16, magnitude=size, rival=other, label=f"{activation} {name}")


@modes
def test_gradients_of_some_inputs_only(training):
    x, added, mean, var, weight, bias = inputs((2, 9, 5, 5), torch.float32, "nchw")
    leaves = {"x": x, "weight": weight, "bias": bias, "residual": added}
    reference = gradients(ours, x, added, mean, var, weight, bias, training, "silu", torch.ones_like(x))
    for i, (name, leaf) in enumerate(leaves.items()):
        single = leaf.clone().requires_grad_()
        given = {**leaves, name: single}
        moved = mean.clone(), var.clone()
        y = ours(given["x"], given["residual"], *moved, given["weight"], given["bias"], training, "silu")
        y.sum().backward()
        assert torch.equal(single.grad, reference[i]), name


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 5), (2, 6, 3, 4, 5)], ids=str)
@modes
@pytest.mark.parametrize("order", ["contiguous", "transposed", "channels_last_3d"])
def test_other_ranks_are_those_of_torch(shape, training, order):
    x = torch.randn(shape)
    if order == "transposed":
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    elif order == "channels_last_3d" and x.dim() == 5:
        x = x.contiguous(memory_format=torch.channels_last_3d)
    vectors = [torch.rand(6) + 0.5 for _ in range(4)]
    y = batch_norm_act(x, *(v.clone() for v in vectors), None, training)
    wanted = F.batch_norm(x, *(v.clone() for v in vectors), training)
    assert y.stride() == wanted.stride()
    torch.testing.assert_close(y, wanted)


@pytest.mark.parametrize("layout", [*LAYOUTS, "expanded"])
@modes
def test_strided_and_misaligned_inputs_change_nothing(layout, training):
    x, added, mean, var, weight, bias = inputs((3, 19, 6, 7), torch.float32, "nchw")
    if layout == "expanded":
        x, added = x[:1].expand(3, -1, -1, -1), added[..., :1].expand(-1, -1, -1, 7)
    plain = x.contiguous(), added.contiguous()
    dense = ours(*plain, mean.clone(), var.clone(), weight, bias, training, "relu")
    given = [t if layout == "expanded" else arrange(t, layout) for t in (x, added)]
    guards = [Guarded(t) for t in given] if layout in ("nchw", "channels_last") else []
    x, added = [g.x for g in guards] or given
    y = ours(x, added, mean.clone(), var.clone(), weight, bias, training, "relu")
    assert_format(y, x)
    torch.testing.assert_close(y, dense)
    for guard in guards:
        guard.check()


@formats
@modes
def test_a_nan_stays_in_its_channel_and_an_infinity_too(layout, training):
    x, added, mean, var, weight, bias = inputs((2, 18, 5, 6), torch.float32, layout)
    clean = batch_norm_act(x, mean.clone(), var.clone(), weight, bias, added, training)
    x[1, 3, 2, 2], x[0, 17, 4, 5] = torch.nan, torch.inf
    y = batch_norm_act(x, mean, var, weight, bias, added, training)
    others = [c for c in range(18) if c not in (3, 17)]
    assert torch.equal(y[:, others], clean[:, others])
    assert y[1, 3, 2, 2].isnan() and not y[0, 17, 4, 5].isfinite()
    if not training:
        assert int((~y.isfinite()).sum()) == 2


@formats
def test_the_same_bits_every_time_and_for_every_number_of_threads(layout):
    x, added, mean, var, weight, bias = inputs((3, 50, 65, 33), torch.float32, layout)
    results, threads = [], torch.get_num_threads()
    for count in (1, 2, 3, 1):
        torch.set_num_threads(count)
        moved = mean.clone(), var.clone()
        y = batch_norm_act(x, *moved, weight, bias, added, True, activation="silu")
        slopes = gradients(ours, x, added, mean, var, weight, bias, True, "silu", torch.ones_like(x))
        results.append((y, *moved, *slopes))
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_an_empty_batch_leaves_the_running_statistics():
    mean, var, weight = torch.ones(4), torch.full((4,), 2.0), torch.ones(4, requires_grad=True)
    y = batch_norm_act(torch.zeros(0, 4, 3, 3), mean, var, weight, training=True, momentum=0.5)
    y.sum().backward()
    assert y.shape == (0, 4, 3, 3) and mean.tolist() == [1.0] * 4 and var.tolist() == [2.0] * 4
    assert weight.grad.tolist() == [0.0] * 4


def test_vectors_in_half_precision_and_autocast():
    x, added, mean, var, weight, bias = inputs((2, 8, 5, 5), torch.bfloat16, "nchw", vector_dtype=torch.bfloat16)
    wide = [t.float() for t in (mean, var, weight, bias)]
    y = batch_norm_act(x, mean, var, weight, bias, added, True)
    assert mean.dtype is torch.bfloat16 and torch.equal(y, batch_norm_act(x, *wide, added, True))
    with torch.autocast("cpu", torch.bfloat16):
        y = batch_norm_act(x, *wide, added.float(), False)
    assert y.dtype is torch.bfloat16 and torch.equal(y, batch_norm_act(x, *wide, added, False))


@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_opcheck(layout):
    x, added, mean, var, weight, bias = inputs((2, 5, 4, 3), torch.float32, layout)
    leaves = [t.requires_grad_() for t in (weight, bias, added)]
    ops = torch.ops.fastcnn
    torch.library.opcheck(ops.batch_norm_act.default, (x.requires_grad_(), mean, var, *leaves, EPS, "silu"))
    torch.library.opcheck(ops.batch_norm_act_train.default, (x, mean, var, *leaves, 0.1, EPS, "relu6"))


ERRORS = {
    "one-value": ({"x": torch.ones(1, 3, 1, 1), "training": True}, ValueError,
                  "x must have more than 1 value per channel in training, got \\[1, 3, 1, 1\\]"),
    "rank": ({"x": torch.ones(3)}, ValueError, "x must have at least 2 dimensions \\[N, C, \\*\\], got \\[3\\]"),
    "dtype": ({"x": torch.ones(2, 3, 2, 2, dtype=torch.int64)}, TypeError, "x must be float32, .* got int64"),
    "mean": ({"running_mean": torch.ones(4)}, ValueError, "running_mean must be \\[C = 3\\], got \\[4\\]"),
    "weight": ({"weight": torch.ones(1)}, ValueError, "weight must be \\[C = 3\\], got \\[1\\]"),
    "bias": ({"bias": torch.ones(3).double()}, TypeError, "bias must have the dtype of x, float32 or float32, got float64"),
    "residual": ({"residual": torch.ones(2, 3, 2, 1)}, ValueError, "residual must be \\[2, 3, 2, 2\\], got \\[2, 3, 2, 1\\]"),
    "one-statistic": ({"running_var": None}, ValueError, "running_mean and running_var must be given together"),
    "no-statistics": ({"running_mean": None, "running_var": None}, ValueError,
                      "running_mean and running_var must be given when training is False"),
    "eps": ({"eps": -1e-5}, ValueError, "eps must be at least 0, got -1e-05"),
    "eps-training": ({"eps": 0.0, "training": True}, ValueError, "eps must be positive in training, got 0.0"),
    "momentum": ({"momentum": None, "training": True}, ValueError, "momentum must be a number .* got None"),
    "activation": ({"activation": "gelu"}, ValueError, "activation must be one of identity, .* got 'gelu'"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "words"), ERRORS.values(), ids=ERRORS)
def test_a_wrong_argument_is_named(change, kind, words):
    given = {"x": torch.ones(2, 3, 2, 2), "running_mean": torch.zeros(3), "running_var": torch.ones(3), **change}
    with pytest.raises(kind, match=f"^batch_norm_act: {words}"):
        batch_norm_act(**given)


@instruction_sets.each
def test_on_the_other_instruction_sets(isa):
    instruction_sets.rerun(__file__, isa, "test_value")
