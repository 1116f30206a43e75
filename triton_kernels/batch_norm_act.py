# SPDX-License-Identifier: Apache-2.0
"""Batch norm with residual and activation: eval in one pass, training in two over x, backward in two over x and grad.

Reads and writes of a map: eval 2 (3 with residual), training 3 (4), backward 5 (8 with residual and its gradient): the
activation and the normalised x are computed again instead of kept. DRAM bandwidth is the roof of all of them.

What streams has tiles of 2048 elements (ROWS x LANES, two 16-byte accesses a thread in float16) and asks for its
channels' vectors once a tile. What sums owns a chunk of CHANNELS channels, ELEMENTS at a time; chunks are cut until
about 512 programs run. Statistics: each program takes mean and squared deviations of its chunk tile by tile and merges
them by Chan's formula, a second kernel merges the chunks, always in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _host
from ._epilogue import activate, affine, element, number, slope, tile
from ._reduce import sum_parts


@triton.jit
def _batch_norm_act_apply_kernel(
    x, residual, y, mean, spread, weight, bias, eps_bits, rows, units, C, P, ACTIVATION: tl.constexpr,
    VARIANCE: tl.constexpr, VEC: tl.constexpr, LAST: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
    COMPUTE: tl.constexpr,
):  # fmt: skip
    """Bytes: x 1.00, residual 1.00, y 1.00."""
    o, m, _, i_c, m_c = tile(rows, units, C, P, VEC, LAST, ROWS, LANES)
    b_mean, b_invstd, b_weight, b_bias = affine(mean, spread, weight, bias, i_c, m_c, eps_bits, VARIANCE, COMPUTE)
    b_z = (tl.load(x + o, mask=m).to(COMPUTE) - b_mean) * (b_invstd * b_weight) + b_bias
    if residual is not None:
        b_z += tl.load(residual + o, mask=m).to(COMPUTE)
    tl.store(y + o, activate(b_z, ACTIVATION).to(y.dtype.element_ty), mask=m)


@triton.jit
def _batch_norm_act_statistics_kernel(
    x, means, squares, elements, chunk, c_units, p_units, VEC: tl.constexpr, LAST: tl.constexpr,
    ELEMENTS: tl.constexpr, CHANNELS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Bytes: x 1.00, means and squares 1.00 (2 C for each chunk)."""
    C = c_units * VEC if LAST else c_units
    i_c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    first = tl.program_id(1).to(tl.int64) * chunk
    seen = tl.zeros((1, 1), COMPUTE)
    b_mean = tl.zeros((1, CHANNELS), COMPUTE)
    b_square = tl.zeros((1, CHANNELS), COMPUTE)
    for e in range(0, tl.minimum(chunk, elements - first), ELEMENTS):
        i_e = first + e + tl.arange(0, ELEMENTS)[:, None]
        m = (i_e < elements) & (i_c < C)
        b_x = tl.load(x + element(first + e, i_c, c_units, p_units, VEC, LAST, ELEMENTS), mask=m, other=0.0).to(COMPUTE)
        count = tl.minimum(elements - first - e, ELEMENTS).to(COMPUTE)
        tile_mean = tl.sum(b_x, 0)[None, :] / count
        d = tl.where(m, b_x - tile_mean, 0.0)
        apart = tile_mean - b_mean
        share = count / (seen + count)
        b_square += tl.sum(d * d, 0)[None, :] + apart * apart * (seen * share)
        b_mean += apart * share
        seen += count
    o = tl.program_id(1) * C + i_c
    tl.store(means + o, b_mean, mask=i_c < C)
    tl.store(squares + o, b_square, mask=i_c < C)


@triton.jit
def _batch_norm_act_merge_kernel(
    means, squares, mean, invstd, running_mean, running_var, new_mean, new_var, momentum_bits, eps_bits, elements,
    chunk, S, C, PARTS: tl.constexpr, CHANNELS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """A program merges all S chunks of CHANNELS channels at once. Bytes: means, squares and every vector 1.00."""
    i_c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    m_c = i_c < C
    i_s = tl.arange(0, PARTS)[:, None]
    m = (i_s < S) & m_c[None, :]
    o = i_s * C + i_c[None, :]
    first = i_s.to(tl.int64) * chunk
    b_count = tl.where(i_s < S, tl.minimum(elements - first, chunk), 0).to(COMPUTE)
    total = (elements + 0 * tl.program_id(0)).to(COMPUTE)
    b_means = tl.load(means + o, mask=m, other=0.0)
    b_mean = tl.sum(b_means * b_count, 0) / total
    d = tl.where(m, b_means - b_mean[None, :], 0.0)
    b_square = tl.sum(tl.load(squares + o, mask=m, other=0.0) + d * d * b_count, 0)
    tl.store(mean + i_c, b_mean, mask=m_c)
    tl.store(invstd + i_c, tl.rsqrt(b_square / total + number(eps_bits, COMPUTE)), mask=m_c)
    if running_mean is not None:
        momentum = number(momentum_bits, COMPUTE)
        old = tl.load(running_mean + i_c, mask=m_c).to(COMPUTE)
        tl.store(new_mean + i_c, (old + momentum * (b_mean - old)).to(new_mean.dtype.element_ty), mask=m_c)
        old = tl.load(running_var + i_c, mask=m_c).to(COMPUTE)
        unbiased = b_square / tl.maximum(total - 1, 1)
        tl.store(new_var + i_c, (old + momentum * (unbiased - old)).to(new_var.dtype.element_ty), mask=m_c)


@triton.jit
def _normal_and_slope(x, grad, residual, o, m, b_mean, b_invstd, b_weight, b_bias, ACTIVATION: tl.constexpr,
                      COMPUTE: tl.constexpr):  # fmt: skip
    """(normalised x, gradient before the activation) of a block."""
    b_normal = (tl.load(x + o, mask=m, other=0.0).to(COMPUTE) - b_mean) * b_invstd
    b_grad = tl.load(grad + o, mask=m, other=0.0).to(COMPUTE)
    if ACTIVATION != "identity":
        b_z = b_normal * b_weight + b_bias
        if residual is not None:
            b_z += tl.load(residual + o, mask=m, other=0.0).to(COMPUTE)
        b_grad *= slope(b_z, ACTIVATION)
    return b_normal, b_grad


@triton.jit
def _batch_norm_act_backward_sums_kernel(
    grad, x, residual, mean, invstd, weight, bias, parts, elements, chunk, c_units, p_units, ACTIVATION: tl.constexpr,
    VEC: tl.constexpr, LAST: tl.constexpr, ELEMENTS: tl.constexpr, CHANNELS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Bytes: grad 1.00, x 1.00, residual 1.00 (none without an activation), parts 1.00."""
    C = c_units * VEC if LAST else c_units
    i_c = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    m_c = i_c < C
    first = tl.program_id(1).to(tl.int64) * chunk
    b_mean, b_invstd, b_weight, b_bias = affine(mean, invstd, weight, bias, i_c, m_c, 0, False, COMPUTE)
    b_sum = tl.zeros((1, CHANNELS), COMPUTE)
    b_normal_sum = tl.zeros((1, CHANNELS), COMPUTE)
    for e in range(0, tl.minimum(chunk, elements - first), ELEMENTS):
        i_e = first + e + tl.arange(0, ELEMENTS)[:, None]
        o = element(first + e, i_c, c_units, p_units, VEC, LAST, ELEMENTS)
        m = (i_e < elements) & m_c
        b_normal, b_grad = _normal_and_slope(
            x, grad, residual, o, m, b_mean, b_invstd, b_weight, b_bias, ACTIVATION, COMPUTE
        )
        b_grad = tl.where(m, b_grad, 0.0)
        b_sum += tl.sum(b_grad, 0)[None, :]
        b_normal_sum += tl.sum(b_grad * b_normal, 0)[None, :]
    o = tl.program_id(1) * 2 * C + i_c
    tl.store(parts + o, b_sum, mask=m_c)
    tl.store(parts + C + o, b_normal_sum, mask=m_c)


@triton.jit
def _batch_norm_act_backward_kernel(
    grad, x, residual, grad_x, grad_residual, mean, invstd, weight, bias, sums, count_bits, rows, units, C, P,
    ACTIVATION: tl.constexpr, TRAINING: tl.constexpr, VEC: tl.constexpr, LAST: tl.constexpr, ROWS: tl.constexpr,
    LANES: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Bytes: grad, x, residual (none without an activation), grad_x and grad_residual 1.00."""
    o, m, _, i_c, m_c = tile(rows, units, C, P, VEC, LAST, ROWS, LANES)
    b_mean, b_invstd, b_weight, b_bias = affine(mean, invstd, weight, bias, i_c, m_c, 0, False, COMPUTE)
    b_normal, b_grad = _normal_and_slope(
        x, grad, residual, o, m, b_mean, b_invstd, b_weight, b_bias, ACTIVATION, COMPUTE
    )
    if grad_residual is not None:
        tl.store(grad_residual + o, b_grad.to(grad_residual.dtype.element_ty), mask=m)
    if grad_x is not None:
        if TRAINING:
            b_sum = tl.load(sums + i_c, mask=m_c, other=0.0)
            b_normal_sum = tl.load(sums + C + i_c, mask=m_c, other=0.0)
            b_grad -= (b_sum + b_normal * b_normal_sum) * number(count_bits, COMPUTE)
        tl.store(grad_x + o, (b_grad * (b_invstd * b_weight)).to(grad_x.dtype.element_ty), mask=m)


def apply(x: Tensor, last: bool, mean: Tensor, spread: Tensor, weight: Tensor | None, bias: Tensor | None,
          residual: Tensor | None, eps: float | None, activation: str) -> Tensor:  # fmt: skip
    """act((x - mean) * s * weight + bias + residual); s is ``spread``, or 1 / sqrt(spread + eps) when eps is given."""
    y = _host.empty(x, x.shape, last)
    if x.numel():
        rows = _host.as_rows(x, last)
        with torch.cuda.device_of(x):
            _batch_norm_act_apply_kernel[rows.grid](
                _host.dense(x, last), _host.dense(residual, last), y, mean, spread, weight, bias,
                _host.bits(eps or 0.0), *rows.sizes, ACTIVATION=activation, VARIANCE=eps is not None, **rows.constants,
            )  # fmt: skip
    return y


def launch_batch_norm_act(x: Tensor, running_mean: Tensor, running_var: Tensor, weight: Tensor | None,
                          bias: Tensor | None, residual: Tensor | None, eps: float,
                          activation: str) -> Tensor:  # fmt: skip
    vectors = [None if v is None else v.contiguous() for v in (running_mean, running_var, weight, bias)]
    return apply(x, _host.is_channels_last(x), *vectors, residual, eps, activation)


def launch_batch_norm_act_train(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    residual: Tensor | None, momentum: float, eps: float, activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(y, mean, 1 / std, new running mean, new running variance)."""
    last = _host.is_channels_last(x)
    return train(x, last, running_mean, running_var, weight, bias, residual, momentum, eps, activation)


def train(
    x: Tensor, last: bool, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, residual: Tensor | None, momentum: float, eps: float, activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    mean, invstd = (torch.empty(x.shape[1], dtype=_host.wide(x), device=x.device) for _ in range(2))
    old = [None if v is None else v.contiguous() for v in (running_mean, running_var)]
    new = [torch.empty(0, dtype=x.dtype, device=x.device) if v is None else torch.empty_like(v) for v in old]
    if x.numel() == 0:  # nothing was seen: the running statistics stay
        kept = [n if v is None else n.copy_(v) for n, v in zip(new, old)]
        return _host.empty(x, x.shape, last), mean.zero_(), invstd.fill_(eps**-0.5), *kept
    x = _host.dense(x, last)
    columns = _host.as_columns(x, last)
    parts = [torch.empty((columns.chunks, x.shape[1]), dtype=mean.dtype, device=x.device) for _ in range(2)]
    with torch.cuda.device_of(x):
        _batch_norm_act_statistics_kernel[columns.grid](x, *parts, *columns.sizes, **columns.constants)
        _batch_norm_act_merge_kernel[(triton.cdiv(x.shape[1], 16),)](
            *parts, mean, invstd, *old, *new, _host.bits(momentum), _host.bits(eps), *columns.sizes[:2], columns.chunks,
            x.shape[1], PARTS=triton.next_power_of_2(columns.chunks), CHANNELS=16, COMPUTE=_host.compute_type(x),
        )  # fmt: skip
    vectors = [None if v is None else v.contiguous() for v in (weight, bias)]
    return apply(x, last, mean, invstd, *vectors, residual, None, activation), mean, invstd, *new


def backward(
    grad: Tensor, x: Tensor, last: bool, mean: Tensor | None, invstd: Tensor | None, weight: Tensor | None,
    bias: Tensor | None, residual: Tensor | None, training: bool, activation: str, maps: Sequence[bool], sums: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """(gradient of x, of the residual, [2, C] the sums of g and g * normalised x), each None unless asked for."""
    grad, x, residual = (_host.dense(t, last) for t in (grad, x, residual))
    found = [_host.empty(x, x.shape, last) if wanted else None for wanted in maps]
    totals = torch.empty((2, x.shape[1]), dtype=_host.wide(x), device=x.device) if sums or training else None
    if x.numel() == 0:
        return *found, None if totals is None else totals.zero_()
    vectors = [None if v is None else v.contiguous() for v in (mean, invstd, weight, bias)]
    with torch.cuda.device_of(x):
        if totals is not None:
            columns = _host.as_columns(x, last)
            parts = torch.empty((columns.chunks, *totals.shape), dtype=totals.dtype, device=x.device)
            _batch_norm_act_backward_sums_kernel[columns.grid](
                grad, x, residual, *vectors, parts, *columns.sizes, ACTIVATION=activation, **columns.constants
            )
            sum_parts(parts, totals)
        if any(maps):
            rows = _host.as_rows(x, last)
            _batch_norm_act_backward_kernel[rows.grid](
                grad, x, residual, *found, *vectors, totals, _host.bits(x.shape[1] / x.numel()), *rows.sizes,
                ACTIVATION=activation, TRAINING=training, **rows.constants,
            )  # fmt: skip
    return *found, totals


def launch_batch_norm_act_backward(
    grad: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, bias: Tensor | None,
    residual: Tensor | None, training: bool, activation: str, mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(grad_x, grad_weight, grad_bias, grad_residual); what the mask switches off is an empty tensor."""
    last = _host.is_channels_last(x)
    maps, vectors = (mask[0], mask[3]), mask[1] or mask[2]
    grad_x, grad_residual, sums = backward(
        grad, x, last, mean, invstd, weight, bias, residual, training, activation, maps, vectors
    )
    none = [torch.empty(0, dtype=x.dtype, device=x.device) for _ in range(4)]
    return (
        none[0] if grad_x is None else grad_x,
        sums[1].to(weight.dtype) if mask[1] and weight is not None else none[1],
        sums[0].to(bias.dtype) if mask[2] and bias is not None else none[2],
        none[3] if grad_residual is None else grad_residual,
    )
