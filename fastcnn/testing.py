# SPDX-License-Identifier: Apache-2.0
"""What every test of an op shares: the tolerance policy, named cases, memory layouts, guarded storage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# unit: spacing of the storage type at 1; accumulate: spacing of the type that the kernels sum in.
UNIT = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
ACCUMULATE = {torch.float64: 2.0**-52, torch.float32: 2.0**-23, torch.float16: 2.0**-23, torch.bfloat16: 2.0**-23}
DTYPES = tuple(UNIT)
SUM_FACTOR = (
    4.0  # a sum of K rounded products errs by about sqrt(K) units of its magnitude; torch on the cases below: 0.54
)
RIVAL_FACTOR = (
    5.0  # an error is also right when torch's own, same dtype and same input, is at least a fifth of it (DESIGN.md 6)
)

FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def allowed_error(
    exact: Tensor, dtype: torch.dtype, reduction: int = 1, magnitude: Tensor | float | None = None
) -> Tensor:
    """Elementwise: one rounding at the store, plus what a sum of ``reduction`` products of total ``magnitude`` loses.

    ``magnitude`` is the same sum over absolute values where the caller has it, else the largest ``|exact|``.
    """
    size = torch.where(exact.isfinite(), exact.abs(), 0.0)
    if magnitude is None:
        magnitude = size.max() if size.numel() else 0.0
    rounding = UNIT[dtype] * size + torch.finfo(dtype).tiny * UNIT[dtype]
    return rounding + SUM_FACTOR * math.sqrt(max(reduction, 1)) * ACCUMULATE[dtype] * magnitude


def assert_close_fp64(
    got: Tensor,
    exact: Tensor,
    *,
    reduction: int = 1,
    magnitude: Tensor | float | None = None,
    rival: Tensor | None = None,
    label: str = "result",
) -> None:
    """``got`` against the same thing computed in fp64, element by element.

    Args:
        exact: float64, the shape of ``got``; NaN and Inf must stand at the same places.
        reduction: how many products an element sums (C / groups * kH * kW of a convolution, N * H * W of a statistic).
        rival: torch's own result in the dtype of ``got``; five times its largest error is allowed too.
    """
    assert exact.dtype is torch.float64, f"{label}: the reference must be float64, got {exact.dtype}"
    assert tuple(got.shape) == tuple(exact.shape), f"{label}: shape {list(got.shape)}, wanted {list(exact.shape)}"
    if got.numel() == 0:
        return
    got, exact = got.detach(), exact.detach()
    rounded = exact.to(got.dtype).double()
    allowed = allowed_error(exact, got.dtype, reduction, magnitude)
    if rival is not None:
        error = (rival.detach().double() - exact).abs()
        error = error[error.isfinite()]
        allowed = torch.maximum(allowed, RIVAL_FACTOR * (error.max() if error.numel() else exact.new_zeros(())))
    value = got.double()
    largest = torch.finfo(got.dtype).max
    near_overflow = exact.isfinite() & (exact.abs() + allowed >= largest)
    same_kind = torch.where(
        rounded.isnan(), value.isnan(), torch.where(rounded.isinf(), value == rounded, value.isfinite())
    )
    good = same_kind & (~rounded.isfinite() | ((value - exact).abs() <= allowed))
    good |= near_overflow & ((value == rounded) | ((value.sign() == exact.sign()) & (value.abs() + allowed >= largest)))
    if bool(good.all()):
        return
    bad = (~good).nonzero()
    where = tuple(bad[0].tolist())
    error = (value - exact).abs()
    worst = (error / allowed).nan_to_num(math.inf).max().item()
    raise AssertionError(
        f"{label} ({got.dtype}): {len(bad)} of {got.numel()} elements differ, worst {worst:.3g} times the allowed; "
        f"first at {list(where)}: got {value[where].item():.9g}, wanted {exact[where].item():.9g} "
        f"(error {error[where].item():.3g}, allowed {allowed.expand_as(exact)[where].item():.3g})"
    )


def assert_format(y: Tensor, like: Tensor, label: str = "result") -> None:
    """``y`` is dense in the memory format that PyTorch's own rule gives an output computed from ``like``."""
    memory_format = torch._prims_common.suggest_memory_format(like) if like.dim() == 4 else torch.contiguous_format
    wanted = torch.empty(y.shape, device="meta", memory_format=memory_format).stride()
    assert y.stride() == wanted, f"{label}: strides {y.stride()}, wanted {wanted}"


class Case(NamedTuple):
    """One convolution. ``padding`` is (left, right, top, bottom), or "same" or "valid"; ``out`` output channels."""

    name: str
    N: int
    C: int
    H: int
    W: int
    out: int
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] | str = (1, 1, 1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def x(
        self, dtype: torch.dtype = torch.float32, memory_format: torch.memory_format = torch.contiguous_format
    ) -> Tensor:
        return (
            torch.randn(self.N, self.C, self.H, self.W, dtype=torch.float64)
            .to(dtype)
            .contiguous(memory_format=memory_format)
        )

    def weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(self.out, self.C // self.groups, *self.kernel, dtype=torch.float64).to(dtype)

    @property
    def reduction(self) -> int:
        return self.C // self.groups * self.kernel[0] * self.kernel[1]


def _depthwise(
    name: str,
    C: int,
    H: int,
    W: int,
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] | str | None = None,
    dilation: tuple[int, int] = (1, 1),
    multiplier: int = 1,
    N: int = 2,
) -> Case:
    h, w = ((kernel[i] - 1) // 2 * dilation[i] for i in (0, 1))
    return Case(
        name, N, C, H, W, C * multiplier, kernel, stride, (w, w, h, h) if padding is None else padding, dilation, C
    )


# Channel tails around every vector width, awkward kernels and paddings (the kinds in oneDNN's regression list).
DEPTHWISE_CASES = (
    _depthwise("mobile-3x3", 32, 14, 14, (3, 3)),
    _depthwise("mobile-5x5-s2", 40, 15, 13, (5, 5), (2, 2)),
    _depthwise("row-1x7", 7, 9, 21, (1, 7)),
    _depthwise("column-9x1", 9, 21, 5, (9, 1)),
    _depthwise("even-2x2", 13, 8, 8, (2, 2), padding=(0, 1, 0, 1)),
    _depthwise("even-4x6", 33, 11, 12, (4, 6), (1, 2), (3, 2, 1, 2)),
    _depthwise("7x7-s3", 31, 23, 17, (7, 7), (3, 3)),
    _depthwise("stride-5", 8, 26, 31, (3, 3), (5, 5)),
    _depthwise("stride-swapped", 16, 17, 19, (3, 5), (1, 2)),
    _depthwise("dilated", 12, 19, 18, (3, 3), dilation=(2, 3)),
    _depthwise("multiplier-2", 5, 10, 9, (3, 3), multiplier=2),
    _depthwise("multiplier-3-same", 6, 11, 11, (3, 3), (2, 2), "same", multiplier=3),
    _depthwise("same-s2-even", 24, 12, 12, (3, 3), (2, 2), "same"),
    _depthwise("pad-exceeds-kernel", 7, 4, 4, (3, 3), padding=(4, 0, 0, 5)),
    _depthwise("1x1", 55, 6, 7, (1, 1), padding=(0, 0, 0, 0)),
    _depthwise("one-pixel", 113, 1, 1, (3, 3)),
    _depthwise("one-channel", 1, 9, 8, (3, 3)),
    _depthwise("one-column", 20, 33, 1, (5, 3), N=1),
    _depthwise("kernel-is-image", 42, 7, 7, (7, 7), padding=(0, 0, 0, 0)),
    _depthwise("empty-batch", 8, 7, 7, (3, 3), N=0),
)


def arrange(x: Tensor, layout: str) -> Tensor:
    """The same values as a tensor of this layout.

    channels_last has its strides for size-1 dimensions too, where ``.contiguous(memory_format=)`` leaves them alone.
    """
    if layout == "nchw" or (layout == "channels_last" and x.dim() != 4):
        return x.contiguous()
    if layout == "channels_last":
        return torch.empty(x.shape, dtype=x.dtype, memory_format=torch.channels_last).copy_(x)
    if layout == "sliced":  # every second element of a wider tensor whose rest is NaN
        wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 1), math.nan)
        wide[..., 1::2] = x
        return wide[..., 1::2]
    if layout == "transposed":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "offset":  # starts one element after an aligned address
        base = x.new_full((x.numel() + 1,), math.nan)
        base[1:] = x.reshape(-1)
        return base[1:].view(x.shape)
    raise ValueError(f"arrange: layout must be nchw, channels_last, sliced, transposed or offset, got {layout!r}")


LAYOUTS = ("nchw", "channels_last", "sliced", "transposed", "offset")


class Guarded:
    """``x`` with NaN before and after it in memory: reading that shows in the result, writing it in :meth:`check`."""

    MARGIN = 64

    def __init__(self, x: Tensor) -> None:
        # memory in the order of the strides, so that channels_last stays channels_last
        order = sorted(range(x.dim()), key=lambda d: (x.stride(d), x.size(d)), reverse=True)
        dense = x.permute(order).contiguous()
        self.buffer = x.new_full((dense.numel() + 2 * self.MARGIN,), math.nan)
        inside = self.buffer[self.MARGIN : self.MARGIN + dense.numel()].view(dense.shape)
        inside.copy_(dense)
        self.x = inside.permute(sorted(range(x.dim()), key=order.__getitem__))
        self.before = self.buffer.view(torch.uint8).clone()

    def check(self, label: str = "input") -> None:
        assert torch.equal(self.buffer.view(torch.uint8), self.before), f"{label} or its surroundings were written to"


def away_from_knots(x: Tensor, knots: Sequence[float] = (-3.0, 0.0, 3.0, 6.0), distance: float = 1e-3) -> Tensor:
    """``x`` with every value nearer than ``distance`` to a knot of an activation moved past it."""
    for knot in knots:
        x = torch.where((x - knot).abs() < distance, x + 2 * distance, x)
    return x
