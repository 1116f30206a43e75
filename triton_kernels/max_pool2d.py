# SPDX-License-Identifier: Apache-2.0
"""Max pooling and its gradient, any window and stride, without an index: the backward compares again.

A program owns PIXELS pixels, adjacent in the order of rows, of CHANNELS channels, 2048 elements: of y forward, of
grad_x backward (512 in NCHW, where each needs an address of its own). channels_last: a thread owns 16 bytes of adjacent
channels, every tap is one wide load, and the taps of neighbouring pixels meet in L1. NCHW: a thread owns adjacent
pixels. Bytes, forward: every tap asks for its x, kH kW / (stride_h stride_w) times the map; DRAM is asked once, and is
the roof; y 1.00, into a channel slice of a wider map when ``out`` is one. Backward: each pixel gathers from the windows
over it, in their order, without atomics. It is a window's choice when no pixel before it is as large and none behind it
larger (of NaN, the last), so that x is asked for (kH kW)^2 / (stride_h stride_w) times, from L1 but for the first; grad
once, by the pixel that takes it; grad_x 1.00.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _host
from ._epilogue import image_and_pixel, pixel_rows, steps
from .depthwise_conv2d import _offset

_UNROLLED = 9  # taps; a larger window is walked


@triton.jit
def _larger(b_best, x, i_c, m_c, t, i_n, i_p, m_m, x_n, x_s, H, W, Wo, stride_h, stride_w, top, left, KW: tl.constexpr,
            LAST: tl.constexpr, COMPUTE: tl.constexpr):  # fmt: skip
    o_x, m_x = pixel_rows(
        i_n, i_p, m_m, t, x_n, x_s, H, W, Wo, stride_h, stride_w, 1, 1, top, left, KW, False, LAST
    )
    m = m_x[:, None] & m_c[None, :]
    b = tl.load(x + _offset(o_x, i_c, x_s, LAST), mask=m, other=float("-inf")).to(COMPUTE)
    return tl.where((b > b_best) | (b != b), b, b_best)


@triton.jit
def _max_pool2d_forward_kernel(
    x, y, N, p_units, c_units, x_n, x_s, y_n, y_s, Wo, H, W, stride_h, stride_w, top, left, KH: tl.constexpr,
    KW: tl.constexpr, UNROLL: tl.constexpr, LAST: tl.constexpr, VP: tl.constexpr, VC: tl.constexpr, VX: tl.constexpr,
    VY: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, COMPUTE: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """Bytes: x once a tap, y 1.00."""
    P, C = p_units * VP, c_units * VC  # of y
    blocks = tl.cdiv(C, CHANNELS)
    first = (tl.program_id(0) // blocks).to(tl.int64) * PIXELS
    i_c = (tl.program_id(0) % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    m_m, m_c = first + tl.arange(0, PIXELS) < tl.cast(N, tl.int64) * P, i_c < C
    n, i_n, i_p = image_and_pixel(first, P, PIXELS, INDEX)
    x_image, x_n, x_s = steps(x_n, x_s, VX, INDEX)
    y_image, y_n, y_s = steps(y_n, y_s, VY, INDEX)
    x += n * x_image
    y += n * y_image
    b_best = tl.full((PIXELS, CHANNELS), float("-inf"), COMPUTE)
    if UNROLL:
        for t in tl.static_range(KH * KW):
            b_best = _larger(b_best, x, i_c, m_c, t, i_n, i_p, m_m, x_n, x_s, H, W, Wo, stride_h, stride_w, top, left,
                             KW, LAST, COMPUTE)  # fmt: skip
    else:
        for t in range(KH * KW):
            b_best = _larger(b_best, x, i_c, m_c, t, i_n, i_p, m_m, x_n, x_s, H, W, Wo, stride_h, stride_w, top, left,
                             KW, LAST, COMPUTE)  # fmt: skip
    o_y = i_n * y_n + i_p * (y_s if LAST else 1)
    tl.store(y + _offset(o_y, i_c, y_s, LAST), b_best.to(y.dtype.element_ty), mask=m_m[:, None] & m_c[None, :])


@triton.jit
def _yields(b_chosen, b_mine, x, i_c, m_c, t, own, i_n, h0, w0, m_w, x_n, x_s, H, W, KW: tl.constexpr,
            LAST: tl.constexpr, COMPUTE: tl.constexpr):  # fmt: skip
    """``b_chosen`` where tap ``t`` of the window at (h0, w0) leaves it to the pixel, which is its tap ``own``."""
    h, w = h0 + t // KW, w0 + t % KW
    m_t = m_w & (h >= 0) & (h < H) & (w >= 0) & (w < W) & (own != t)
    m = m_t[:, None] & m_c[None, :]
    o_x = i_n * x_n + (h * W + w) * (x_s if LAST else 1)
    b = tl.load(x + _offset(o_x, i_c, x_s, LAST), mask=m, other=0.0).to(COMPUTE)
    b_nan = b_mine != b_mine
    b_before = (b < b_mine) | b_nan
    b_behind = (b <= b_mine) | (b_nan & (b == b))
    before = (t < own)[:, None]
    return b_chosen & ((before & b_before) | (~before & b_behind) | ~m)


@triton.jit
def _max_pool2d_backward_kernel(
    grad, x, grad_x, N, p_units, c_units, g_n, g_s, x_n, x_s, y_n, y_s, Ho, Wo, H, W, stride_h, stride_w, top, left,
    KH: tl.constexpr, KW: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr, UNROLL: tl.constexpr,
    LAST: tl.constexpr, VP: tl.constexpr, VC: tl.constexpr, VG: tl.constexpr, VX: tl.constexpr, VY: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, COMPUTE: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    """DOWN x ACROSS windows lie over a pixel. Bytes: x once a tap of each, grad 1.00, grad_x 1.00."""
    P, C = p_units * VP, c_units * VC  # of x
    blocks = tl.cdiv(C, CHANNELS)
    first = (tl.program_id(0) // blocks).to(tl.int64) * PIXELS
    i_c = (tl.program_id(0) % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    m_m, m_c = first + tl.arange(0, PIXELS) < tl.cast(N, tl.int64) * P, i_c < C
    n, i_n, i_p = image_and_pixel(first, P, PIXELS, INDEX)
    g_image, g_n, g_s = steps(g_n, g_s, VG, INDEX)
    x_image, x_n, x_s = steps(x_n, x_s, VX, INDEX)
    y_image, y_n, y_s = steps(y_n, y_s, VY, INDEX)
    grad += n * g_image
    x += n * x_image
    grad_x += n * y_image
    h, w = i_p // W, i_p % W
    m = m_m[:, None] & m_c[None, :]
    o_x = i_n * x_n + i_p * (x_s if LAST else 1)
    b_mine = tl.load(x + _offset(o_x, i_c, x_s, LAST), mask=m, other=0.0).to(COMPUTE)
    b_sum = tl.zeros((PIXELS, CHANNELS), COMPUTE)
    for window in range(DOWN * ACROSS):
        oh = (h + top) // stride_h - (DOWN - 1) + window // ACROSS
        ow = (w + left) // stride_w - (ACROSS - 1) + window % ACROSS
        h0, w0 = oh * stride_h - top, ow * stride_w - left
        m_w = m_m & (oh >= 0) & (oh < Ho) & (ow >= 0) & (ow < Wo) & (h < h0 + KH) & (w < w0 + KW)
        own = (h - h0) * KW + w - w0
        b_chosen = m_w[:, None] & m_c[None, :]
        if UNROLL:
            for t in tl.static_range(KH * KW):
                b_chosen = _yields(b_chosen, b_mine, x, i_c, m_c, t, own, i_n, h0, w0, m_w, x_n, x_s, H, W, KW, LAST,
                                   COMPUTE)  # fmt: skip
        else:
            for t in range(KH * KW):
                b_chosen = _yields(b_chosen, b_mine, x, i_c, m_c, t, own, i_n, h0, w0, m_w, x_n, x_s, H, W, KW, LAST,
                                   COMPUTE)  # fmt: skip
        o_g = i_n * g_n + (oh * Wo + ow) * (g_s if LAST else 1)
        b_sum += tl.load(grad + _offset(o_g, i_c, g_s, LAST), mask=b_chosen, other=0.0).to(COMPUTE)
    o_y = i_n * y_n + i_p * (y_s if LAST else 1)
    tl.store(grad_x + _offset(o_y, i_c, y_s, LAST), b_sum.to(grad_x.dtype.element_ty), mask=m)


def _output_size(x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int],
                 ceil_mode: bool) -> tuple[int, int]:  # fmt: skip
    """PyTorch's: a last window that hangs over the end has to begin within the input or its left padding."""
    found = []
    for size, kernel, step, pad in zip(x.shape[2:], kernel_size, stride, padding):
        out = (size + 2 * pad - kernel + (step - 1 if ceil_mode else 0)) // step + 1
        found.append(out - 1 if ceil_mode and (out - 1) * step >= size + pad else out)
    return tuple(found)


def _tile(
    y: Tensor, last: bool, maps: Sequence[tuple[Tensor, int, int]], part: int = 1
) -> tuple[int, tuple[int, ...], dict]:
    """(programs, sizes and steps, constants) for the pixels of y; ``maps`` are what is walked beside it.

    A tile is 2048 elements over ``part``.
    """
    N, C, P = y.shape[0], y.shape[1], y.shape[2] * y.shape[3]
    CHANNELS, PIXELS = _host.column_tile(C, N * P, last)
    PIXELS = max(PIXELS // part, 1)
    VP, VC = _host.vector(y.dtype, P), _host.vector(y.dtype, C)
    V = [_host.vector(y.dtype, *each[1:]) for each in maps]
    sizes = (N, P // VP, C // VC, *(step // v for each, v in zip(maps, V) for step in each[1:]))
    constants = dict(zip(("VG", "VX", "VY")[-len(V) :], V)) | {
        "LAST": last, "VP": VP, "VC": VC, "PIXELS": PIXELS, "CHANNELS": CHANNELS, "COMPUTE": _host.compute_type(y),
        "INDEX": _host.index_type(PIXELS, P, *(each[1] for each in maps)),
    }  # fmt: skip
    return triton.cdiv(N * P, PIXELS) * triton.cdiv(C, CHANNELS), sizes, constants


def launch_max_pool2d(x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int],
                      ceil_mode: bool, *, out: Tensor | None = None) -> Tensor:  # fmt: skip
    """The maximum of each window in the memory format of x, into ``out`` (possibly a channel slice) when given."""
    last = _host.is_channels_last(x)
    size = (*x.shape[:2], *_output_size(x, kernel_size, stride, padding, ceil_mode))
    if out is None:
        out = _host.empty(x, size, last)
    _host.check_shape("max_pool2d", "out", out, size)
    if out.numel():
        (x_rows, *_), (y_rows, *_) = maps = [_host.rows_of(t, last) for t in (x, out)]
        if y_rows.data_ptr() != out.data_ptr():
            raise ValueError(f"max_pool2d: out must be a map or a channel slice of one, got strides {out.stride()}")
        programs, sizes, constants = _tile(out, last, maps)
        with torch.cuda.device_of(x):
            _max_pool2d_forward_kernel[(programs,)](
                x_rows, out, *sizes, size[3], *x.shape[2:], *stride, *padding, KH=kernel_size[0], KW=kernel_size[1],
                UNROLL=kernel_size[0] * kernel_size[1] <= _UNROLLED, **constants,
            )  # fmt: skip
    return out


def launch_max_pool2d_backward(grad: Tensor, x: Tensor, kernel_size: Sequence[int], stride: Sequence[int],
                               padding: Sequence[int], ceil_mode: bool) -> Tensor:  # fmt: skip
    """The gradient of x, in its memory format."""
    last = _host.is_channels_last(x)
    _host.check_shape("max_pool2d_backward", "grad", grad,
                      (*x.shape[:2], *_output_size(x, kernel_size, stride, padding, ceil_mode)))  # fmt: skip
    grad_x = _host.empty(x, x.shape, last)
    if grad_x.numel():
        maps = [_host.rows_of(t, last) for t in (grad, x, grad_x)]
        # 16 elements a thread, each with an address and a window of its own, spill in NCHW
        programs, sizes, constants = _tile(grad_x, last, maps, part=1 if last else 4)
        with torch.cuda.device_of(x):
            _max_pool2d_backward_kernel[(programs,)](
                maps[0][0], maps[1][0], grad_x, *sizes, *grad.shape[2:], *x.shape[2:], *stride, *padding,
                KH=kernel_size[0], KW=kernel_size[1], DOWN=triton.cdiv(kernel_size[0], stride[0]),
                ACROSS=triton.cdiv(kernel_size[1], stride[1]), UNROLL=kernel_size[0] * kernel_size[1] <= _UNROLLED,
                **constants,
            )  # fmt: skip
    return grad_x
