# SPDX-License-Identifier: Apache-2.0
"""Convolution as a tensor-core GEMM with batch norm, residual and activation in its epilogue.

[N * Ho * Wo, C * kH * kW] x [C * kH * kW, O], the left side never formed: a program owns ``ROWS`` pixels and
``COLUMNS`` outputs (_configs.py: 128 x 16 to 128 x 64, 32 sums a thread) and walks over taps and channels, ``DEPTH`` at
a time, through ``num_stages`` tiles of shared memory. 1x1 with stride 1 is the case where a row is a pixel of x.

Bytes: x is asked for kH kW / (stride_h stride_w) O / COLUMNS times, rounded up, the weight N Ho Wo / ROWS times
(neighbouring programs share x and all share the weight, so that L2 serves them and DRAM reads both once), residual
1.00, y 1.00, into a channel slice of a wider map when ``out`` is one. With C and O of mobile nets (16 to 320) a product
has C O / (C + O) operations a byte of float16, at most 160: DRAM bandwidth is the roof, not the tensor cores.

On x as it loads, in the accumulator's type and rounded once: scale and shift for each channel, an activation
(pre-activation nets, DenseNet), a gate for each image and channel (squeeze-and-excitation; asked for at every element
of x, which L1 serves). Padding stays zero.

The gradient for x is the same kernel, TRANSPOSED: taps that a stride skips are masked.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _configs, _host, _launch
from ._epilogue import activate, before_activation, image_and_pixel, pixel_rows, steps
from .batch_norm_act import train
from .depthwise_conv2d import convolve_depthwise


@triton.jit
def _conv_bn_act_forward_kernel(
    x, weight, y, residual, bias, mean, spread, bn_weight, bn_bias, gate, pre_scale, pre_shift, eps_bits,
    N, p_units, o_units, c_units, x_n, x_s, y_n, y_s, r_n, r_s, Wo, H, W, stride_h, stride_w, dilation_h, dilation_w,
    top, left, KH: tl.constexpr, KW: tl.constexpr, PROLOGUE: tl.constexpr, ACTIVATION: tl.constexpr,
    POINTWISE: tl.constexpr, TRANSPOSED: tl.constexpr, LAST: tl.constexpr, VP: tl.constexpr, VO: tl.constexpr,
    VC: tl.constexpr, VX: tl.constexpr, VY: tl.constexpr, VR: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Bytes: x kH kW / (stride_h stride_w) O / COLUMNS times, the weight pixels / ROWS times, residual and y 1.00."""
    P, O, C = p_units * VP, o_units * VO, c_units * VC  # what the V.. divide, so that accesses can be 16 bytes wide
    group = tl.program_id(1)
    blocks = tl.cdiv(O, COLUMNS)
    first = (tl.program_id(0) // blocks).to(tl.int64) * ROWS
    i_o = (tl.program_id(0) % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    m_m, m_o = first + tl.arange(0, ROWS) < tl.cast(N, tl.int64) * P, i_o < O
    n, i_n, i_p = image_and_pixel(first, P, ROWS, INDEX)
    base = tl.cast(group, tl.int64) * C
    x_image, x_n, x_s = steps(x_n, x_s, VX, INDEX)
    y_image, y_n, y_s = steps(y_n, y_s, VY, INDEX)
    r_image, r_n, r_s = steps(r_n, r_s, VR, INDEX)
    x += n * x_image + base * (1 if LAST else x_s)
    y += n * y_image
    if residual is not None:
        residual += n * r_image
    if gate is not None:
        gate += n * C * tl.num_programs(1) + base
    weight += base * O * (KH * KW)
    o_x, m_x = i_n * x_n + i_p * (x_s if LAST else 1), m_m
    blocks_c = tl.cdiv(C, DEPTH)
    b_acc = tl.zeros((ROWS, COLUMNS), COMPUTE)
    for step in range(KH * KW * blocks_c):
        t = 0
        i_c = step * DEPTH + tl.arange(0, DEPTH)
        if not POINTWISE:
            t = step // blocks_c
            i_c -= t * blocks_c * DEPTH
            o_x, m_x = pixel_rows(i_n, i_p, m_m, t, x_n, x_s, H, W, Wo, stride_h, stride_w, dilation_h, dilation_w, top,
                                  left, KW, TRANSPOSED, LAST)  # fmt: skip
        m_c = i_c < C
        m = m_x[:, None] & m_c[None, :]
        if LAST:
            b_x = tl.load(x + o_x[:, None] + i_c[None, :], mask=m, other=0.0)
        else:
            b_x = tl.load(x + o_x[:, None] + (i_c * x_s)[None, :], mask=m, other=0.0)
        if pre_scale is not None or PROLOGUE != "identity" or gate is not None:
            b_p = b_x.to(COMPUTE)
            if pre_scale is not None:
                b_scale = tl.load(pre_scale + base + i_c, mask=m_c, other=0.0).to(COMPUTE)[None, :]
                b_p = b_p * b_scale + tl.load(pre_shift + base + i_c, mask=m_c, other=0.0).to(COMPUTE)[None, :]
            if pre_scale is not None or PROLOGUE != "identity":
                b_p = tl.where(m, activate(b_p, PROLOGUE), 0.0)
            if gate is not None:
                o = (i_n * (C * tl.num_programs(1)))[:, None] + i_c[None, :]
                b_p *= tl.load(gate + o, mask=m, other=0.0).to(COMPUTE)
            b_x = b_p.to(x.dtype.element_ty)
        if TRANSPOSED:  # weight [C here, kH, kW, O here]
            o_w = (i_c * (KH * KW) + t)[:, None] * O + i_o[None, :]
        else:  # weight [O, kH, kW, C]
            o_w = ((i_o * (KH * KW) + t) * C)[None, :] + i_c[:, None]
        b_w = tl.load(weight + o_w, mask=m_c[:, None] & m_o[None, :], other=0.0)
        b_acc = tl.dot(b_x, b_w, b_acc, input_precision=PRECISION, out_dtype=COMPUTE)
    i_o += group * O
    if LAST:
        o_y = (i_n * y_n + i_p * y_s)[:, None] + i_o[None, :]
        o_r = (i_n * r_n + i_p * r_s)[:, None] + i_o[None, :]
    else:
        o_y = (i_n * y_n + i_p)[:, None] + (i_o * y_s)[None, :]
        o_r = (i_n * r_n + i_p)[:, None] + (i_o * r_s)[None, :]
    m = m_m[:, None] & m_o[None, :]
    b_z = before_activation(b_acc, residual, o_r, m, bias, mean, spread, bn_weight, bn_bias, i_o[None, :], m_o[None, :],
                            eps_bits, COMPUTE)  # fmt: skip
    tl.store(y + o_y, activate(b_z, ACTIVATION).to(y.dtype.element_ty), mask=m)


def gemm(
    x: Tensor, weight: Tensor, y: Tensor, last: bool, transposed: bool, geometry: Sequence[Sequence[int]], groups: int,
    residual: Tensor | None = None, vectors: Sequence[Tensor | None] = (None,) * 5, eps: float = 0.0,
    activation: str = "identity", prologue: Sequence[Tensor | None] = (None,) * 3, pre_activation: str = "identity",
    allow_tf32: bool | None = None,
) -> Tensor:  # fmt: skip
    """Fills y, a dense map or a channel slice of one. ``geometry`` is (stride, padding, dilation)."""
    (stride, padding, dilation), (kH, kW) = geometry, weight.shape[2:]
    pointwise = tuple(weight.shape[2:]) == (1, 1) and tuple(stride) == (1, 1) and not any(padding)
    C, O, P = x.shape[1] // groups, y.shape[1] // groups, y.shape[2] * y.shape[3]
    x, x_n, x_s = _host.rows_of(x, last)
    where, y_n, y_s = _host.rows_of(y, last)
    if where.data_ptr() != y.data_ptr():
        raise ValueError(f"conv_bn_act: out must be a map or a channel slice of one, got strides {y.stride()}")
    residual, r_n, r_s = (None, 0, 0) if residual is None else _host.rows_of(residual, last)
    VP, VO, VC, VX, VY, VR = (_host.vector(x.dtype, *n) for n in ((P,), (O,), (C,), (x_n, x_s), (y_n, y_s), (r_n, r_s)))
    vectors, prologue = ([None if v is None else v.contiguous() for v in some] for some in (vectors, prologue))
    weight, rows, precision = _host.dense(weight, True), y.shape[0] * P, _configs.precision(x.dtype, allow_tf32)

    def run(tile: _configs.Tile) -> None:
        grid = (triton.cdiv(rows, tile.rows) * triton.cdiv(O, tile.columns), groups)
        _conv_bn_act_forward_kernel[grid](
            x, weight, y, residual, *vectors, *prologue, _host.bits(eps), y.shape[0], P // VP, O // VO, C // VC,
            x_n // VX, x_s // VX, y_n // VY, y_s // VY, r_n // VR, r_s // VR, y.shape[3], *x.shape[2:], *stride,
            *dilation, padding[2], padding[0], KH=kH, KW=kW, PROLOGUE=pre_activation, ACTIVATION=activation,
            POINTWISE=pointwise, TRANSPOSED=transposed, LAST=last, VP=VP, VO=VO, VC=VC, VX=VX, VY=VY, VR=VR,
            ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth, PRECISION=precision,
            COMPUTE=_host.compute_type(x), INDEX=_host.index_type(tile.rows, P, x_n, y_n, r_n),
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip

    shape = (kH, kW, *stride, int(transposed), int(last), _launch.size_class(rows), groups, O, C, precision)
    with torch.cuda.device_of(x):
        tile = _configs.gemm_tile(x, rows, O, C, last)
        _launch.launch("gemm", shape, x, tile, lambda: _configs.gemm_candidates(tile, O, C), run)
    return y


def launch_conv_bn_act(
    x: Tensor, weight: Tensor, bias: Tensor | None, bn_weight: Tensor | None, bn_bias: Tensor | None,
    running_mean: Tensor | None, running_var: Tensor | None, residual: Tensor | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], groups: int, eps: float, activation: str, *,
    out: Tensor | None = None, gate: Tensor | None = None, pre_scale: Tensor | None = None,
    pre_shift: Tensor | None = None, pre_activation: str | None = None, allow_tf32: bool | None = None,
) -> Tensor:  # fmt: skip
    """act(bn(conv(x) + bias) + residual), in the memory format of x.

    Args:
        out: where the result goes, [N, O, Ho, Wo], possibly a channel slice of a wider map in the memory format of x.
        pre_scale, pre_shift: [C], x becomes pre_activation(x * scale + shift) as it loads; what is padded stays zero.
        pre_activation: by default relu behind pre_scale, identity without.
        gate: [N, C], multiplies what that gives: the scale of squeeze-and-excitation.
        allow_tf32: whether float32 may be rounded to TF32; None asks torch.backends.cuda.matmul.allow_tf32.
    """
    last = _host.is_channels_last(x)
    padding = _host.resolve_padding(padding, x, weight, stride, dilation)
    size = (x.shape[0], weight.shape[0], *_host.output_size(x, weight, stride, padding, dilation))
    if out is None:
        out = _host.empty(x, size, last)
    if (pre_scale is None) != (pre_shift is None):
        raise ValueError(f"conv_bn_act: pre_{'shift' if pre_shift is None else 'scale'} must be given too, got None")
    extras = (("out", out, size), ("gate", gate, x.shape[:2]))
    for name, given, shape in (*extras, ("pre_scale", pre_scale, x.shape[1:2]), ("pre_shift", pre_shift, x.shape[1:2])):
        _host.check_shape("conv_bn_act", name, given, tuple(shape))
    if out.numel() == 0:
        return out
    vectors = (bias, running_mean, running_var, bn_weight, bn_bias)
    if pre_activation is None:
        pre_activation = "identity" if pre_scale is None else "relu"
    geometry, prologue = (stride, padding, dilation), (gate, pre_scale, pre_shift)
    if groups == x.shape[1] > 1 and gate is None and pre_scale is None and pre_activation == "identity":
        return convolve_depthwise(x, weight, out, last, False, geometry, residual, vectors, eps, activation)
    return gemm(x, weight, out, last, False, geometry, groups, residual, vectors, eps, activation, prologue,
                pre_activation, allow_tf32)  # fmt: skip


def launch_pointwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, gate: Tensor | None, scale: Tensor | None,
    shift: Tensor | None, prologue: str, activation: str,
) -> Tensor:  # fmt: skip
    """activation(conv(prologue(x * scale + shift) * gate) + bias + residual), 1x1, in the memory format of x."""
    geometry = (1, 1), (0, 0, 0, 0), (1, 1), 1
    return launch_conv_bn_act(x, weight, bias, *(None,) * 4, residual, *geometry, 0.0, activation, gate=gate,
                              pre_scale=scale, pre_shift=shift, pre_activation=prologue)  # fmt: skip


def launch_conv_bn_act_train(
    x: Tensor, weight: Tensor, bias: Tensor | None, bn_weight: Tensor | None, bn_bias: Tensor | None,
    running_mean: Tensor | None, running_var: Tensor | None, residual: Tensor | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], groups: int, momentum: float, eps: float, activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(y, z = conv(x) + bias, mean, 1 / std, new running mean, new running variance)."""
    z = launch_conv_bn_act(
        x, weight, bias, None, None, None, None, None, stride, padding, dilation, groups, 0.0, "identity"
    )
    # z is in the format of x, which its own strides need not tell when it has one channel or one pixel
    last = _host.is_channels_last(x)
    y, *statistics = train(z, last, running_mean, running_var, bn_weight, bn_bias, residual, momentum, eps, activation)
    return y, z, *statistics
