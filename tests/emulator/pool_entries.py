# SPDX-License-Identifier: Apache-2.0
"""global_avg_pool, max_pool2d and se_scale for use_backend("emulator"): what their entries do around the launches."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastcnn.ops import _checks
from fastcnn.ops.max_pool2d import _fake
from tests.cross import exact
from tests.emulator.backend import accumulated, address, dense, serves, wide

MOST_TILES = 32  # kPoolMostTiles: the plan, which the kernels' module makes, takes no more


def _room(x: Tensor, *shape: int) -> Tensor:
    """NaN: what a kernel reads before it is written shows."""
    return torch.full(shape, float("nan"), dtype=wide(x))


def _planes(x: Tensor) -> tuple[list[int], bool]:
    return [*x.shape[:2], x.shape[2] * x.shape[3]], _checks.is_channels_last(x)


@serves("global_avg_pool")
def _global_avg_pool(kernels: ModuleType, x: Tensor) -> Tensor:
    y = _checks.empty_like_format(x, (*x.shape[:2], 1, 1))
    if y.numel():
        sizes, last = _planes(x)
        x, partial = dense(x, last), _room(x, MOST_TILES * y.numel())
        kernels.global_avg_pool(
            str(x.dtype), address(x), address(partial), partial.numel(), address(y), sizes, last
        )
    return y


@serves("global_avg_pool_backward", "global_avg_pool")
def _global_avg_pool_backward(kernels: ModuleType, grad: Tensor, x: Tensor) -> Tensor:
    grad_x = _checks.empty_like_format(x, x.shape)
    if grad_x.numel():
        grad = grad.contiguous()
        kernels.global_avg_pool_backward(str(x.dtype), address(grad), address(grad_x), *_planes(x))
    return grad_x


_FULL = 1 << 30  # blocks that fill the device: never reached, so that a thread has one row


def _windows(x: Tensor, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil: bool) -> tuple:
    return [*x.shape, *kernel_size, *stride, *padding], ceil, _checks.is_channels_last(x), _FULL


@serves("max_pool2d")
def _max_pool2d(kernels: ModuleType, x: Tensor, *windows: Any) -> Tensor:
    y = _fake(x, *windows)
    if y.numel():
        arguments = _windows(x, *windows)
        x = dense(x, arguments[2])
        kernels.max_pool2d(str(x.dtype), address(x), address(y), *arguments)
    return y


@serves("max_pool2d_backward", "max_pool2d")
def _max_pool2d_backward(kernels: ModuleType, grad: Tensor, x: Tensor, *windows: Any) -> Tensor:
    grad_x = _checks.empty_like_format(x, x.shape)
    if grad_x.numel():
        arguments = _windows(x, *windows)
        grad, x = dense(grad, arguments[2]), dense(x, arguments[2])
        kernels.max_pool2d_backward(str(x.dtype), address(grad), address(x), address(grad_x), *arguments)
    return grad_x


def _layers(x: Tensor, *weights: Tensor) -> list[Tensor]:
    """layers_of of csrc/cuda/se_scale.cu: one storage type for all."""
    kept = len({w.dtype for w in weights}) == 1 and weights[0].dtype in (x.dtype, wide(x))
    return [w.contiguous() if kept else accumulated(w, x) for w in weights]


def _problem(kernels: ModuleType, x: Tensor, layers: list[Tensor], *kinds: str) -> object:
    (N, C, pixels), last = _planes(x)
    types = str(x.dtype), str(layers[0].dtype)
    return kernels.Problem(*types, [N, C, layers[1].numel(), pixels], last, *map(exact.KINDS.index, kinds))


@serves("se_scale")
def _se_scale(
    kernels: ModuleType, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: str, gate: str
) -> tuple[Tensor, Tensor]:
    N, C = x.shape[:2]
    y, pooled = _checks.empty_like_format(x, x.shape), _room(x, N, C)
    if x.numel():
        layers = _layers(x, w1, b1, w2, b2)
        p = _problem(kernels, x, layers, activation, gate)
        x, partial, scale = dense(x, _checks.is_channels_last(x)), _room(x, N, MOST_TILES, C), _room(x, N, C)
        kernels.forward(p, [address(t) for t in (x, *layers, partial, pooled, scale, y)], 0)
    return y, pooled


@serves("se_scale_backward", "se_scale")
def _se_scale_backward(
    kernels: ModuleType, grad: Tensor, x: Tensor, pooled: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
    activation: str, gate: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    N, C, R, last = *x.shape[:2], b1.numel(), _checks.is_channels_last(x)
    weights, layers = (w1, b1, w2, b2), _layers(x, w1, b1, w2, b2)
    grad_x, found = _checks.empty_like_format(x, x.shape), [torch.empty_like(layer) for layer in layers]
    if x.numel():
        p = _problem(kernels, x, layers, activation, gate)
        images = dense(grad, last), dense(x, last), accumulated(pooled, x)
        scratch = _room(x, N, MOST_TILES, C), _room(x, N * (3 * C + 2 * R))
        kernels.backward(p, [address(t) for t in (*images, *layers, *scratch, grad_x, *found)])
    else:
        for t in found:
            t.zero_()
    return grad_x, *(t.to(w.dtype).view(w.shape) for t, w in zip(found, weights, strict=True))
