# SPDX-License-Identifier: Apache-2.0
"""h-swish, forward and backward: the kernels of activation.py."""

from __future__ import annotations

from torch import Tensor

from .activation import launch_activation, launch_activation_backward


def launch_hardswish(x: Tensor) -> Tensor:
    """x * relu6(x + 3) / 6, in the memory format of x."""
    return launch_activation(x, "hardswish")


def launch_hardswish_backward(grad: Tensor, x: Tensor) -> Tensor:
    """grad * hardswish'(x), in the memory format of x."""
    return launch_activation_backward(grad, x, "hardswish")
