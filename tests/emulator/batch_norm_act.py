# SPDX-License-Identifier: Apache-2.0
"""Calls of the emulated batch norm kernels on CPU tensors, and what float64 says of them."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from fastcnn.testing import arrange
from tests.cross import exact

EPS, MOMENTUM = 1e-3, 0.3
SHAPES = {
    "mobile": (2, 24, 14, 14),
    "vector-tails": (3, 33, 5, 7),
    "one-channel": (4, 1, 9, 11),
    "one-pixel": (9, 40, 1, 1),
    "planes-of-49": (5, 16, 7, 7),
    "chunks": (2, 520, 3, 4),
    "one-value": (1, 3, 1, 1),
}
# more positions than a block takes, in both layouts; more segments than a warp has lanes
SEGMENTS = {"nhwc": (1, 16, 70, 64), "nchw": (1, 3, 130, 136), "forty": (1, 63, 32, 40)}


class Problem(NamedTuple):
    """``x``, ``grad`` and ``residual`` in one layout; the vectors are [C] in the accumulator's dtype."""

    x: Tensor
    grad: Tensor
    residual: Tensor | None
    scale: Tensor
    shift: Tensor
    mean: Tensor
    invstd: Tensor
    activation: str
    channels_last: bool

    @property
    def kind(self) -> int:
        return exact.KINDS.index(self.activation)

    @property
    def sizes(self) -> tuple[int, int, int]:
        N, C, H, W = self.x.shape
        return N, C, H * W

    def image(self) -> Tensor:
        """NaN in the shape and layout of x, with room behind it: a kernel that writes too much fails, not crashes."""
        storage = torch.full((5 * self.x.numel() + 512,), float("nan"), dtype=self.x.dtype)
        return storage.as_strided(self.x.shape, self.x.stride())

    def vector(self) -> Tensor:
        return torch.full_like(self.scale, float("nan"))

    def z(self) -> Tensor:
        x, scale, shift = self.x.double(), *(broadcast(v.double()) for v in (self.scale, self.shift))
        return x * scale + shift + (0 if self.residual is None else self.residual.double())

    def gradient_of_z(self) -> Tensor:
        z = self.z().requires_grad_()
        return torch.autograd.grad(exact.activation(z, self.activation), z, self.grad.double())[0]

    def away_from_knots(self) -> Problem:
        """No gradient where float32 may take another side of a knot than float64."""
        z, grad = self.z(), self.grad.clone(memory_format=torch.preserve_format)
        for knot in (-3, 0, 3, 6):
            grad[(z - knot).abs() < 1e-2] = 0
        return self._replace(grad=grad)


def broadcast(vector: Tensor) -> Tensor:
    return vector.view(1, -1, 1, 1)


def problem(
    shape: tuple[int, int, int, int], dtype: torch.dtype, channels_last: bool, activation: str = "identity",
    residual: bool = False,
) -> Problem:  # fmt: skip
    C = shape[1]
    wide = torch.promote_types(dtype, torch.float32)

    def image() -> Tensor:
        values = torch.randn(shape, dtype=torch.float64) * 2 + torch.randn(C, 1, 1, dtype=torch.float64)
        return arrange(values.to(dtype), "channels_last" if channels_last else "nchw")

    scale, shift, mean = (torch.randn(C, dtype=wide) for _ in range(3))
    invstd = torch.rand(C, dtype=wide) + 0.5
    return Problem(
        image(), image(), image() if residual else None, scale, shift, mean, invstd, activation, channels_last
    )


def moved(t: Tensor) -> Tensor:
    """The same tensor, one element further on in memory, with room behind it."""
    storage = torch.zeros(5 * t.numel() + 512, dtype=t.dtype)
    return storage[1:].as_strided(t.shape, t.stride(), storage_offset=1).copy_(t)


def address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def forward(kernels: ModuleType, p: Problem, y: Tensor | None = None) -> Tensor:
    y = p.image() if y is None else y
    tensors = [address(t) for t in (p.x, p.scale, p.shift, p.residual, y)]
    kernels.forward(str(p.x.dtype), tensors, p.sizes, p.channels_last, p.kind)
    return y


def fold(
    kernels: ModuleType, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor | None,
    invstd: Tensor | None = None, eps: float = EPS,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    scale, shift = (torch.full_like(mean, float("nan")) for _ in range(2))
    vectors = [address(t) for t in (weight, bias, mean, var, invstd, scale, shift)]
    kernels.fold(str(mean.dtype), vectors, mean.numel(), eps)
    return scale, shift


def room_for_parts(kernels: ModuleType, p: Problem) -> Tensor:
    return torch.full((kernels.sums_size(p.sizes),), float("nan"), dtype=torch.float64)


def statistics(
    kernels: ModuleType, p: Problem, running: tuple[Tensor, Tensor] | None = None, parts: Tensor | None = None,
    found: Sequence[Tensor] | None = None, momentum: float = MOMENTUM, eps: float = EPS,
) -> Sequence[Tensor]:  # fmt: skip
    """[mean, invstd, new_mean, new_var], the last two untouched without ``running``."""
    found = [p.vector() for _ in range(4)] if found is None else found
    parts = room_for_parts(kernels, p) if parts is None else parts
    vectors = [address(t) for t in (*(running or (None, None)), *found)]
    kernels.statistics(
        str(p.x.dtype), p.x.data_ptr(), vectors, parts.data_ptr(), p.sizes, p.channels_last, momentum, eps
    )
    return found


def backward_sums(
    kernels: ModuleType, p: Problem, parts: Tensor | None = None, found: Sequence[Tensor] | None = None
) -> Sequence[Tensor]:
    """[grad_weight, grad_bias, constant, slope]."""
    found = [p.vector() for _ in range(4)] if found is None else found
    parts = room_for_parts(kernels, p) if parts is None else parts
    tensors = [address(t) for t in (p.grad, p.x, p.residual, p.scale, p.shift, p.mean, None, None, None, None)]
    vectors = [address(t) for t in (p.invstd, *found)]
    kernels.backward_sums(str(p.x.dtype), tensors, vectors, parts.data_ptr(), p.sizes, p.channels_last, p.kind)
    return found


def backward_input(
    kernels: ModuleType, p: Problem, constant: Tensor | None, slope: Tensor | None, grad_x: Tensor | None,
    grad_residual: Tensor | None,
) -> None:  # fmt: skip
    images = p.grad, p.x, p.residual, p.scale, p.shift, p.mean, constant, slope, grad_x, grad_residual
    kernels.backward_input(str(p.x.dtype), [address(t) for t in images], p.sizes, p.channels_last, p.kind)
