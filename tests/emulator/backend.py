# SPDX-License-Identifier: Apache-2.0
"""The emulated kernels as a backend: inside ``with emulator(emulated):`` ``use_backend("emulator")`` runs fastcnn's ops
on them, on CPU tensors, so that the tests of tests/ops are tests of csrc/cuda.

An op is a function here that does what its entry in csrc/cuda/<op>.cu does around the launch; ``@serves`` names it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import fastcnn
from fastcnn import backends
from fastcnn.ops import _checks
from tests.emulator import build

Emulated = Callable[[str], ModuleType]
ENTRIES: dict[str, tuple[str, Callable]] = {}  # op: (the module with its kernels, its entry)
_ACTIVATIONS = _checks.ACTIVATIONS  # in the order of the enum in csrc/common/epilogue.h


def serves(op: str, module: str | None = None) -> Callable:
    """Registers the decorated ``entry(kernels, *arguments of the op)``; ``module`` has its kernels, when not the op."""
    return lambda entry: ENTRIES.setdefault(op, (module or op, entry))[1]


@contextlib.contextmanager
def emulator(emulated: Emulated) -> Iterator[None]:
    """Adds the backend "emulator" to those that use_backend knows."""

    def kernel(op: torch._ops.OpOverload) -> Callable:
        module, entry = ENTRIES[op._schema.name.split("::")[1]]
        return lambda *args: entry(emulated(module), *args)

    backends.BACKENDS["emulator"] = backends.Backend(
        build.why_not, lambda device: device.type == "cpu", lambda op: op in ENTRIES, kernel, lambda x: "emulated CUDA"
    )
    try:
        with fastcnn.use_backend("emulator"):
            yield
    finally:
        del backends.BACKENDS["emulator"]


def address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def dense(x: Tensor | None, last: bool) -> Tensor | None:
    """as_layout of csrc/cpu/tensor.h."""
    memory_format = torch.channels_last if last else torch.contiguous_format
    if x is None or x.is_contiguous(memory_format=memory_format):
        return x
    return torch.empty(x.shape, dtype=x.dtype, memory_format=memory_format).copy_(x)


def accumulated(x: Tensor | None, like: Tensor) -> Tensor | None:
    """as_accumulator of csrc/cpu/tensor.h."""
    return None if x is None else x.to(torch.promote_types(like.dtype, torch.float32)).contiguous()


def in_order_of(x: Tensor, y: Tensor) -> Tensor:
    return x if x.stride() == y.stride() else torch.empty_like(y).copy_(x)


@serves("hardswish")
def _hardswish(kernels: ModuleType, x: Tensor, grad: Tensor | None = None) -> Tensor:
    y = torch.empty_like(x)
    if y.numel():
        x, grad = in_order_of(x, y), None if grad is None else in_order_of(grad, y)
        kernels.hardswish(str(x.dtype), address(grad), address(x), address(y), y.numel())
    return y


@serves("hardswish_backward", "hardswish")
def _hardswish_backward(kernels: ModuleType, grad: Tensor, x: Tensor) -> Tensor:
    return _hardswish(kernels, x, grad)


@serves("depthwise_conv2d")
def _depthwise_conv2d(
    kernels: ModuleType, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], activation: str,
) -> Tensor:  # fmt: skip
    padding = _checks.resolve_padding(padding, x.shape[2:], weight.shape[2:], stride, dilation)
    size = _checks.conv_output_size(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    y, last = _checks.empty_like_format(x, (x.shape[0], weight.shape[0], *size)), _checks.is_channels_last(x)
    if y.numel():
        tensors: list[Any] = [dense(x, last), weight.contiguous(), None, accumulated(bias, x), dense(residual, last), y]
        kernels.depthwise_conv2d(
            str(x.dtype), *map(address, tensors), [*x.shape, weight.shape[0], *weight.shape[2:]], stride, padding,
            dilation, last, _ACTIVATIONS.index(activation),
        )  # fmt: skip
    return y
