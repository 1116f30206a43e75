# SPDX-License-Identifier: Apache-2.0
"""Squeeze-and-excitation: pixel sums, both fully connected layers and the gate in one small kernel, scale.

x is read twice and written once (backward: x and grad once for the sums, grad once more for the result): 3 s bytes an
element where s is its size (backward 4 s), and the roof is DRAM bandwidth. Where the consumer takes the scale as it
loads (conv_bn_act's gate), the second read and the write are saved. A program of the gate kernel serves one image and
reads both weights once, _OUT x _IN at a time: C R numbers each, which L2 holds for all images. Its hidden layer goes
through memory that only this program touches, with a barrier between.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _host
from ._epilogue import activate, load_or, number, slope, tile
from .depthwise_conv2d import launch_depthwise_conv2d
from .global_avg_pool import pixel_sums

_OUT, _IN = 32, 64  # outputs and inputs of a layer that a program holds at a time


@triton.jit
def _layer(x, weight, bias, i_o, O, I, step_o, step_i, IN: tl.constexpr, COMPUTE: tl.constexpr):
    """weight @ x + bias for the outputs ``i_o``; the steps are weight's, so that its transpose serves too."""
    b = tl.zeros((i_o.shape[0], IN), COMPUTE)
    for i in range(0, I, IN):
        i_i = i + tl.arange(0, IN)
        m = (i_o < O)[:, None] & (i_i < I)[None, :]
        b_w = tl.load(weight + i_o[:, None] * step_o + i_i[None, :] * step_i, mask=m, other=0.0).to(COMPUTE)
        b += b_w * tl.load(x + i_i, mask=i_i < I, other=0.0).to(COMPUTE)[None, :]
    return tl.sum(b, 1) + load_or(bias, i_o, i_o < O, 0.0, COMPUTE)


@triton.jit
def _se_scale_gate_kernel(pooled, w1, b1, w2, b2, z1, hidden, z2, scale, C, R, ACTIVATION: tl.constexpr,
                          GATE: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr, COMPUTE: tl.constexpr):  # fmt: skip
    """Bytes: w1, b1, w2, b2 N times; pooled R / OUT and hidden C / OUT times, rounded up; what is stored 1.00."""
    i_n = tl.program_id(0).to(tl.int64)
    for r in range(0, R, OUT):
        i_r = r + tl.arange(0, OUT)
        b_z = _layer(pooled + i_n * C, w1, b1, i_r, R, C, C, 1, IN, COMPUTE)
        tl.store(z1 + i_n * R + i_r, b_z, mask=i_r < R)
        tl.store(hidden + i_n * R + i_r, activate(b_z, ACTIVATION), mask=i_r < R)
    tl.debug_barrier()
    for c in range(0, C, OUT):
        i_c = c + tl.arange(0, OUT)
        b_z = _layer(hidden + i_n * R, w2, b2, i_c, C, R, R, 1, IN, COMPUTE)
        if z2 is not None:
            tl.store(z2 + i_n * C + i_c, b_z, mask=i_c < C)
        tl.store(scale + i_n * C + i_c, activate(b_z, GATE), mask=i_c < C)


@triton.jit
def _se_scale_gate_backward_kernel(grad_scale, z1, z2, w1, w2, grad_z1, grad_z2, grad_pooled, mean_bits, C, R,
                                   ACTIVATION: tl.constexpr, GATE: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr,
                                   COMPUTE: tl.constexpr):  # fmt: skip
    """Bytes: w1, w2 N times; the gradient of z2 R / OUT and of z1 C / OUT times, rounded up; what is stored 1.00."""
    i_n = tl.program_id(0).to(tl.int64)
    for c in range(0, C, OUT):
        o = i_n * C + c + tl.arange(0, OUT)
        m = c + tl.arange(0, OUT) < C
        b = tl.load(grad_scale + o, mask=m, other=0.0) * slope(tl.load(z2 + o, mask=m, other=0.0), GATE)
        tl.store(grad_z2 + o, b, mask=m)
    tl.debug_barrier()
    for r in range(0, R, OUT):
        i_r = r + tl.arange(0, OUT)
        b = _layer(grad_z2 + i_n * C, w2, None, i_r, R, C, 1, R, IN, COMPUTE)
        b *= slope(tl.load(z1 + i_n * R + i_r, mask=i_r < R, other=0.0), ACTIVATION)
        tl.store(grad_z1 + i_n * R + i_r, b, mask=i_r < R)
    tl.debug_barrier()
    mean = number(mean_bits, COMPUTE)
    for c in range(0, C, OUT):
        i_c = c + tl.arange(0, OUT)
        b = _layer(grad_z1 + i_n * R, w1, None, i_c, C, R, 1, C, IN, COMPUTE)
        tl.store(grad_pooled + i_n * C + i_c, b * mean, mask=i_c < C)


@triton.jit
def _se_scale_weight_kernel(grad_z, x, grad_weight, grad_bias, N, O, I, OUT: tl.constexpr, IN: tl.constexpr,
                            COMPUTE: tl.constexpr):  # fmt: skip
    """grad_weight[o, i] = the sum over n of grad_z[n, o] x[n, i], in order; the first programs add the bias too.

    A program owns OUT x IN of the weight. Bytes: grad_z I / IN times, x O / OUT times, what is stored 1.00.
    """
    i_o = tl.program_id(0) * OUT + tl.arange(0, OUT)
    i_i = tl.program_id(1) * IN + tl.arange(0, IN)
    m_o, m_i = i_o < O, i_i < I
    b = tl.zeros((OUT, IN), COMPUTE)
    b_bias = tl.zeros((OUT,), COMPUTE)
    p_grad, p_x = grad_z + i_o, x + i_i
    for _ in range(N):
        b_grad = tl.load(p_grad, mask=m_o, other=0.0)
        b += b_grad[:, None] * tl.load(p_x, mask=m_i, other=0.0)[None, :]
        b_bias += b_grad
        p_grad += O
        p_x += I
    o = i_o.to(tl.int64)[:, None] * I + i_i[None, :]
    tl.store(grad_weight + o, b.to(grad_weight.dtype.element_ty), mask=m_o[:, None] & m_i[None, :])
    if tl.program_id(1) == 0:
        tl.store(grad_bias + i_o, b_bias.to(grad_bias.dtype.element_ty), mask=m_o)


@triton.jit
def _se_scale_kernel(x, scale, shift, y, rows, units, C, P, VEC: tl.constexpr, LAST: tl.constexpr, ROWS: tl.constexpr,
                     LANES: tl.constexpr, COMPUTE: tl.constexpr):  # fmt: skip
    """y = x * scale[n, c] (+ shift[n, c]).

    Bytes: x 1.00, y 1.00; scale and shift are asked for at every element, which L1 serves.
    """
    o, m, i_n, i_c, _ = tile(rows, units, C, P, VEC, LAST, ROWS, LANES)
    o_nc = i_n * C + i_c + 0 * o
    b_y = tl.load(x + o, mask=m).to(COMPUTE) * tl.load(scale + o_nc, mask=m)
    if shift is not None:
        b_y += tl.load(shift + o_nc, mask=m)
    tl.store(y + o, b_y.to(y.dtype.element_ty), mask=m)


def _scaled(x: Tensor, last: bool, scale: Tensor, shift: Tensor | None) -> Tensor:
    y = _host.empty(x, x.shape, last)
    rows = _host.as_rows(x, last)
    with torch.cuda.device_of(x):
        _se_scale_kernel[rows.grid](x, scale, shift, y, *rows.sizes, **rows.constants)
    return y


def scales(pooled: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: str, gate: str,
           keep: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """(scale [N, C], z1, hidden [N, R], z2 when kept), accumulated types; scale is what conv_bn_act takes as gate."""
    (N, C), R = pooled.shape, w1.shape[0]
    z1, hidden = (torch.empty((N, R), dtype=pooled.dtype, device=pooled.device) for _ in range(2))
    scale = torch.empty_like(pooled)
    z2 = torch.empty_like(pooled) if keep else None
    with torch.cuda.device_of(pooled):
        _se_scale_gate_kernel[(N,)](
            pooled, w1.contiguous(), b1.contiguous(), w2.contiguous(), b2.contiguous(), z1, hidden, z2, scale, C, R,
            ACTIVATION=activation, GATE=gate, OUT=_OUT, IN=_IN, COMPUTE=_host.compute_type(pooled),
        )  # fmt: skip
    return scale, z1, hidden, z2


def launch_se_gate(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: str, gate: str) -> Tensor:
    """gate(w2 @ activation(w1 @ mean(x) + b1) + b2), [N, C]."""
    return _gates(x, _host.is_channels_last(x), w1, b1, w2, b2, activation, gate)[2]


def launch_depthwise_se_gate(
    x: Tensor, weight: Tensor, bias: Tensor | None, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], activation: str, squeeze: str, gate: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(the convolution, its gates [N, C]). No kernel of Triton leaves sums: the map is read once more for its mean."""
    y = launch_depthwise_conv2d(x, weight, bias, None, stride, padding, dilation, activation)
    return y, launch_se_gate(y, w1, b1, w2, b2, squeeze, gate)


def _gates(x: Tensor, last: bool, *layers: Tensor | str) -> tuple[Tensor, Tensor, Tensor]:
    """(x dense in its format, its mean, what it is multiplied by)."""
    pooled = torch.empty(x.shape[:2], dtype=_host.wide(x), device=x.device)
    if x.numel() == 0:
        return x, pooled, pooled
    x = _host.dense(x, last)
    pixel_sums(x, last, pooled, 1 / x.shape[2:].numel())
    return x, pooled, scales(pooled, *layers)[0]


def launch_se_scale(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: str,
                    gate: str) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(x * gate(w2 @ activation(w1 @ mean(x) + b1) + b2), the mean)."""
    last = _host.is_channels_last(x)
    x, pooled, scale = _gates(x, last, w1, b1, w2, b2, activation, gate)
    return _scaled(x, last, scale, None) if x.numel() else _host.empty(x, x.shape, last), pooled


def launch_se_scale_backward(
    grad: Tensor, x: Tensor, pooled: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: str, gate: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(grad_x, grad_w1, grad_b1, grad_w2, grad_b2)."""
    last = _host.is_channels_last(x)
    grads = [torch.empty(w.shape, dtype=w.dtype, device=w.device) for w in (w1, b1, w2, b2)]
    if x.numel() == 0:
        return _host.empty(x, x.shape, last), *(g.zero_() for g in grads)
    (N, C), R, P = x.shape[:2], w1.shape[0], x.shape[2:].numel()
    x, grad, compute = _host.dense(x, last), _host.dense(grad, last), _host.compute_type(x)
    scale, z1, hidden, z2 = scales(pooled, w1, b1, w2, b2, activation, gate, keep=True)
    grad_scale, grad_z2, grad_pooled = (torch.empty_like(scale) for _ in range(3))
    grad_z1 = torch.empty_like(z1)
    pixel_sums(grad, last, grad_scale, 1.0, factor=x)
    with torch.cuda.device_of(x):
        _se_scale_gate_backward_kernel[(N,)](
            grad_scale, z1, z2, w1.contiguous(), w2.contiguous(), grad_z1, grad_z2, grad_pooled, _host.bits(1 / P),
            C, R, ACTIVATION=activation, GATE=gate, OUT=_OUT, IN=_IN, COMPUTE=compute,
        )  # fmt: skip
        for grad_z, source, weight, bias in ((grad_z1, pooled, *grads[:2]), (grad_z2, hidden, *grads[2:])):
            O, I = weight.shape[:2]
            _se_scale_weight_kernel[(triton.cdiv(O, _OUT), triton.cdiv(I, _IN))](
                grad_z, source, weight, bias, N, O, I, OUT=_OUT, IN=_IN, COMPUTE=compute
            )
    return _scaled(grad, last, scale, grad_pooled), *grads
