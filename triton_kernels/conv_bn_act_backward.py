# SPDX-License-Identifier: Apache-2.0
"""Gradients of conv_bn_act: batch norm and activation (batch_norm_act.py), then two GEMMs.

For x: the forward kernel with the weight transposed. For the weight: [O, pixels] x [pixels, C] for each tap; the
pixels are cut into parts until every multiprocessor has work, and the parts are added in one fixed order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _configs, _host, _launch
from ._epilogue import image_and_pixel, pixel_rows, steps
from ._reduce import channel_sums, sum_parts
from .batch_norm_act import backward as batch_norm_backward
from .conv_bn_act import gemm, launch_conv_bn_act
from .depthwise_conv2d import depthwise_gradients


@triton.jit
def _conv_bn_act_backward_weight_kernel(
    grad, x, parts, N, p_units, o_units, c_units, g_n, g_s, x_n, x_s, Wo, H, W, stride_h, stride_w, dilation_h,
    dilation_w, top, left, chunk, KH: tl.constexpr, KW: tl.constexpr, POINTWISE: tl.constexpr, LAST: tl.constexpr,
    VP: tl.constexpr, VO: tl.constexpr, VC: tl.constexpr, VG: tl.constexpr, VX: tl.constexpr, OUT: tl.constexpr,
    IN: tl.constexpr, PIXELS: tl.constexpr, PRECISION: tl.constexpr, COMPUTE: tl.constexpr, INDEX: tl.constexpr,
):  # fmt: skip
    P, O, C = p_units * VP, o_units * VO, c_units * VC
    group = tl.program_id(2)
    blocks = tl.cdiv(C, IN)
    i_o = tl.program_id(0) // (blocks * KH * KW) * OUT + tl.arange(0, OUT)
    t = tl.program_id(0) // blocks % (KH * KW)
    i_c = tl.program_id(0) % blocks * IN + tl.arange(0, IN)
    m_o, m_c = i_o < O, i_c < C
    first = tl.program_id(1).to(tl.int64) * chunk
    pixels = tl.cast(N, tl.int64) * P
    g_image, g_n, g_s = steps(g_n, g_s, VG, INDEX)
    x_image, x_n, x_s = steps(x_n, x_s, VX, INDEX)
    grad += tl.cast(group, tl.int64) * O * (1 if LAST else g_s)
    x += tl.cast(group, tl.int64) * C * (1 if LAST else x_s)
    b_acc = tl.zeros((OUT, IN), COMPUTE)
    for m in range(0, tl.minimum(chunk, pixels - first), PIXELS):
        start = tl.multiple_of(first + m, PIXELS)
        m_m = start + tl.arange(0, PIXELS) < pixels
        n, i_n, i_p = image_and_pixel(start, P, PIXELS, INDEX)
        o_x, m_x = i_n * x_n + i_p * (x_s if LAST else 1), m_m
        if not POINTWISE:
            o_x, m_x = pixel_rows(i_n, i_p, m_m, t, x_n, x_s, H, W, Wo, stride_h, stride_w, dilation_h, dilation_w, top,
                                  left, KW, False, LAST)  # fmt: skip
        if LAST:
            o_g = (i_n * g_n + i_p * g_s)[None, :] + i_o[:, None]
            o_x = o_x[:, None] + i_c[None, :]
        else:
            o_g = (i_n * g_n + i_p)[None, :] + (i_o * g_s)[:, None]
            o_x = o_x[:, None] + (i_c * x_s)[None, :]
        b_grad = tl.load(grad + n * g_image + o_g, mask=m_o[:, None] & m_m[None, :], other=0.0)
        b_x = tl.load(x + n * x_image + o_x, mask=m_x[:, None] & m_c[None, :], other=0.0)
        b_acc = tl.dot(b_grad, b_x, b_acc, input_precision=PRECISION, out_dtype=COMPUTE)
    o = (tl.program_id(1).to(tl.int64) * tl.num_programs(2) + group) * O + i_o
    o = (o * (KH * KW) + t)[:, None] * C + i_c[None, :]
    tl.store(parts + o, b_acc, mask=m_o[:, None] & m_c[None, :])


def _backward_weight(grad: Tensor, x: Tensor, weight: Tensor, last: bool, geometry: Sequence[Sequence[int]],
                     groups: int) -> Tensor:  # fmt: skip
    (stride, padding, dilation), (O, C, kH, kW), P = geometry, weight.shape, grad.shape[2] * grad.shape[3]
    O //= groups
    pointwise = (kH, kW) == (1, 1) and tuple(stride) == (1, 1) and not any(padding)
    grad, g_n, g_s = _host.rows_of(grad, last)
    x, x_n, x_s = _host.rows_of(x, last)
    VP, VO, VC, VG, VX = (_host.vector(x.dtype, *n) for n in ((P,), (O,), (C,), (g_n, g_s), (x_n, x_s)))
    pixels = grad.shape[0] * P

    def run(tile: _configs.Tile) -> Tensor:
        blocks = triton.cdiv(O, tile.rows) * triton.cdiv(C, tile.columns) * kH * kW
        parts = _configs.splits(blocks * groups, pixels, tile.depth)
        chunk = triton.cdiv(triton.cdiv(pixels, parts), tile.depth) * tile.depth
        parts = torch.empty((triton.cdiv(pixels, chunk), groups * O, kH * kW, C), dtype=_host.wide(x), device=x.device)
        _conv_bn_act_backward_weight_kernel[(blocks, parts.shape[0], groups)](
            grad, x, parts, grad.shape[0], P // VP, O // VO, C // VC, g_n // VG, g_s // VG, x_n // VX, x_s // VX,
            grad.shape[3], *x.shape[2:], *stride, *dilation, padding[2], padding[0], chunk, KH=kH, KW=kW,
            POINTWISE=pointwise, LAST=last, VP=VP, VO=VO, VC=VC, VG=VG, VX=VX, OUT=tile.rows, IN=tile.columns,
            PIXELS=tile.depth, PRECISION=_configs.precision(x.dtype), COMPUTE=_host.compute_type(x),
            INDEX=_host.index_type(tile.depth, P, g_n, x_n), num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        return parts

    shape = (kH, kW, *stride, int(last), _launch.size_class(pixels), O, C)
    with torch.cuda.device_of(x):
        tile = _configs.gemm_tile(x, O, C, pixels, last)
        parts = _launch.launch("gemm_weight", shape, x, tile, lambda: _configs.gemm_candidates(tile, C, pixels), run)
    found = sum_parts(parts, _host.empty(weight, weight.shape, True))  # [O, kH, kW, C] in memory
    return _in_format_of(weight, found)


def _in_format_of(weight: Tensor, found: Tensor) -> Tensor:
    memory_format = torch.channels_last if _host.is_channels_last(weight) else torch.contiguous_format
    strides = torch.empty(weight.shape, device="meta", memory_format=memory_format).stride()
    if found.is_contiguous(memory_format=memory_format):  # the strides of dimensions of one element may still differ
        return found.as_strided(weight.shape, strides)
    return found.contiguous(memory_format=memory_format)


def launch_conv_bn_act_backward(
    grad: Tensor, x: Tensor, weight: Tensor, z: Tensor | None, bias: Tensor | None, bn_weight: Tensor | None,
    bn_bias: Tensor | None, mean: Tensor | None, invstd: Tensor | None, residual: Tensor | None, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], groups: int, training: bool, activation: str, mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, weight, bias, bn_weight, bn_bias and residual; what the mask switches off is an empty tensor."""
    last = _host.is_channels_last(x)
    four = _host.resolve_padding(padding, x, weight, stride, dilation)
    geometry, wide = (stride, four, dilation), _host.wide(x)
    found = [torch.empty(0, dtype=x.dtype, device=x.device) for _ in range(6)]
    g, sums = grad, None
    if activation == "identity" and mean is None and mask[5]:
        found[5] = _host.empty(x, grad.shape, last).copy_(grad)
    elif activation != "identity" or mean is not None:
        if z is None and (activation != "identity" or mask[3]):  # otherwise nothing reads its values
            nothing = (None,) * 5
            z = launch_conv_bn_act(x, weight, bias, *nothing, stride, four, dilation, groups, 0.0, "identity")
        g, grad_residual, sums = batch_norm_backward(
            grad, grad if z is None else z, last, mean, invstd, bn_weight, bn_bias, residual, training, activation,
            (mask[0] or mask[1], mask[5]), any(mask[2:5]),
        )  # fmt: skip
        found[5] = found[5] if grad_residual is None else grad_residual
        for place, row, vector in ((3, 1, bn_weight), (4, 0, bn_bias)):
            if mask[place]:
                found[place] = sums[row].to(vector.dtype)
    if mask[2]:
        if training:  # batch norm takes the mean of the batch away, and with it what a bias adds
            total = torch.zeros(bias.shape, dtype=wide, device=x.device)
        elif sums is None:
            total = channel_sums(_host.dense(grad, last), last, torch.empty(bias.shape, dtype=wide, device=x.device))
        else:
            total = sums[0]
            for factor in (invstd, bn_weight):
                total = total if factor is None else total * factor
        found[2] = total.to(bias.dtype)
    if groups == x.shape[1] > 1:
        found[0], grad_weight = depthwise_gradients(g, x, weight, last, geometry, mask[0], mask[1])
        if mask[1]:
            found[1] = _in_format_of(weight, grad_weight)
        return tuple(found)
    if mask[0]:
        found[0] = _host.empty(x, x.shape, last)
        if x.numel():
            gemm(g, weight, found[0], last, True, geometry, groups)
    if mask[1]:
        found[1] = _backward_weight(g, x, weight, last, geometry, groups) if g.numel() else torch.zeros_like(weight)
    return tuple(found)
