# SPDX-License-Identifier: Apache-2.0
"""Properties of the ops as citizens: P9 to P13, fakes, determinism, memory, gradients, where a NaN goes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from hypothesis import assume
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastcnn import ops
from fastcnn.testing import UNIT, Guarded
from tests.cross import exact
from tests.cross.drawn import SMOOTH, Conv, convs, holds_for, maps


@holds_for(convs(dtypes=(torch.float32, torch.bfloat16)), 25)
def p9_the_fake_is_shaped_as_the_real(c: Conv) -> None:
    real = c.ours(c.x, c.weight, c.bias, c.residual, c.kind)
    with FakeTensorMode() as mode:
        given = [None if t is None else mode.from_tensor(t) for t in (c.x, c.weight, c.bias, c.residual)]
        fake = c.ours(*given, c.kind)
    assert fake.shape == real.shape and fake.dtype is real.dtype
    assert fake.stride() == real.stride() or not real.numel()


def _train_step(c: Conv) -> list[Tensor]:
    """The result of a training step, its running statistics and every gradient."""
    leaves = [t.detach().clone().requires_grad_() for t in (c.x, c.weight)]
    gamma, beta = (
        torch.linspace(a, b, c.out, dtype=torch.promote_types(c.dtype, torch.float32)).requires_grad_()
        for a, b in ((0.5, 2), (-1, 1))
    )
    running = [torch.zeros_like(gamma), torch.ones_like(gamma)]
    geometry = dict(zip(("stride", "padding", "dilation", "groups"), c.geometry, strict=True))
    training = c.N * c.out_shape[1] * c.out_shape[2] > 1
    y = ops.conv_bn_act(
        *leaves, gamma, beta, *running, None, c.residual, **geometry, training=training, activation=c.kind
    )
    gradients = torch.autograd.grad((y * torch.arange(y.shape[-1]).add(1).to(y.dtype)).sum(), [*leaves, gamma, beta])
    return [y.detach(), *running, *gradients]


@holds_for(convs(dtypes=(torch.float32, torch.bfloat16), largest=20000, least_batch=1), 16)
def p10_every_run_gives_the_same_bits_on_any_number_of_threads(c: Conv) -> None:
    """Of the kernels of ours: ATen sums other convolutions, and their gradients, by thread."""
    pointwise = c.kernel == (1, 1) and c.groups == 1
    assume((c.stride, c.padding) in ((1, 0), (1, "same")) if pointwise else c.depthwise)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    threads = torch.get_num_threads()
    first = None
    try:
        for count in (1, 2, 3, 2, 2):
            torch.set_num_threads(count)
            results = [*_train_step(c), c.ours(c.x, c.weight, c.bias, c.residual, c.kind)]
            results = [t.contiguous().view(bits[t.element_size()]) for t in results]
            first = first or results
            for i, (a, b) in enumerate(zip(results, first, strict=True)):
                assert torch.equal(a, b), f"result {i} on {count} threads"
    finally:
        torch.set_num_threads(threads)


def _guarded_call(function: Callable, tensors: list[Tensor | None]) -> None:
    """Forward and backward on tensors between NaNs: none of these gets into a result, and nothing is written."""
    guards = [None if t is None else Guarded(t) for t in tensors]
    y = function(*(None if g is None else g.x.requires_grad_() for g in guards))
    grad = Guarded(torch.ones_like(y))
    results = [y, *torch.autograd.grad(y, [g.x for g in guards if g is not None], grad.x)]
    assert all(bool(t.isfinite().all()) for t in results), "something outside of an input was read"
    for i, guard in enumerate((*guards, grad)):
        if guard is not None:
            guard.check(f"tensor {i}")


@holds_for(
    convs(dtypes=(torch.float32, torch.bfloat16, torch.float64), layouts=("nchw", "channels_last"), largest=1500), 25
)
def p11_convolutions_keep_to_their_memory(c: Conv) -> None:
    _guarded_call(lambda x, w, b, r: c.ours(x, w, b, r, c.kind), [c.x, c.weight, c.bias, c.residual])
    gamma, beta = c.vector(), c.vector()
    geometry = dict(zip(("stride", "padding", "dilation", "groups"), c.geometry, strict=True))
    for training in (False, c.N * c.out_shape[1] * c.out_shape[2] > 1):
        mean, var = c.vector(), c.vector(positive=True)

        def call(x, w, g, b, r, mean=mean, var=var, training=training):
            return ops.conv_bn_act(x, w, g, b, mean, var, None, r, **geometry, training=training, activation=c.kind)

        _guarded_call(call, [c.x, c.weight, gamma, beta, c.residual])


@holds_for(maps(), 25)
def p11_the_other_ops_keep_to_their_memory(x: Tensor) -> None:
    (N, C, H, W), dtype = x.shape, x.dtype
    residual = torch.randn_like(x)
    _guarded_call(lambda t: ops.channel_shuffle(t, C), [x])
    _guarded_call(ops.global_avg_pool, [x])
    _guarded_call(lambda t: ops.max_pool2d(t, (min(H, 3), min(W, 2)), 2, (min(H, 3) // 2, 0)), [x])
    _guarded_call(ops.hardswish, [x])
    weights = [torch.randn(s, dtype=torch.float64).to(dtype) for s in ((5, C), (5,), (C, 5), (C,))]
    _guarded_call(lambda *t: ops.se_scale(*t), [x, *weights])
    mean, var = torch.zeros(C).to(dtype), torch.ones(C).to(dtype)
    for training in (False, N * H * W > 1):
        _guarded_call(
            lambda x, r, g, b, t=training: ops.batch_norm_act(x, mean, var, g, b, r, t),
            [x, residual, weights[3], weights[3].clone()],
        )


@holds_for(convs(dtypes=(torch.float64,), kinds=SMOOTH, largest=120, least_batch=1), 12)
def p12_gradcheck(c: Conv) -> None:
    tensors = [t.detach().requires_grad_() for t in (c.x, c.weight, c.bias, c.residual) if t is not None]

    def function(*given: Tensor) -> Tensor:
        it = iter(given)
        return c.ours(*(None if t is None else next(it) for t in (c.x, c.weight, c.bias, c.residual)), c.kind)

    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)


@holds_for(convs(plain=True, largest=20000, dtypes=(torch.float32, torch.float64, torch.bfloat16)), 20)
def p12_the_backward_is_the_adjoint(c: Conv) -> None:
    x, weight = c.x.detach().requires_grad_(), c.weight.detach().requires_grad_()
    y = c.ours(x, weight)
    grad = c.map(*y.shape)
    grad_x, grad_weight = torch.autograd.grad(y, (x, weight), grad)
    left = (y.double() * grad.double()).sum()
    size = (c.magnitude() * grad.double().abs()).sum()
    step = (
        4 * math.sqrt(c.reduction + grad[:, 0].numel()) * UNIT[torch.promote_types(c.dtype, torch.float32)]
        + UNIT[c.dtype]
    ) * size + 1e-300
    for name, a, b in (("x", x, grad_x), ("weight", weight, grad_weight)):
        assert (left - (a.double() * b.double()).sum()).abs() <= step, f"gradient of {name}"


@holds_for(convs(least_batch=1, dtypes=(torch.float32, torch.bfloat16)), 20)
def p13_a_nan_reaches_exactly_its_receptive_field(c: Conv) -> None:
    n, channel, row, column = (int(torch.randint(size, (), generator=c.generator)) for size in c.x.shape)
    x = c.x.clone()
    x[n, channel, row, column] = math.nan
    mark = torch.zeros(c.x.shape, dtype=torch.float64)
    mark[n, channel, row, column] = 1
    reached = exact.convolution(mark, torch.ones(c.weight.shape, dtype=torch.float64), None, *c.geometry) > 0
    weight = torch.where(c.weight == 0, 1.0, c.weight.float()).to(c.dtype)
    y = c.ours(x, weight, c.bias, c.residual, c.kind)
    found = y.isnan()
    if c.dtype is torch.bfloat16 and not c.depthwise and c.groups > 1:
        found = found & reached  # ATen's: oneDNN multiplies what lies beside a group by zeros, and 0 * nan is nan
    assert torch.equal(found, reached)
