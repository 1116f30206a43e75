# SPDX-License-Identifier: Apache-2.0
"""Properties of the values: P1 to P8 over drawn convolutions, batch norms, pools, squeeze-excitations and shuffles."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor

from fastcnn import ops
from fastcnn.testing import DTYPES, UNIT, allowed_error, arrange, assert_close_fp64, assert_format
from tests.cross import exact
from tests.cross.drawn import SMOOTH, Conv, convs, holds_for, maps


def close(c: Conv, got: Tensor, wanted: Tensor, label: str, factor: float = 1.0) -> None:
    """Two ways to the same convolution, each with its own rounding."""
    allowed = 2 * factor * allowed_error(wanted.double(), c.dtype, c.reduction, c.magnitude(c.residual))
    error = (got.double() - wanted.double()).abs()
    assert bool((error <= allowed).all()), f"{label}: off by {(error / allowed).max().item():.3g} times the allowed"


@holds_for(convs(dtypes=(torch.float32, *DTYPES)), 40)
def p1_value_is_that_of_float64_and_the_format_that_of_x(c: Conv) -> None:
    y = c.ours(c.x, c.weight, c.bias, c.residual, c.kind)
    arguments = (c.x, c.weight, c.bias, c.residual, c.kind)
    rival = c.torch(*arguments) if c.N else None
    assert y.dtype is c.dtype
    assert_close_fp64(y, c.exact(*arguments), reduction=c.reduction, magnitude=c.magnitude(c.residual), rival=rival)
    if y.numel():
        assert_format(y, c.x)


@holds_for(convs(kinds=SMOOTH, least_batch=1, largest=1500), 15)
def p1_gradients_are_those_of_float64(c: Conv) -> None:
    leaves = [t for t in (c.x, c.weight, c.bias, c.residual) if t is not None]
    grad = c.map(c.N, *c.out_shape)

    def gradients(function: Callable, cast: Callable) -> tuple[Tensor, ...]:
        given = [cast(t).detach().requires_grad_() for t in leaves]
        it = iter(given)
        arguments = [None if t is None else next(it) for t in (c.x, c.weight, c.bias, c.residual)]
        return torch.autograd.grad(function(*arguments, c.kind), given, cast(grad))

    wanted = gradients(c.exact, lambda t: t.double())
    rivals = gradients(c.torch, lambda t: t)
    for got, value, rival in zip(gradients(c.ours, lambda t: t), wanted, rivals, strict=True):
        assert_close_fp64(
            got, value, reduction=c.reduction + c.N * c.out_shape[1] * c.out_shape[2], rival=rival, label="gradient"
        )


def _batch_norm_magnitude(z: Tensor, gamma: Tensor, beta: Tensor, invstd: Tensor) -> Tensor:
    column = (1, -1, 1, 1)
    return z.abs().amax((0, 2, 3)).view(column) * (gamma.abs() * invstd).view(column) * 4 + beta.abs().view(column)


@holds_for(st.tuples(convs(dtypes=(torch.float32, torch.float64)), st.sampled_from((1e-5, 1e-3, 0.3))), 20)
def p1_batch_norm_in_eval_and_in_training(drawn: tuple[Conv, float]) -> None:
    c, eps = drawn
    gamma, beta, mean, var = c.vector(), c.vector(), c.vector(), c.vector(positive=True)
    g64, b64, m64, v64 = (t.double() for t in (gamma, beta, mean, var))
    bias = None if c.bias is None else c.bias.double()
    z = exact.convolution(c.x.double(), c.weight.double(), bias, *c.geometry)
    stride, padding, dilation, groups = c.geometry
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    for training in (False, True):
        count = z.numel() // max(c.out, 1)
        if training and count < 2:
            continue
        running = [mean.clone(), var.clone()]
        y = ops.conv_bn_act(
            c.x,
            c.weight,
            gamma,
            beta,
            *running,
            c.bias,
            c.residual,
            **geometry,
            training=training,
            momentum=0.3,
            eps=eps,
            activation=c.kind,
        )
        wanted = exact.batch_norm(z, m64, v64, g64, b64, training, eps)
        wanted = exact.activation(wanted if c.residual is None else wanted + c.residual.double(), c.kind)
        invstd = ((z.var((0, 2, 3), correction=0) if training else v64) + eps).rsqrt()
        size = c.magnitude() if z.numel() else z
        size = _batch_norm_magnitude(
            torch.cat([size, m64.abs().view(1, -1, 1, 1).expand(1, -1, *z.shape[2:])]), g64, b64, invstd
        )
        size = size + (0 if c.residual is None else c.residual.double().abs().amax() if c.residual.numel() else 0)
        assert_close_fp64(y, wanted, reduction=c.reduction, magnitude=size, label=f"{training=}")
        if training:
            for got, new, scale in zip(running, exact.running(z, m64, v64, 0.3), (1, 2), strict=True):
                assert_close_fp64(
                    got,
                    new,
                    reduction=c.reduction,
                    magnitude=c.magnitude().abs().amax() ** scale,
                    label="running statistics",
                )
        else:
            assert torch.equal(running[0], mean) and torch.equal(running[1], var)


@holds_for(st.tuples(maps(), st.integers(1, 9)), 20)
def p1_pool_and_squeeze_excite(drawn: tuple) -> None:
    x, R = drawn
    C, H, W, dtype = *x.shape[1:], x.dtype
    pooled = ops.global_avg_pool(x)
    assert_close_fp64(
        pooled, exact.global_avg_pool(x.double()), reduction=H * W, magnitude=x.double().abs().mean((2, 3), True)
    )
    weights = [torch.randn(*s, dtype=torch.float64).to(dtype) for s in ((R, C), (R,), (C, R), (C,))]
    for kind, gate in (("relu", "hardsigmoid"), ("silu", "sigmoid")):
        y = ops.se_scale(x, *weights, kind, gate)
        wide = [w.double() for w in weights]
        wanted = exact.se_scale(x.double(), *wide, kind, gate)
        size = 1 + (x.double().abs().mean((2, 3)) @ wide[0].abs().T + wide[1].abs()) @ wide[2].abs().T + wide[3].abs()
        assert_close_fp64(
            y,
            wanted,
            reduction=C + R + H * W,
            magnitude=x.double().abs() * size[:, :, None, None],
            label=f"se_scale {kind}",
        )
        assert_format(y, x)


@holds_for(convs(dtypes=(torch.float32, torch.bfloat16), layouts=("nchw",)), 15)
def p2_strides_do_not_change_a_bit(c: Conv) -> None:
    y = c.ours(c.x, c.weight, c.bias, c.residual, c.kind)
    for layout in ("sliced", "transposed", "offset"):
        x, weight = arrange(c.x, layout), arrange(c.weight, layout)
        residual = None if c.residual is None else arrange(c.residual, layout)
        assert torch.equal(c.ours(x, weight, c.bias, residual, c.kind), y), layout


@holds_for(convs(least_batch=2), 10)
def p3_a_batch_is_its_samples(c: Conv) -> None:
    y = c.ours(c.x, c.weight, c.bias, c.residual, c.kind)
    one_by_one = [
        c.ours(c.x[i : i + 1], c.weight, c.bias, None if c.residual is None else c.residual[i : i + 1], c.kind)
        for i in range(c.N)
    ]
    close(c, y, torch.cat(one_by_one), "batch split")


@holds_for(convs(plain=True, least_batch=1), 15)
def p4_linear_in_x_and_in_weight(c: Conv) -> None:
    other, kernel = c.map(*c.x.shape), c.random(*c.weight.shape)
    close(c, c.ours(2 * c.x, c.weight), 2 * c.ours(c.x, c.weight), "scaled by 2", factor=2)
    total = c.ours(c.x, c.weight).double() + c.ours(other, c.weight).double()
    error = (c.ours(c.x + other, c.weight).double() - total).abs().amax()
    size = max(
        c.magnitude().amax(), exact.convolution(other.double().abs(), c.weight.double().abs(), None, *c.geometry).amax()
    )
    assert error <= 8 * math.sqrt(c.reduction) * 2.0**-23 * size
    total = c.ours(c.x, c.weight).double() + c.ours(c.x, kernel).double()
    size = max(
        c.magnitude().amax(), exact.convolution(c.x.double().abs(), kernel.double().abs(), None, *c.geometry).amax()
    )
    assert (c.ours(c.x, c.weight + kernel).double() - total).abs().amax() <= 8 * math.sqrt(
        c.reduction
    ) * 2.0**-23 * size


@holds_for(convs(depthwise=True, least_batch=1), 15)
def p4_permuted_channels_are_permuted_results(c: Conv) -> None:
    order, m = torch.randperm(c.C, generator=c.generator), c.out // c.C
    outs = (order[:, None] * m + torch.arange(m)).flatten()
    y = c.ours(c.x, c.weight, c.bias, c.residual, c.kind)
    weight, bias = c.weight[outs], None if c.bias is None else c.bias[outs]
    got = c.ours(c.x[:, order], weight, bias, None if c.residual is None else c.residual[:, outs], c.kind)
    close(c, got[:, outs.argsort()], y, "permuted")


@holds_for(st.tuples(convs(plain=True, least_batch=1), st.integers(1, 3), st.integers(1, 3)), 12)
def p4_a_moved_picture_moves_the_result(drawn: tuple[Conv, int, int]) -> None:
    c, rows, columns = drawn
    stride, kernel = exact._pair(c.stride), c.kernel
    c.padding = tuple(
        exact._pair(c.dilation)[d] * (kernel[d] - 1) + stride[d] * move for d, move in ((0, rows), (1, columns))
    )
    wide = torch.nn.functional.pad(c.x, (0, columns * stride[1], 0, rows * stride[0]))
    y, moved = c.ours(wide, c.weight), c.ours(wide.roll((rows * stride[0], columns * stride[1]), (2, 3)), c.weight)
    assert y.shape == moved.shape
    step = (
        8
        * math.sqrt(c.reduction)
        * UNIT[torch.float32]
        * exact.convolution(wide.double().abs(), c.weight.double().abs(), None, *c.geometry).amax()
    )
    assert (moved[:, :, rows:, columns:].double() - y[:, :, :-rows, :-columns].double()).abs().amax() <= step


@holds_for(convs(depthwise=True, plain=True, dtypes=DTYPES), 15)
def p5_a_delta_crops_and_pads_bit_by_bit(c: Conv) -> None:
    i, j = (int(torch.randint(k, (), generator=c.generator)) for k in c.kernel)
    delta = torch.zeros_like(c.weight)
    delta[:, :, i, j] = 1
    wanted = c.exact(c.x, delta)
    assert torch.equal(c.ours(c.x, delta).double(), wanted)


@holds_for(convs(dtypes=DTYPES), 10)
def p5_without_weights_the_bias_is_left(c: Conv) -> None:
    bias = c.random(c.out)
    y = c.ours(c.x, torch.zeros_like(c.weight), bias)
    assert torch.equal(y, bias.view(1, -1, 1, 1).expand_as(y))


@holds_for(
    st.integers(1, 9).flatmap(lambda g: st.tuples(st.just(g), maps(tuple(g * n for n in (1, 2, 3, 7, 16, 33))))), 40
)
def p6_the_shuffle_is_a_bijection(drawn: tuple[int, Tensor]) -> None:
    groups, x = drawn
    per_group = x.shape[1] // groups
    if x.numel():
        x[0, -1, 0, 0] = math.nan
    y = ops.channel_shuffle(x, groups)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]

    def same(a: Tensor, b: Tensor) -> bool:
        return torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))

    assert same(y, exact.channel_shuffle(x, groups))
    assert same(ops.channel_shuffle(y, per_group), x) and same(ops.channel_shuffle(y, groups, inverse=True), x)
    if x.numel():
        assert_format(y, x)


@holds_for(convs(depthwise=True, plain=True, kinds=exact.KINDS), 15)
def p7_a_fused_activation_is_the_activation(c: Conv) -> None:
    """Knots included: at -3, 0, 3 and 6 the slope is the one of the activation alone, which is torch's."""
    knots = torch.tensor([-3.0, 3.0, 0.0, -0.0, 6.0, -4.0, 7.0, 2.999])
    flat = c.x.flatten()
    flat[: min(flat.numel(), 8)] = knots[: flat.numel()]
    x, ones = arrange(flat.view(c.x.shape), c.layout), torch.ones(c.C, 1, 1, 1)
    for kind in exact.KINDS:
        fused, alone = x.detach().requires_grad_(), x.detach().requires_grad_()
        y, wanted = ops.depthwise_conv2d(fused, ones, activation=kind), ops.activation(alone, kind)
        slopes = torch.autograd.grad(y.sum(), fused) + torch.autograd.grad(wanted.sum(), alone)
        torch.testing.assert_close(y, wanted, rtol=4 * UNIT[torch.float32], atol=1e-30)
        torch.testing.assert_close(*slopes, rtol=0, atol=8 * UNIT[torch.float32])


@holds_for(convs(), 15)
def p8_a_folded_batch_norm_is_the_batch_norm(c: Conv) -> None:
    gamma, beta, mean, var = c.vector(), c.vector(), c.vector(), c.vector(positive=True)
    scale = gamma.double() / (var.double() + 1e-3).sqrt()
    bias = (beta - mean * scale) if c.bias is None else (beta + (c.bias - mean) * scale)
    folded = c.weight.double() * scale.view(-1, 1, 1, 1)
    geometry = dict(zip(("stride", "padding", "dilation", "groups"), c.geometry, strict=True))
    y = ops.conv_bn_act(
        c.x, c.weight, gamma, beta, mean, var, c.bias, c.residual, **geometry, eps=1e-3, activation=c.kind
    )
    wanted = c.exact(c.x, folded, bias, c.residual, c.kind)
    size = exact.convolution(c.x.double().abs(), folded.abs(), None, *c.geometry) + (
        beta.abs() + mean.abs() * scale.abs()
    ).view(1, -1, 1, 1)
    size = (
        size
        + (0 if c.bias is None else (c.bias * scale).abs().view(1, -1, 1, 1))
        + (0 if c.residual is None else c.residual.double().abs())
    )
    assert_close_fp64(y, wanted, reduction=c.reduction, magnitude=size, label="folded")
