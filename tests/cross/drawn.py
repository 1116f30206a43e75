# SPDX-License-Identifier: Apache-2.0
"""What hypothesis draws: convolutions with every option, biased to the tails of vectors, and how often it draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastcnn import ops
from fastcnn.testing import DTYPES, LAYOUTS, arrange
from tests.cross import exact

TAILS = (1, 7, 8, 9, 31, 32, 33, 113)
SIDES = (1, 2, 5, 7, 8, 9, 14, 31, 33)
SMOOTH = ("identity", "silu", "sigmoid")
TORCH = {"identity": lambda x: x, "relu": F.relu, "relu6": F.relu6, "hardswish": F.hardswish}
TORCH |= {"hardsigmoid": F.hardsigmoid, "silu": F.silu, "sigmoid": torch.sigmoid}


PROPERTIES: dict[str, tuple[Callable, st.SearchStrategy, int]] = {}


def holds_for(strategy: st.SearchStrategy, examples: int) -> Callable:
    """Names a property: what it draws, and how many examples the short form takes."""

    def keep(check: Callable) -> Callable:
        PROPERTIES[check.__name__] = (check, strategy, examples)
        return check

    return keep


def run(name: str, times: int = 1) -> None:
    """The property on drawn values; the short form (once) draws the same ones each time: `make test` is steady."""
    check, strategy, examples = PROPERTIES[name]
    fixed = times == 1
    rules = settings(
        max_examples=examples * times, deadline=None, derandomize=fixed, database=None, print_blob=not fixed
    )
    settings(rules, suppress_health_check=list(HealthCheck))(given(strategy)(check))()


@dataclass
class Conv:
    """A convolution of the public pages: options as a user may spell them."""

    N: int
    C: int
    H: int
    W: int
    out: int
    groups: int
    kernel: tuple[int, int]
    stride: int | tuple[int, int]
    padding: int | str | tuple[int, ...]
    dilation: int | tuple[int, int]
    kind: str
    layout: str
    dtype: torch.dtype
    with_bias: bool
    with_residual: bool
    seed: int

    def __post_init__(self) -> None:
        window = [d * (k - 1) + 1 for d, k in zip(exact._pair(self.dilation), self.kernel, strict=True)]
        four = exact.four_paddings(
            self.padding, (1, 1), self.kernel, exact._pair(self.stride), exact._pair(self.dilation)
        )
        ends = (0, 0) if self.padding == "same" else (four[2] + four[3], four[0] + four[1])
        if self.padding != "same":  # grown until the kernel fits
            self.H, self.W = max(self.H, window[0] - ends[0]), max(self.W, window[1] - ends[1])
        self.generator = torch.Generator().manual_seed(self.seed)
        self.x = self.map(self.N, self.C, self.H, self.W)
        self.weight = self.random(self.out, self.C // self.groups, *self.kernel)
        self.bias = self.random(self.out) if self.with_bias else None
        self.out_shape = exact.convolution(
            torch.zeros(1, self.C, self.H, self.W, device="meta"), self.weight.float().to("meta"), None, *self.geometry
        ).shape[1:]
        self.residual = self.map(self.N, *self.out_shape) if self.with_residual else None

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def map(self, *shape: int) -> Tensor:
        return arrange(self.random(*shape), self.layout)

    def vector(self, positive: bool = False) -> Tensor:
        values = torch.randn(self.out, generator=self.generator, dtype=torch.float64)
        return (values.abs() + 0.3 if positive else values).to(torch.promote_types(self.dtype, torch.float32))

    @property
    def depthwise(self) -> bool:
        return self.groups == self.C

    @property
    def geometry(self) -> tuple:
        return self.stride, self.padding, self.dilation, self.groups

    @property
    def reduction(self) -> int:
        return self.weight[0].numel()

    def ours(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        kind: str = "identity",
    ) -> Tensor:
        """By the depthwise page where it applies, else by conv_bn_act without a batch norm."""
        stride, padding, dilation, groups = self.geometry
        if self.depthwise:
            return ops.depthwise_conv2d(x, weight, bias, stride, padding, dilation, kind, residual)
        return ops.conv_bn_act(
            x,
            weight,
            bias=bias,
            residual=residual,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            activation=kind,
        )

    def exact(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        kind: str = "identity",
    ) -> Tensor:
        x, weight, bias, residual = (None if t is None else t.double() for t in (x, weight, bias, residual))
        y = exact.convolution(x, weight, bias, *self.geometry)
        return exact.activation(y if residual is None else y + residual, kind)

    def magnitude(self, residual: Tensor | None = None) -> Tensor:
        bias = None if self.bias is None else self.bias.double().abs()
        y = exact.convolution(self.x.double().abs(), self.weight.double().abs(), bias, *self.geometry)
        return y if residual is None else y + residual.double().abs()

    def torch_convolution(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        stride, padding, dilation, groups = self.geometry
        four = exact.four_paddings(padding, x.shape[2:], self.kernel, exact._pair(stride), exact._pair(dilation))
        return F.conv2d(F.pad(x, four), weight, bias, stride, 0, dilation, groups)

    def torch(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        kind: str = "identity",
    ) -> Tensor:
        y = self.torch_convolution(x, weight, bias)
        return TORCH[kind](y if residual is None else y + residual)


@st.composite
def convs(
    draw,
    depthwise: bool | None = None,
    dtypes: tuple = (torch.float32,),
    kinds: tuple = exact.KINDS,
    layouts: tuple = LAYOUTS,
    least_batch: int = 0,
    largest: int = 4000,
    plain: bool = False,
) -> Conv:
    """``largest`` bounds N * C * H * W before padding; ``plain`` leaves out bias, residual and activation."""
    pick = lambda *values: draw(st.sampled_from(values))  # noqa: E731
    if depthwise is None:
        depthwise = draw(st.booleans())
    if depthwise:
        C = pick(*TAILS)
        groups, out = C, C * pick(1, 1, 2, 3)
    else:
        groups = pick(1, 1, 2, 3)
        C = groups * pick(1, 3, 8, 17)
        out = groups * pick(1, 4, 7, 16, 33)
    N = pick(*range(least_batch, 4))
    H, W = pick(*SIDES), pick(*SIDES)
    while N * C * H * W > largest:
        H, W = (H + 1) // 2, (W + 1) // 2
        if H * W == 1:
            N = 1
            break
    kernel = pick(3, 1, 5, 2, 4, 7, 9), pick(3, 1, 5, 2, 6, 7, 9)
    if not depthwise and draw(st.booleans()):
        kernel = (1, 1)
    number = st.sampled_from((1, 1, 2, 3))
    pair = st.one_of(number, st.tuples(number, number))
    paddings = st.one_of(
        st.sampled_from(("same", "valid")),
        st.just(kernel[0] // 2),
        st.tuples(st.integers(0, kernel[0]), st.integers(0, kernel[1])),
        st.tuples(
            st.integers(0, kernel[1]), st.integers(0, kernel[1]), st.integers(0, kernel[0]), st.integers(0, kernel[0])
        ),
    )
    stride = draw(pair)
    return Conv(
        N,
        C,
        H,
        W,
        out,
        groups,
        kernel,
        stride,
        draw(paddings),
        draw(pair),
        "identity" if plain else pick(*kinds),
        pick(*layouts),
        pick(*dtypes),
        not plain and draw(st.booleans()),
        not plain and draw(st.booleans()),
        draw(st.integers(0, 999)),
    )


@st.composite
def maps(draw, channels: tuple = TAILS, least_batch: int = 1) -> Tensor:
    """A tensor [N, C, H, W] of any dtype and layout."""
    N = draw(st.integers(least_batch, 3))
    C, H, W = (draw(st.sampled_from(sizes)) for sizes in (channels, SIDES, SIDES))
    dtype, layout = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(LAYOUTS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    return arrange(torch.randn(N, C, H, W, generator=generator, dtype=torch.float64).to(dtype), layout)
