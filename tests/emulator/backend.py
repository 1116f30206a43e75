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


def wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def accumulated(x: Tensor | None, like: Tensor) -> Tensor | None:
    """as_accumulator of csrc/cpu/tensor.h."""
    return None if x is None else x.to(wide(like)).contiguous()


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
        no_sums = [0] if hasattr(kernels, "sum_tiles") else []  # those of the SE squeeze, where the module has them
        tensors: list[Any] = [dense(x, last), weight.contiguous(), None, accumulated(bias, x), dense(residual, last), y]
        kernels.depthwise_conv2d(
            str(x.dtype), *map(address, tensors), [*x.shape, weight.shape[0], *weight.shape[2:]], stride, padding,
            dilation, last, _ACTIVATIONS.index(activation), *no_sums,
        )  # fmt: skip
    return y


@serves("depthwise_conv2d_backward")
def _depthwise_conv2d_backward(
    kernels: ModuleType, grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], activation: str, mask: Sequence[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    last, dtype, through = _checks.is_channels_last(x), str(x.dtype), activation != "identity"
    four = _checks.resolve_padding(padding, x.shape[2:], weight.shape[2:], stride, dilation)
    sizes = [*x.shape, weight.shape[0], *weight.shape[2:]]
    geometry = sizes, stride, four, dilation, last
    x, grad, weight, shift = dense(x, last), dense(grad, last), weight.contiguous(), accumulated(bias, x)
    z = _checks.empty_like_format(x, grad.shape) if through or mask[3] else grad
    if mask[3] and not through:
        z.copy_(grad)
    found = [None, torch.empty_like(weight) if mask[1] else None, torch.empty_like(shift) if mask[2] else None]
    found[0] = _checks.empty_like_format(x, x.shape) if mask[0] else None
    if grad.numel() == 0:
        for t in found[1:]:
            if t is not None:
                t.zero_()
    else:
        if through:
            residual = dense(residual, last)  # held: its address is all that the kernel gets
            tensors = [address(t) for t in (x, weight, shift, residual, grad)]
            kernels.gradient_of_z(dtype, tensors, address(z), *geometry, _ACTIVATIONS.index(activation))
        partials = torch.empty(kernels.partials(dtype, *geometry, mask[1], mask[2]), dtype=wide(x))
        results = [address(t) for t in found]
        kernels.backward(dtype, [address(t) for t in (z, x, weight)], results, address(partials), *geometry, False)
    grads = [x.new_empty(0) if t is None else t for t in (*found, z if mask[3] else None)]
    return grads[0], grads[1], grads[2].to(bias.dtype) if mask[2] else grads[2], grads[3]


def _slice(x: Tensor, last: bool) -> tuple[Tensor, int]:
    """(x where it lies, its step) when it is a range of channels of a dense map, else a dense copy and that one's."""
    step = x.stride(3 if last else 0) if x.dim() == 4 else 0
    C, *size = x.shape[1:]
    pixels = x.shape[2:].numel()
    strides = (pixels * step, 1, size[-1] * step, step) if last else (step, pixels, size[-1], 1)
    if x.dim() == 4 and step >= (C if last else C * pixels) and x.stride() == strides:
        return x, step
    return (dense(x, last), C if last else C * pixels) if x.dim() == 4 else (x.contiguous(), C * pixels)


def _shuffled(kernels: ModuleType, y: Tensor, groups: int, *inputs: Tensor) -> Tensor:
    last = _checks.is_channels_last(inputs[0])
    if y.numel():
        (x1, step1), (x2, step2) = ([*(_slice(x, last) for x in inputs), (None, 0)])[:2]
        sizes = [y.shape[0], y.shape[1], y.shape[2:].numel(), groups]
        kernels.channel_shuffle(y.element_size(), address(x1), address(x2), [step1, step2], address(y), sizes, last)
    return y


@serves("channel_shuffle")
def _channel_shuffle(kernels: ModuleType, x: Tensor, groups: int) -> Tensor:
    return _shuffled(kernels, _checks.empty_like_format(x, x.shape), groups, x)


@serves("channel_shuffle_concat", "channel_shuffle")
def _channel_shuffle_concat(kernels: ModuleType, x1: Tensor, x2: Tensor) -> Tensor:
    shape = (x1.shape[0], 2 * x1.shape[1], *x1.shape[2:])
    return _shuffled(kernels, _checks.empty_like_format(x1, shape), 2, x1, x2)
