# SPDX-License-Identifier: Apache-2.0
"""How the adversarial inputs are written down: number, what it is, and its check or the reason it has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fastcnn import ops
from fastcnn.testing import assert_close_fp64
from tests.cross import exact

NAMED = (ValueError, TypeError)


class Row(NamedTuple):
    number: int
    what: str
    check: Callable[..., None] | None  # None: does not apply, for the reason given
    reason: str = ""


def raises(number: int, what: str, call: Callable[[], object], words: str) -> Row:
    """The call must raise a ValueError or TypeError whose message starts with the op and holds these words."""

    def check() -> None:
        with pytest.raises(NAMED, match=words):
            call()

    return Row(number, f"{what}: error", check)


def right(number: int, what: str, check: Callable[..., None]) -> Row:
    return Row(number, f"{what}: right", check)


def absent(number: int, what: str, reason: str) -> Row:
    return Row(number, what, None, reason)


X = torch.linspace(-2, 2, 144).view(1, 4, 6, 6)
DEPTHWISE, DENSE, POINTWISE = (
    torch.linspace(-1, 1, 36).view(4, 1, 3, 3),
    torch.linspace(-1, 1, 288).view(8, 4, 3, 3),
    torch.ones(8, 4, 1, 1),
)
VECTOR, SE = torch.ones(4), (torch.ones(2, 4), torch.ones(2), torch.ones(4, 2), torch.ones(4))
CONVS = (("depthwise_conv2d", DEPTHWISE), ("conv_bn_act", DENSE), ("conv_bn_act", POINTWISE))


def conv(op: str, x: Tensor = X, weight: Tensor | None = None, **options) -> Tensor:
    return getattr(ops, op)(x, dict(CONVS[:2])[op] if weight is None else weight, **options)


def both(number: int, what: str, words: str, **options) -> list[Row]:
    return [raises(number, f"{op} {what}", lambda op=op: conv(op, **options), f"^{op}: {words}") for op in dict(CONVS)]


def same_as_exact(op: str, x: Tensor, weight: Tensor, **options) -> None:
    """The public call against the convolution written out tap by tap."""
    geometry = [options.get(name, default) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))]
    groups = x.shape[1] if op == "depthwise_conv2d" else 1
    wanted = exact.convolution(x.double(), weight.double(), None, *geometry, groups)
    finite = (t.double().nan_to_num(1, 1, 1).abs() for t in (x, weight))
    got = conv(op, x, weight, **options)
    assert_close_fp64(
        got,
        wanted,
        reduction=weight[0].numel(),
        magnitude=exact.convolution(*finite, None, *geometry, groups),
        label=op,
    )


def of_both(check: Callable[[str, Tensor], None]) -> Callable[[], None]:
    def run() -> None:
        for op, weight in CONVS:
            check(op, weight)

    return run


# every op as a function of its feature map alone
OF_A_MAP: dict[str, Callable[[Tensor], Tensor]] = {
    "hardswish": ops.hardswish,
    "silu": ops.silu,
    "depthwise_conv2d": lambda x: conv("depthwise_conv2d", x),
    "conv_bn_act": lambda x: conv("conv_bn_act", x),
    "batch_norm_act": lambda x: ops.batch_norm_act(x, VECTOR, VECTOR),
    "channel_shuffle": lambda x: ops.channel_shuffle(x, 2),
    "channel_shuffle_concat": lambda x: ops.channel_shuffle_concat(x, x),
    "se_scale": lambda x: ops.se_scale(x, *SE),
    "global_avg_pool": ops.global_avg_pool,
    "max_pool2d": lambda x: ops.max_pool2d(x, 2, 1),
}
