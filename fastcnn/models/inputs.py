# SPDX-License-Identifier: Apache-2.0
"""What a net says to an input that it cannot take, and how its smallest and largest sizes are found."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class InputRule(NamedTuple):
    """What the net called ``name`` takes: ``channels``, and heights and widths from ``smallest`` to ``largest``."""

    name: str
    channels: int
    smallest: int | None = None
    largest: int | None = None

    def __str__(self) -> str:
        shape = f"[N, {self.channels}, H, W]"
        if self.smallest is None:
            return shape
        if self.largest is None:
            return f"{shape} with H and W from {self.smallest} up"
        if self.largest == self.smallest:
            return f"[N, {self.channels}, {self.smallest}, {self.smallest}]"
        return f"{shape} with H and W from {self.smallest} to {self.largest}"

    def allows(self, x: Tensor) -> bool:
        if x.dim() != 4 or x.shape[1] != self.channels:
            return False
        low, high = self.smallest or 0, self.largest or max(x.shape[2:])
        return all(low <= size <= high for size in x.shape[2:])


def check_input(module: nn.Module, args: tuple[Any, ...]) -> None:
    """A forward pre-hook: raises ValueError for an input that ``module.input_rule`` does not allow."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not args:
        return
    x, rule = args[0], module.input_rule
    if not isinstance(x, Tensor):
        raise TypeError(f"{rule.name}: the input must be a tensor {rule}, got {type(x).__name__}")
    if not rule.allows(x):
        raise ValueError(f"{rule.name}: the input must be {rule}, got {list(x.shape)}")


def name_itself(model: nn.Module, name: str, channels: int, facts: dict[str, Any]) -> None:
    """Have ``model`` check its input; ``facts`` are its metadata, with ``min_size`` and perhaps ``max_size``."""
    model.input_rule = InputRule(name, channels, facts.get("min_size"), facts.get("max_size"))
    model.register_forward_pre_hook(check_input)


def size_limits(build: Callable[[], nn.Module], input_size: list[int]) -> dict[str, int]:
    """``min_size`` of a net, and ``max_size`` where there is one, found by trying squares on the meta device.

    Args:
        build: makes the net, without a check of its input.
        input_size: one that it takes.
    """
    with torch.device("meta"):
        net = build().eval()
    channels, native = input_size[0], input_size[1]

    @torch.no_grad()
    def works(size: int) -> bool:
        try:
            net(torch.empty(1, channels, size, size, device="meta"))
        except Exception:  # whatever a layer says to a map that is too small
            return False
        return True

    if not works(native):
        raise ValueError(f"size_limits: the net does not take {input_size}")

    # Upwards: some nets take one size and not the next, where branches of ceil-mode pools must meet.
    limits = {"min_size": next(size for size in range(1, native + 1) if works(size))}
    good, bad = native, 2 * native + 1
    if not any(map(works, (2 * native, bad, 4 * native))):
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if works(middle) else (good, middle)
        limits["max_size"] = good
    return limits
