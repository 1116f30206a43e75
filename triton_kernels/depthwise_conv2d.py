# SPDX-License-Identifier: Apache-2.0
"""Depthwise convolution with bias (or batch norm), residual and activation, any kernel, stride, dilation and
multiplier.

A program owns PIXELS outputs, adjacent in the order of rows, of CHANNELS channels: 2048 of them, 16 sums a thread in
registers. channels_last: a thread owns 16 bytes of adjacent channels, so that every tap is one wide load, and the taps
of neighbouring pixels meet in L1; the weight is laid tap by tap for the same reason. NCHW: a thread owns adjacent
pixels. Bytes: every tap asks for its x, kH kW / (stride_h stride_w) times the map; L1 leaves
kH / stride_h (1 + (kW - 1) / PIXELS) of them, which rows above and below share through L2; DRAM is asked once, and is
the roof. csrc/cuda/depthwise_conv2d_tile.cuh keeps its rows in registers instead: this one serves where nvcc was
missing. Backward: with an activation the forward runs again and stores grad * slope; the gradient for x is the forward
kernel, TRANSPOSED; that of the weight sums every tap over a chunk of pixels, and a second kernel adds the chunks in
one fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _configs, _host, _launch
from ._epilogue import activate, before_activation, image_and_pixel, pixel_rows, slope, steps
from ._reduce import channel_sums, sum_parts

_UNROLLED = {False: 25, True: 9}  # taps, TRANSPOSED or not; a larger kernel is walked: 25 of a gradient spill on sm_86
_TAPS = 16  # taps whose weight gradients a program sums


@triton.jit
def _offset(o_pixel, i_c, c_step, LAST: tl.constexpr):
    if LAST:
        return o_pixel[:, None] + i_c[None, :]
    return o_pixel[:, None] + (i_c * c_step)[None, :]


@triton.jit
def _tap(b_acc, x, weight, t, i_o, m_o, i_n, i_p, m_m, x_n, x_s, H, W, Wo, stride_h, stride_w, dilation_h, dilation_w,
         top, left, C, MULTIPLIER: tl.constexpr, KW: tl.constexpr, TRANSPOSED: tl.constexpr, LAST: tl.constexpr,
         COMPUTE: tl.constexpr):  # fmt: skip
    o_x, m_x = pixel_rows(i_n, i_p, m_m, t, x_n, x_s, H, W, Wo, stride_h, stride_w, dilation_h, dilation_w, top, left,
                          KW, TRANSPOSED, LAST)  # fmt: skip
    m = m_x[:, None] & m_o[None, :]
    if TRANSPOSED:
        for j in tl.static_range(MULTIPLIER):
            i_x = i_o * MULTIPLIER + j
            b_w = tl.load(weight + t * C * MULTIPLIER + i_x, mask=m_o, other=0.0).to(COMPUTE)
            b_acc += tl.load(x + _offset(o_x, i_x, x_s, LAST), mask=m, other=0.0).to(COMPUTE) * b_w[None, :]
    else:
        b_w = tl.load(weight + t * C + i_o, mask=m_o, other=0.0).to(COMPUTE)
        b_acc += tl.load(x + _offset(o_x, i_o // MULTIPLIER, x_s, LAST), mask=m, other=0.0).to(COMPUTE) * b_w[None, :]
    return b_acc


@triton.jit
def _depthwise_conv2d_forward_kernel(
    x, weight, y, residual, grad, bias, mean, spread, bn_weight, bn_bias, eps_bits, N, p_units, c_units, x_n, x_s, y_n,
    y_s, r_n, r_s, g_n, g_s, Wo, H, W, stride_h, stride_w, dilation_h, dilation_w, top, left, KH: tl.constexpr,
    KW: tl.constexpr, MULTIPLIER: tl.constexpr, UNROLL: tl.constexpr, ACTIVATION: tl.constexpr,
    TRANSPOSED: tl.constexpr, LAST: tl.constexpr, VP: tl.constexpr, VC: tl.constexpr, VX: tl.constexpr,
    VY: tl.constexpr, VR: tl.constexpr, VG: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
    COMPUTE: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Bytes: x once a tap, the weight once a tile, residual and grad 1.00, y 1.00."""
    P, C = p_units * VP, c_units * VC  # of y
    blocks = tl.cdiv(C, CHANNELS)
    first = (tl.program_id(0) // blocks).to(tl.int64) * PIXELS
    i_o = (tl.program_id(0) % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    m_m, m_o = first + tl.arange(0, PIXELS) < tl.cast(N, tl.int64) * P, i_o < C
    n, i_n, i_p = image_and_pixel(first, P, PIXELS, INDEX)
    x_image, x_n, x_s = steps(x_n, x_s, VX, INDEX)
    y_image, y_n, y_s = steps(y_n, y_s, VY, INDEX)
    r_image, r_n, r_s = steps(r_n, r_s, VR, INDEX)
    g_image, g_n, g_s = steps(g_n, g_s, VG, INDEX)
    x += n * x_image
    y += n * y_image
    if residual is not None:
        residual += n * r_image
    if grad is not None:
        grad += n * g_image
    b_acc = tl.zeros((PIXELS, CHANNELS), COMPUTE)
    if UNROLL:
        for t in tl.static_range(KH * KW):
            b_acc = _tap(b_acc, x, weight, t, i_o, m_o, i_n, i_p, m_m, x_n, x_s, H, W, Wo, stride_h, stride_w,
                         dilation_h, dilation_w, top, left, C, MULTIPLIER, KW, TRANSPOSED, LAST, COMPUTE)  # fmt: skip
    else:
        for t in range(KH * KW):
            b_acc = _tap(b_acc, x, weight, t, i_o, m_o, i_n, i_p, m_m, x_n, x_s, H, W, Wo, stride_h, stride_w,
                         dilation_h, dilation_w, top, left, C, MULTIPLIER, KW, TRANSPOSED, LAST, COMPUTE)  # fmt: skip
    if LAST:
        o_y, o_r, o_g = i_n * y_n + i_p * y_s, i_n * r_n + i_p * r_s, i_n * g_n + i_p * g_s
    else:
        o_y, o_r, o_g = i_n * y_n + i_p, i_n * r_n + i_p, i_n * g_n + i_p
    m = m_m[:, None] & m_o[None, :]
    b_z = before_activation(b_acc, residual, _offset(o_r, i_o, r_s, LAST), m, bias, mean, spread, bn_weight, bn_bias,
                            i_o[None, :], m_o[None, :], eps_bits, COMPUTE)  # fmt: skip
    if grad is None:
        b_y = activate(b_z, ACTIVATION)
    else:
        b_y = tl.load(grad + _offset(o_g, i_o, g_s, LAST), mask=m, other=0.0).to(COMPUTE) * slope(b_z, ACTIVATION)
    tl.store(y + _offset(o_y, i_o, y_s, LAST), b_y.to(y.dtype.element_ty), mask=m)


@triton.jit
def _depthwise_conv2d_backward_weight_kernel(
    grad, x, parts, N, p_units, c_units, g_n, g_s, x_n, x_s, Wo, H, W, stride_h, stride_w, dilation_h, dilation_w, top,
    left, chunk, KH: tl.constexpr, KW: tl.constexpr, MULTIPLIER: tl.constexpr, LAST: tl.constexpr, VP: tl.constexpr,
    VC: tl.constexpr, VX: tl.constexpr, VG: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
    TAPS: tl.constexpr, COMPUTE: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """A program sums TAPS taps of CHANNELS channels over a chunk. Bytes: grad kH kW / TAPS times, rounded up, x once a
    tap, parts 1.00."""
    P, C = p_units * VP, c_units * VC  # of grad
    i_o = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    m_o = i_o < C
    t_first = tl.program_id(2) * TAPS
    i_t = tl.arange(0, TAPS)[:, None]
    g_image, g_n, g_s = steps(g_n, g_s, VG, INDEX)
    x_image, x_n, x_s = steps(x_n, x_s, VX, INDEX)
    first = tl.program_id(1).to(tl.int64) * chunk
    pixels = tl.cast(N, tl.int64) * P
    b_acc = tl.zeros((TAPS, CHANNELS), COMPUTE)
    for m in range(0, tl.minimum(chunk, pixels - first), PIXELS):
        start = tl.multiple_of(first + m, PIXELS)
        m_m = start + tl.arange(0, PIXELS) < pixels
        n, i_n, i_p = image_and_pixel(start, P, PIXELS, INDEX)
        o_g = _offset(i_n * g_n + i_p * (g_s if LAST else 1), i_o, g_s, LAST)
        b_grad = tl.load(grad + n * g_image + o_g, mask=m_m[:, None] & m_o[None, :], other=0.0).to(COMPUTE)
        for j in tl.static_range(TAPS):
            o_x, m_x = pixel_rows(i_n, i_p, m_m & (t_first + j < KH * KW), t_first + j, x_n, x_s, H, W, Wo, stride_h,
                                  stride_w, dilation_h, dilation_w, top, left, KW, False, LAST)  # fmt: skip
            o_x = _offset(o_x, i_o // MULTIPLIER, x_s, LAST)
            b_x = tl.load(x + n * x_image + o_x, mask=m_x[:, None] & m_o[None, :], other=0.0)
            b_acc += tl.where(i_t == j, tl.sum(b_x.to(COMPUTE) * b_grad, 0)[None, :], 0.0)
    i_t += t_first
    o = (tl.program_id(1).to(tl.int64) * C + i_o)[None, :] * (KH * KW) + i_t
    tl.store(parts + o, b_acc, mask=m_o[None, :] & (i_t < KH * KW))


def convolve_depthwise(
    x: Tensor, weight: Tensor, y: Tensor, last: bool, transposed: bool, geometry: Sequence[Sequence[int]],
    residual: Tensor | None = None, vectors: Sequence[Tensor | None] = (None,) * 5, eps: float = 0.0,
    activation: str = "identity", grad: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Fills y, a dense map or a channel slice of one. ``geometry`` is (stride, padding, dilation)."""
    (stride, padding, dilation), (kH, kW) = geometry, weight.shape[2:]
    N, C, P = y.shape[0], y.shape[1], y.shape[2] * y.shape[3]
    multiplier = weight.shape[0] // (C if transposed else x.shape[1])
    steps = [(None, 0, 0) if t is None else _host.rows_of(t, last) for t in (x, y, residual, grad)]
    if steps[1][0].data_ptr() != y.data_ptr():
        raise ValueError(f"depthwise_conv2d: out must be a map or a channel slice of one, got strides {y.stride()}")
    VP, VC = _host.vector(x.dtype, P), _host.vector(x.dtype, C)
    V = [_host.vector(x.dtype, *step[1:]) for step in steps]
    weight = weight.reshape(weight.shape[0], -1).t().contiguous()
    vectors = [None if v is None else v.contiguous() for v in vectors]

    def run(block: _configs.Block) -> None:
        _depthwise_conv2d_forward_kernel[(triton.cdiv(N * P, block.pixels) * triton.cdiv(C, block.channels),)](
            steps[0][0], weight, y, steps[2][0], steps[3][0], *vectors, _host.bits(eps), N, P // VP, C // VC,
            *(n // v for step, v in zip(steps, V) for n in step[1:]), y.shape[3], *x.shape[2:], *stride, *dilation,
            padding[2], padding[0], KH=kH, KW=kW, MULTIPLIER=multiplier, UNROLL=kH * kW <= _UNROLLED[transposed],
            ACTIVATION=activation, TRANSPOSED=transposed, LAST=last, VP=VP, VC=VC, VX=V[0], VY=V[1], VR=V[2], VG=V[3],
            PIXELS=block.pixels, CHANNELS=block.channels, COMPUTE=_host.compute_type(x),
            INDEX=_host.index_type(block.pixels, P, *(step[1] for step in steps)), num_warps=block.warps,
        )  # fmt: skip

    shape = (kH, kW, *stride, int(transposed), int(last), _launch.size_class(N * P), C, multiplier)
    with torch.cuda.device_of(x):
        channels, pixels = _host.column_tile(C, N * P, last)
        block = _configs.Block(pixels, channels, 4)
        _launch.launch("depthwise", shape, x, block, lambda: _configs.block_candidates(block), run)
    return y


def depthwise_gradients(grad: Tensor, x: Tensor, weight: Tensor, last: bool, geometry: Sequence[Sequence[int]],
                        for_x: bool, for_weight: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of x, in its format, and of the weight, contiguous; an empty tensor where it is not asked for."""
    found = [torch.empty(0, dtype=x.dtype, device=x.device) for _ in range(2)]
    if for_x:
        found[0] = _host.empty(x, x.shape, last)
        if x.numel():
            convolve_depthwise(grad, weight, found[0], last, True, geometry)
    if for_weight:
        found[1] = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
        if grad.numel() == 0:
            found[1].zero_()
        else:
            _backward_weight(grad, x, found[1], last, geometry)
    return tuple(found)


def _backward_weight(grad: Tensor, x: Tensor, y: Tensor, last: bool, geometry: Sequence[Sequence[int]]) -> None:
    (stride, padding, dilation), (kH, kW) = geometry, y.shape[2:]
    N, O, P = grad.shape[0], grad.shape[1], grad.shape[2] * grad.shape[3]
    (grad, g_n, g_s), (x, x_n, x_s) = _host.rows_of(grad, last), _host.rows_of(x, last)
    VP, VC, VG, VX = (_host.vector(x.dtype, *n) for n in ((P,), (O,), (g_n, g_s), (x_n, x_s)))
    columns = _host.as_columns(grad, last)
    blocks, chunks = columns.grid
    TAPS = min(triton.next_power_of_2(kH * kW), _TAPS)
    parts = torch.empty((chunks, O, kH * kW), dtype=_host.wide(x), device=x.device)
    with torch.cuda.device_of(x):
        _depthwise_conv2d_backward_weight_kernel[(blocks, chunks, triton.cdiv(kH * kW, TAPS))](
            grad, x, parts, N, P // VP, O // VC, g_n // VG, g_s // VG, x_n // VX, x_s // VX, grad.shape[3],
            *x.shape[2:], *stride, *dilation, padding[2], padding[0], columns.sizes[1], KH=kH, KW=kW,
            MULTIPLIER=O // x.shape[1], LAST=last, VP=VP, VC=VC, VX=VX, VG=VG, PIXELS=columns.constants["ELEMENTS"],
            CHANNELS=columns.constants["CHANNELS"], TAPS=TAPS, COMPUTE=_host.compute_type(x),
            INDEX=_host.index_type(columns.constants["ELEMENTS"], P, g_n, x_n),
        )  # fmt: skip
    sum_parts(parts, y)


def launch_depthwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], activation: str, *, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """act(conv + bias + residual) in the memory format of x, into ``out`` (possibly a channel slice) when given."""
    last = _host.is_channels_last(x)
    padding = _host.resolve_padding(padding, x, weight, stride, dilation)
    size = (x.shape[0], weight.shape[0], *_host.output_size(x, weight, stride, padding, dilation))
    if out is None:
        out = _host.empty(x, size, last)
    _host.check_shape("depthwise_conv2d", "out", out, size)
    if out.numel():
        vectors = (bias, None, None, None, None)
        convolve_depthwise(x, weight, out, last, False, (stride, padding, dilation), residual, vectors, 0.0, activation)
    return out


def launch_depthwise_conv2d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], activation: str, mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, weight, bias and residual; what the mask switches off is an empty tensor."""
    last = _host.is_channels_last(x)
    geometry = (stride, _host.resolve_padding(padding, x, weight, stride, dilation), dilation)
    g = grad
    if grad.numel() and activation != "identity":
        vectors = (bias, None, None, None, None)
        g = _host.empty(x, grad.shape, last)
        convolve_depthwise(x, weight, g, last, False, geometry, residual, vectors, 0.0, activation, grad)
    found = [*depthwise_gradients(g, x, weight, last, geometry, mask[0], mask[1])]
    found += [torch.empty(0, dtype=x.dtype, device=x.device) for _ in range(2)]
    if mask[2]:
        found[2] = channel_sums(_host.dense(g, last), last, torch.empty(bias.shape, dtype=bias.dtype, device=x.device))
    if mask[3]:
        found[3] = g if g is not grad else _host.empty(x, grad.shape, last).copy_(grad)
    return tuple(found)
