# SPDX-License-Identifier: Apache-2.0
"""Arguments for every op of fastcnn/schemas.txt, over shapes, layouts and dtypes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastcnn.testing import arrange
from tests.cross.exact import KINDS, four_paddings

SHAPES = (
    (2, 8, 7, 5),
    (1, 33, 9, 9),
    (3, 31, 1, 1),
    (2, 1, 6, 4),
    (2, 1, 1, 1),
    (0, 6, 4, 4),
    (2, 9, 1, 8),
    (1, 57, 2, 3),
)


class Maker:
    """Random tensors of one dtype and layout; per-channel vectors are in the accumulation type."""

    def __init__(self, dtype: torch.dtype, layout: str, shape: tuple[int, int, int, int]) -> None:
        self.dtype, self.layout, self.shape = dtype, layout, shape
        self.wide = torch.promote_types(dtype, torch.float32)
        self.generator = torch.Generator().manual_seed(sum(shape))

    def random(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(dtype or self.dtype)

    def map(self, *shape: int) -> Tensor:
        return arrange(self.random(*(shape or self.shape)), self.layout)

    def vector(self, size: int) -> Tensor:
        return self.random(size, dtype=self.wide)

    def positive(self, size: int) -> Tensor:
        return self.vector(size).abs() + 0.5


def _activation(m: Maker) -> Iterator[tuple]:
    for kind in KINDS:
        yield m.map(), kind


def _activation_backward(m: Maker) -> Iterator[tuple]:
    for kind in KINDS:
        yield m.map(), m.map(), kind


def _channel_shuffle(m: Maker) -> Iterator[tuple]:
    for groups in {g for g in (1, 2, 3, 4, m.shape[1]) if m.shape[1] % g == 0}:
        yield m.map(), groups


def _se(m: Maker) -> tuple:
    C, R = m.shape[1], 3
    return m.random(R, C, 1, 1), m.vector(R), m.random(C, R, 1, 1), m.vector(C)


def _se_scale(m: Maker) -> Iterator[tuple]:
    yield (m.map(), *_se(m), "relu", "hardsigmoid")
    yield (m.map(), *(w.flatten(1) if w.dim() == 4 else w for w in _se(m)), "silu", "sigmoid")


def _se_scale_backward(m: Maker) -> Iterator[tuple]:
    x = m.map()
    yield m.map(), x, x.to(m.wide).mean((2, 3)), *_se(m), "relu", "hardsigmoid"


def _se_gate(m: Maker) -> Iterator[tuple]:
    yield (m.map(), *_se(m), "silu", "hardsigmoid")


def _pointwise(m: Maker) -> Iterator[tuple]:
    N, C, H, W = m.shape
    out = C + 3
    tensors = m.vector(out), m.map(N, out, H, W), m.vector(N * C).view(N, C), m.vector(C), m.vector(C)
    weight = m.random(out, C, 1, 1)
    yield m.map(), weight, *tensors, "relu", "hardswish"
    yield m.map(), weight, None, None, tensors[2], None, None, "identity", "identity"
    yield m.map(), weight, tensors[0], None, None, *tensors[3:], "silu", "relu6"


def _masks(count: int) -> list[list[bool]]:
    return [[True] * count] + [[i == j for j in range(count)] for i in range(count)]


def _batch_norm_act(m: Maker) -> Iterator[tuple]:
    C = m.shape[1]
    yield m.map(), m.vector(C), m.positive(C), m.vector(C), m.vector(C), m.map(), 1e-5, "relu6"
    yield m.map(), m.vector(C), m.positive(C), None, None, None, 1e-3, "identity"


def _batch_norm_act_train(m: Maker) -> Iterator[tuple]:
    C = m.shape[1]
    yield m.map(), m.vector(C), m.positive(C), m.vector(C), m.vector(C), m.map(), 0.1, 1e-5, "hardswish"
    yield m.map(), None, None, None, None, None, 0.1, 1e-3, "identity"


def _statistics(m: Maker, z: Tensor, training: bool) -> tuple[Tensor, Tensor]:
    """(mean, invstd): of z itself in training, where a backward may rely on it, else any."""
    if not training or z.numel() == 0:
        return m.vector(z.shape[1]), m.positive(z.shape[1])
    var, mean = torch.var_mean(z.to(m.wide), (0, 2, 3), correction=0)
    return mean, (var + 1e-5).rsqrt()


def _batch_norm_act_backward(m: Maker) -> Iterator[tuple]:
    for training in (True, False):
        for mask in _masks(4):
            x = m.map()
            vectors = *_statistics(m, x, training), m.vector(m.shape[1]), m.vector(m.shape[1])
            yield m.map(), x, *vectors, m.map(), training, "silu", mask


# kernel, stride, padding, dilation
GEOMETRIES = (
    ((3, 3), [1, 1], [1, 1, 1, 1], [1, 1]),
    ((1, 1), [1, 1], [0, 0, 0, 0], [1, 1]),
    ((5, 3), [2, 1], [1, 2, 4, 0], [1, 2]),
    ((2, 4), [2, 3], [-1, -1, -1, -1], [1, 1]),
)


def _out_shape(m: Maker, out: int, kernel, stride, padding, dilation) -> tuple[int, int, int, int] | None:
    four = four_paddings("same" if padding[0] == -1 else padding, m.shape[2:], kernel, stride, dilation)
    ends = (four[2] + four[3], four[0] + four[1])
    size = [(m.shape[2 + d] + ends[d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1 for d in (0, 1)]
    return (m.shape[0], out, *size) if min(size) > 0 else None


def _depthwise(m: Maker, backward: bool) -> Iterator[tuple]:
    C = m.shape[1]
    for i, (kernel, *geometry) in enumerate(GEOMETRIES):
        out = C * (i % 2 + 1)
        shape = _out_shape(m, out, kernel, *geometry)
        if shape is None:
            continue
        kind = KINDS[i + 1]
        for full in (True, False):
            bias, residual = (m.vector(out), m.map(*shape)) if full else (None, None)
            arguments = (m.map(), m.random(out, 1, *kernel), bias, residual, *geometry, kind)
            if not backward:
                yield arguments
            else:
                for mask in _masks(4) if full else [[True, True, False, False]]:
                    yield (m.map(*shape), *arguments, mask)


def _depthwise_se_gate(m: Maker) -> Iterator[tuple]:
    for x, weight, bias, _, *window, kind in _depthwise(m, False):
        layers = _se(Maker(m.dtype, m.layout, (1, weight.shape[0], 1, 1)))
        yield x, weight, bias, *layers, *window, kind, "silu", "hardsigmoid"


def _convolutions(m: Maker) -> Iterator[tuple]:
    """Dense, grouped, depthwise and 1x1, each with everything (full) and with x and weight alone.

    Gives full, kind, output shape, weight, bias, bn_weight, bn_bias, mean, variance, residual, geometry, groups.
    """
    C = m.shape[1]
    for i, (kernel, *geometry) in enumerate(GEOMETRIES):
        out, groups = ((5, 1), (C, C), (2 * C, 3 if C % 3 == 0 else 1))[(i + sum(m.shape)) % 3]
        shape = _out_shape(m, out, kernel, *geometry)
        if shape is None:
            continue
        weight = m.random(out, C // groups, *kernel)
        for full in (True, False):
            vectors = (m.vector(out), m.vector(out), m.vector(out), m.vector(out), m.positive(out), m.map(*shape))
            yield full, KINDS[i + 1], shape, weight, *(vectors if full else [None] * 6), geometry, groups


def _conv_bn_act(m: Maker) -> Iterator[tuple]:
    for _, kind, _, weight, *vectors, geometry, groups in _convolutions(m):
        yield (m.map(), weight, *vectors, *geometry, groups, 1e-5, kind)


def _conv_bn_act_train(m: Maker) -> Iterator[tuple]:
    for _, kind, _, weight, *vectors, geometry, groups in _convolutions(m):
        yield (m.map(), weight, *vectors, *geometry, groups, 0.1, 1e-5, kind)


def _conv_bn_act_backward(m: Maker) -> Iterator[tuple]:
    for full, kind, shape, weight, bias, bn_weight, bn_bias, mean, invstd, residual, geometry, groups in _convolutions(
        m
    ):
        for training in (True, False):
            z = m.map(*shape) if training else None
            statistics = _statistics(m, z, True) if training else (mean, invstd)
            tensors = (m.map(*shape), m.map(), weight, z, bias, bn_weight, bn_bias, *statistics, residual)
            for mask in _masks(6) if full and training == (groups == 1) else [[True, True] + [full] * 4]:
                yield (*tensors, *geometry, groups, training, kind, mask)


def _max_pool2d(m: Maker, backward: bool) -> Iterator[tuple]:
    for kernel, stride, padding, ceil_mode in (
        ([3, 3], [2, 2], [1, 1], False),
        ([2, 2], [2, 2], [0, 0], True),
        ([3, 1], [1, 2], [1, 0], False),
    ):
        size = []
        for d in (0, 1):
            length = m.shape[2 + d] + padding[d]
            out = (length + padding[d] - kernel[d] + (stride[d] - 1 if ceil_mode else 0)) // stride[d] + 1
            size.append(out - 1 if ceil_mode and (out - 1) * stride[d] >= length else out)
        if all(m.shape[2 + d] + 2 * padding[d] >= kernel[d] for d in (0, 1)):
            arguments = m.map(), kernel, stride, padding, ceil_mode
            yield (m.map(*m.shape[:2], *size), *arguments) if backward else arguments


SAMPLES: dict[str, Callable[[Maker], Iterator[tuple]]] = {
    "activation": _activation,
    "activation_backward": _activation_backward,
    "hardswish": lambda m: iter([(m.map(),)]),
    "hardswish_backward": lambda m: iter([(m.map(), m.map())]),
    "channel_shuffle": _channel_shuffle,
    "channel_shuffle_concat": lambda m: iter([(m.map(), m.map())]),
    "global_avg_pool": lambda m: iter([(m.map(),)]),
    "global_avg_pool_backward": lambda m: iter([(m.map(*m.shape[:2], 1, 1), m.map())]),
    "max_pool2d": lambda m: _max_pool2d(m, False),
    "max_pool2d_backward": lambda m: _max_pool2d(m, True),
    "pointwise_conv2d": _pointwise,
    "se_gate": _se_gate,
    "se_scale": _se_scale,
    "se_scale_backward": _se_scale_backward,
    "batch_norm_act": _batch_norm_act,
    "batch_norm_act_train": _batch_norm_act_train,
    "batch_norm_act_backward": _batch_norm_act_backward,
    "depthwise_conv2d": lambda m: _depthwise(m, False),
    "depthwise_conv2d_backward": lambda m: _depthwise(m, True),
    "depthwise_se_gate": _depthwise_se_gate,
    "conv_bn_act": _conv_bn_act,
    "conv_bn_act_train": _conv_bn_act_train,
    "conv_bn_act_backward": _conv_bn_act_backward,
}


def samples(name: str, dtype: torch.dtype, layout: str, shapes: tuple = SHAPES) -> Iterator[tuple]:
    for shape in shapes:
        yield from SAMPLES[name](Maker(dtype, layout, shape))


def tensors_of(result: Tensor | tuple) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)
