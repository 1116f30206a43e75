# SPDX-License-Identifier: Apache-2.0
"""What every kernel shares on the device: the activations, one definition each, and the walk over a feature map.

Prefixes: i_ index, o_ offset, m_ mask, b_ value of a block. A NaN input stays NaN: the comparisons are written so
that an unordered one keeps x (tl.maximum would drop it). Numbers of ``fp64`` kernels come as the bits of a double,
because Triton passes a Python float as float32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _clamp6(x):
    return tl.where(x <= 0, 0.0, tl.where(x >= 6, 6.0, x))


@triton.jit
def activate(x, KIND: tl.constexpr):
    """The activation of a float32 or float64 block."""
    if KIND == "identity":
        y = x
    elif KIND == "relu":
        y = tl.where(x <= 0, 0.0, x)
    elif KIND == "relu6":
        y = _clamp6(x)
    elif KIND == "hardswish":
        y = x * _clamp6(x + 3) * (1 / 6)
    elif KIND == "hardsigmoid":
        y = _clamp6(x + 3) * (1 / 6)
    elif KIND == "silu":
        y = x / (1 + tl.exp(-x))
    else:
        tl.static_assert(KIND == "sigmoid", "unknown activation")
        y = 1 / (1 + tl.exp(-x))
    return y


@triton.jit
def slope(x, KIND: tl.constexpr):
    """Its derivative, at a knot the one that torch takes."""
    if KIND == "identity":
        y = x * 0 + 1
    elif KIND == "relu":
        y = tl.where(x <= 0, 0.0, 1.0).to(x.dtype)
    elif KIND == "relu6":
        y = tl.where((x > 0) & (x < 6), 1.0, 0.0).to(x.dtype)
    elif KIND == "hardswish":
        y = tl.where(x <= -3, 0.0, tl.where(x >= 3, 1.0, x * (1 / 3) + 0.5))
    elif KIND == "hardsigmoid":
        y = tl.where((x > -3) & (x < 3), x * 0 + (1 / 6), x * 0)
    elif KIND == "silu":
        s = 1 / (1 + tl.exp(-x))
        y = s * (1 + x * (1 - s))
    else:
        tl.static_assert(KIND == "sigmoid", "unknown activation")
        s = 1 / (1 + tl.exp(-x))
        y = s * (1 - s)
    return y


@triton.jit
def number(bits, COMPUTE: tl.constexpr):
    """The value of a float argument that came as the 64 bits of a double."""
    return tl.cast(bits, tl.int64).to(tl.float64, bitcast=True).to(COMPUTE)


@triton.jit
def load_or(pointer, offset, mask, OTHER: tl.constexpr, COMPUTE: tl.constexpr):
    """A block of an optional vector, ``OTHER`` everywhere without one."""
    if pointer is None:
        b = tl.full(offset.shape, OTHER, COMPUTE)
    else:
        b = tl.load(pointer + offset, mask=mask, other=OTHER).to(COMPUTE)
    return b


@triton.jit
def affine(mean, spread, weight, bias, o_c, m_c, eps_bits, VARIANCE: tl.constexpr, COMPUTE: tl.constexpr):
    """(mean, 1 / std, weight, bias) of a block of channels, each neutral where it is not given."""
    b_mean = load_or(mean, o_c, m_c, 0.0, COMPUTE)
    b_invstd = load_or(spread, o_c, m_c, 1.0, COMPUTE)
    if VARIANCE:
        b_invstd = tl.rsqrt(b_invstd + number(eps_bits, COMPUTE))
    return b_mean, b_invstd, load_or(weight, o_c, m_c, 1.0, COMPUTE), load_or(bias, o_c, m_c, 0.0, COMPUTE)


@triton.jit
def tile(rows, units, C, P, VEC: tl.constexpr, LAST: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr):
    """This program's part of a dense map as ``rows`` of ``units * VEC`` elements: (offset, mask, n, c, mask of c).

    channels_last (LAST): a row is a pixel, a lane its channel. Else a row is a plane and a lane its pixel. The factor
    VEC tells the compiler what divides the row length, so that accesses are 16 bytes wide for C = 24 too.
    """
    lanes = units * VEC
    blocks = tl.cdiv(lanes, LANES)
    i_row = (tl.program_id(0) // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    i_lane = (tl.program_id(0) % blocks) * LANES + tl.arange(0, LANES)[None, :]
    m_row, m_lane = i_row < rows, i_lane < lanes
    if LAST:
        i_n, i_c, m_c = i_row // P, i_lane, m_lane
    else:
        i_n, i_c, m_c = i_row // C, i_row % C, m_row
    return i_row * lanes + i_lane, m_row & m_lane, i_n, i_c, m_c


@triton.jit
def before_activation(b_z, residual, o_residual, m, bias, mean, spread, weight, shift, i_c, m_c, eps_bits,
                      COMPUTE: tl.constexpr):  # fmt: skip
    """bn(z + bias) + residual, everything optional; ``i_c`` the channels, shaped to go with ``b_z``."""
    if bias is not None:
        b_z += load_or(bias, i_c, m_c, 0.0, COMPUTE)
    if spread is not None:
        b_mean, b_invstd, b_weight, b_shift = affine(mean, spread, weight, shift, i_c, m_c, eps_bits, True, COMPUTE)
        b_z = (b_z - b_mean) * (b_invstd * b_weight) + b_shift
    if residual is not None:
        b_z += tl.load(residual + o_residual, mask=m, other=0.0).to(COMPUTE)
    return b_z


@triton.jit
def pixel_rows(i_n, i_p, m, t, x_n, x_s, H, W, Wo, stride_h, stride_w, dilation_h, dilation_w, top, left,
               KW: tl.constexpr, TRANSPOSED: tl.constexpr, LAST: tl.constexpr):  # fmt: skip
    """(offset, mask) of the pixels of x that tap ``t`` of output pixels (i_n, i_p) reads."""
    h = i_p // Wo
    w = i_p % Wo
    if TRANSPOSED:
        h = h + top - (t // KW) * dilation_h
        w = w + left - (t % KW) * dilation_w
        m = m & (h >= 0) & (w >= 0) & (h % stride_h == 0) & (w % stride_w == 0)
        h = h // stride_h
        w = w // stride_w
    else:
        h = h * stride_h - top + (t // KW) * dilation_h
        w = w * stride_w - left + (t % KW) * dilation_w
        m = m & (h >= 0) & (w >= 0)
    m = m & (h < H) & (w < W)
    o = h * W + w
    if LAST:
        o *= x_s
    return i_n * x_n + o, m


@triton.jit
def steps(n, s, V: tl.constexpr, INDEX: tl.constexpr):
    """The step from image to image in 64 bits; within a tile, it and the one from pixel to pixel or plane to plane."""
    return tl.cast(n, tl.int64) * V, tl.cast(n, INDEX) * V, tl.cast(s, INDEX) * V


@triton.jit
def image_and_pixel(start, P, COUNT: tl.constexpr, INDEX: tl.constexpr):
    """(first image, image of each from there on, pixel in it) of the COUNT pixels after ``start``.

    What is added within a tile is INDEX, 32 bits unless the host found an image too large for it; the one 64-bit
    division is of a scalar.
    """
    first = start // P
    local = (start - first * P).to(INDEX) + tl.arange(0, COUNT)
    return first, local // P, local % P


@triton.jit
def element(start, i_c, c_units, p_units, VEC: tl.constexpr, LAST: tl.constexpr, COUNT: tl.constexpr):
    """Offsets of the COUNT elements (of N * P) after ``start`` of channels ``i_c`` in a dense map.

    VEC divides its contiguous dimension; ``start`` is a multiple of COUNT.
    """
    start = tl.multiple_of(start, COUNT)
    if LAST:
        o = (start + tl.arange(0, COUNT))[:, None] * (c_units * VEC) + i_c
    else:
        P = p_units * VEC
        n, i_n, i_p = image_and_pixel(start, P, COUNT, tl.int32)
        plane = tl.cast(P, tl.int64)
        o = ((n + i_n) * (c_units * plane) + i_p)[:, None] + i_c * plane
    return o
