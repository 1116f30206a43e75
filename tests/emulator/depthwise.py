# SPDX-License-Identifier: Apache-2.0
"""Calls of the emulated depthwise kernels on CPU tensors, and what float64 says of them."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcnn.testing import Case

ACTIVATIONS = {
    "identity": lambda z: z, "relu": F.relu, "relu6": F.relu6, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid,
    "silu": F.silu, "sigmoid": torch.sigmoid,
}  # fmt: skip


def padding_of(case: Case) -> tuple[int, int, int, int]:
    """(left, right, top, bottom)."""
    if not isinstance(case.padding, str):
        return case.padding
    pads = []
    for size, kernel, stride, dilation in zip(
        (case.W, case.H), case.kernel[::-1], case.stride[::-1], case.dilation[::-1]
    ):
        total = max((-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
        pads += [total // 2, total - total // 2] if case.padding == "same" else [0, 0]
    return tuple(pads)


class Problem(NamedTuple):
    case: Case
    x: Tensor
    weight: Tensor
    scale: Tensor | None
    shift: Tensor | None
    residual: Tensor | None
    activation: str

    def exact(self) -> tuple[Tensor, Tensor]:
        """(result, sum of the magnitudes that went into it), in float64."""
        case, padding = self.case, padding_of(self.case)
        results = []
        for of in (lambda t: t.double(), lambda t: t.double().abs()):
            x = F.pad(of(self.x), padding)
            z = F.conv2d(x, of(self.weight), None, case.stride, 0, case.dilation, case.C)
            if self.scale is not None:
                z = z * of(self.scale).view(1, -1, 1, 1)
            if self.shift is not None:
                z = z + of(self.shift).view(1, -1, 1, 1)
            results.append(z if self.residual is None else z + of(self.residual))
        return ACTIVATIONS[self.activation](results[0]), results[1]

    def output(self) -> Tensor:
        """NaN in the shape and layout of the result."""
        case, (left, right, top, bottom) = self.case, padding_of(self.case)
        size = [
            (n + pad - d * (k - 1) - 1) // s + 1
            for n, pad, d, k, s in zip(
                (case.H, case.W), (top + bottom, left + right), case.dilation, case.kernel, case.stride
            )
        ]
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        y = torch.empty(case.N, case.out, *size, dtype=self.x.dtype, memory_format=memory_format)
        return y.fill_(float("nan"))

    @property
    def channels_last(self) -> bool:
        return self.x.stride(1) == 1 and self.x.stride(3) == self.x.shape[1]

    def run(self, kernels: ModuleType, y: Tensor | None = None, sums: Tensor | None = None) -> Tensor:
        case, y = self.case, self.output() if y is None else y
        x, weight, scale, shift, residual = (0 if t is None else t.data_ptr() for t in self[1:6])
        sizes = [case.N, case.C, case.H, case.W, case.out, *case.kernel]
        kernels.depthwise_conv2d(
            str(self.x.dtype), x, weight, scale, shift, residual, y.data_ptr(), sizes, case.stride, padding_of(case),
            case.dilation, self.channels_last, list(ACTIVATIONS).index(self.activation),
            0 if sums is None else sums.data_ptr(),
        )  # fmt: skip
        return y


def problem(
    case: Case, dtype: torch.dtype, channels_last: bool, activation: str = "identity", parts: str = ""
) -> Problem:
    """``parts``: which of scale, shift and residual take part, by name."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def tensor(*shape: int) -> Tensor:
        values = torch.randn(*shape, dtype=torch.float64).to(dtype)
        return torch.empty(shape, dtype=dtype, memory_format=memory_format).copy_(values)

    accumulator = torch.float64 if dtype is torch.float64 else torch.float32
    vectors = [torch.randn(case.out, dtype=accumulator) if name in parts else None for name in ("scale", "shift")]
    made = Problem(case, tensor(case.N, case.C, case.H, case.W), case.weight(dtype), *vectors, None, activation)
    return made._replace(residual=tensor(*made.output().shape) if "residual" in parts else None)
