# SPDX-License-Identifier: Apache-2.0
"""Which kernel serves a call on CUDA: one table, read at the CUDA key and by explain().

The compiled library owns the key, for processes without Python too. Here Python takes the key of an op over only where
the table can say "triton", on top of autograd and autocast and below no page, so that a call on the CPU never meets it.
The rules are arithmetic on bytes and tensor cores, not yet measured with a clock.
"""

from __future__ import annotations

import functools
import operator
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _triton
from ._library import CUDA, LIB, NAMESPACE, reinstall_command

Arch = tuple[int, int]
_KEY = "CUDA"


class Choice(NamedTuple):
    backend: str | None  # None: no backend may serve the call, ``why`` is the error
    why: str


class Rule(NamedTuple):
    """``decide(arch, *values of the arguments called names)``; without names it is the same for every call."""

    decide: Callable[..., Choice]
    names: tuple[str, ...] = ()


_SAME_BYTES = Choice("cuda", "the compiled kernel moves the same bytes as Triton's and takes less time to launch")
_DEPTHWISE = Choice("cuda", "a depthwise convolution has a compiled kernel that keeps its window in registers")
_SUMS = Choice("cuda", "the compiled kernel sums its result as it computes it, Triton reads it again for the means")
_GROUPS = Choice("cuda", "the few channels of a group would leave Triton's tensor-core tiles mostly empty")
_WIDE = Choice("cuda", "Triton has no tensor cores for float32 and float64 without TF32")
_TURING = Choice("cuda", "Triton has no tensor cores of sm_75, cuDNN has")
_TRAINING = Choice("cuda", "the convolution's own result is stored here, so that Triton has no pass to save over cuDNN")
_BUSY = Choice("cuda", "enough work a byte to keep cuDNN's tensor cores busy, which the epilogue's pass adds little to")
_FUSED = Choice("triton", "bound by memory, and one fused pass spares the one that stores and reloads the convolution")

# A third of the flops a byte that keep an H100 busy (989 Tflop/s, 3.35 TB/s), two thirds of an A100's (312, 2.0).
_MEMORY_BOUND = 100
_HALF = (torch.float16, torch.bfloat16)


def _same(arch: Arch) -> Choice:
    return _SAME_BYTES


def _dense(op: str, arch: Arch, x: Tensor, groups: int) -> Choice | None:
    """What is settled before the shapes are looked at."""
    if groups == x.shape[1] > 1:
        return _DEPTHWISE
    if arch < (8, 0):
        if x.dtype is torch.bfloat16:
            return Choice(None, f"{op}: x in bfloat16 is not supported on sm_{arch[0]}{arch[1]}, whose tensor cores "
                                "have no bfloat16: use float16 or float32")  # fmt: skip
        return _TURING
    return _WIDE if x.dtype not in _HALF else _GROUPS if groups > 1 else None


def _forward(arch: Arch, x: Tensor, weight: Tensor, stride: Sequence[int], groups: int) -> Choice:
    settled = _dense("conv_bn_act", arch, x, groups)
    if settled is not None:
        return settled
    out, channels, kernel_h, kernel_w = weight.shape
    taps = kernel_h * kernel_w
    # of one output pixel, in units of two flops and of two bytes
    work, moved = out * channels * taps, out + channels * min(stride[0] * stride[1], taps)
    return _FUSED if work < _MEMORY_BOUND * moved else _BUSY


def _pointwise(arch: Arch, x: Tensor, weight: Tensor, gate: Tensor | None, scale: Tensor | None, prologue: str) -> Choice:
    settled = _dense("pointwise_conv2d", arch, x, 1)
    if settled is not None:
        return settled
    out, channels = weight.shape[:2]
    # the compiled entry stores what the prologue makes of x, and what the gate makes of that, and reads it again
    stored = (gate is not None) + (scale is not None or prologue != "identity")
    return _FUSED if out * channels < _MEMORY_BOUND * (out + channels * (1 + 2 * stored)) else _BUSY


def _train(arch: Arch, x: Tensor, groups: int) -> Choice:
    return _dense("conv_bn_act_train", arch, x, groups) or _TRAINING


def _backward(arch: Arch, x: Tensor, groups: int) -> Choice:
    return _dense("conv_bn_act_backward", arch, x, groups) or _TRAINING


RULES = {
    **dict.fromkeys(
        [
            "activation", "activation_backward", "hardswish", "hardswish_backward", "channel_shuffle",
            "channel_shuffle_concat", "global_avg_pool", "global_avg_pool_backward", "se_gate", "se_scale",
            "se_scale_backward", "batch_norm_act", "batch_norm_act_train", "batch_norm_act_backward", "depthwise_conv2d",
            "depthwise_conv2d_backward", "max_pool2d", "max_pool2d_backward",
        ],
        Rule(_same),
    ),
    "depthwise_se_gate": Rule(lambda arch: _SUMS),
    "conv_bn_act": Rule(_forward, ("x", "weight", "stride", "groups")),
    "pointwise_conv2d": Rule(_pointwise, ("x", "weight", "gate", "scale", "prologue")),
    "conv_bn_act_train": Rule(_train, ("x", "groups")),
    "conv_bn_act_backward": Rule(_backward, ("x", "groups")),
}  # fmt: skip


class Unsupported(TypeError):
    """The table has no backend for this call on this architecture."""


def choose(op: str, arch: Arch, arguments: Sequence[Any]) -> Choice:
    """The table's answer where the compiled library is loaded; ``arguments`` are those that the op's rule names."""
    if not built_for(arch):
        return Choice("triton", f"the compiled library has no code for sm_{arch[0]}{arch[1]}")
    choice = RULES[op].decide(arch, *arguments)
    if choice.backend == "triton" and _triton.why_not() is not None:
        return Choice("cuda", f"Triton is not usable: {_triton.why_not()}")
    return choice


@functools.cache
def arch_of(index: int) -> Arch:
    return torch.cuda.get_device_capability(index)


@functools.cache
def built_for(arch: Arch) -> bool:
    """Machine code runs on later minor versions of its architecture, PTX on everything later."""
    archs = CUDA.build.get("archs") or []
    for major, minor, ptx in (_parsed(name) for name in archs):
        if (arch[0] == major and arch[1] >= minor) or (ptx and arch >= (major, minor)):
            return True
    return not archs  # without a build_info.json nothing is known: the library itself will say


def _parsed(name: str) -> tuple[int, int, bool]:
    number = re.match(r"\d+", name)
    major, minor = divmod(int(number[0]), 10) if number else (0, 0)
    return major, minor, name.endswith("+PTX")


_COMPILED: dict[str, Any] = {}  # op: the library's kernel, where Python has taken the key over


def compiled(op: torch._ops.OpOverload) -> Callable:
    """The op with the compiled kernel, whatever the table says."""
    name = op._schema.name.split("::")[1]
    if name not in _COMPILED:
        return op
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _KEY))
    return functools.partial(_COMPILED[name].call_boxed, keys)


def install() -> None:
    """Takes the keys over that the table may give to Triton; the others only if a device turns out to need it."""
    if CUDA.loaded:
        for op, rule in RULES.items():
            if rule.names:
                _take_over(op)
        torch.cuda._lazy_call(_cover_devices)  # runs when CUDA starts: an import must not start it


def _cover_devices() -> None:
    archs = {arch_of(index): torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
    lacking = {arch: name for arch, name in archs.items() if not built_for(arch)}
    if not lacking:
        return
    for op in RULES:
        _take_over(op)
    found = ", ".join(f"sm_{major}{minor} ({name})" for (major, minor), name in lacking.items())
    numbers = ";".join(f"{major}{minor}" for major, minor in archs)
    warnings.warn(
        f"fastcnn: the compiled CUDA library has no code for {found}, only for {', '.join(CUDA.build['archs'])}: there "
        f"Triton serves every op. To fix it: FASTCNN_CUDA=1 FASTCNN_CUDA_ARCHS='{numbers}' {reinstall_command()}",
        RuntimeWarning,
        stacklevel=2,
    )


def _take_over(op: str) -> None:
    if op in _COMPILED or op in _triton.REGISTERED:
        return
    name = f"{NAMESPACE}::{op}"
    kernel = torch.library.get_kernel(name, _KEY)
    schema = [argument.name for argument in getattr(getattr(torch.ops, NAMESPACE), op).default._schema.arguments]
    places = [schema.index(argument) for argument in RULES[op].names]
    pick = operator.itemgetter(*places) if places else lambda arguments: ()

    def serve(keys: torch._C.DispatchKeySet, *arguments: Any) -> Any:
        index = arguments[0].get_device()
        if index < 0:  # tensors of several devices: the kernel has the words for it
            return kernel.call_boxed(keys, *arguments)
        choice = choose(op, arch_of(index), pick(arguments))
        if choice.backend == "cuda":
            return kernel.call_boxed(keys, *arguments)
        if choice.backend is None:
            raise Unsupported(choice.why)
        return _triton.serve(op, *arguments)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, that a kernel is overridden: it is called from here
        LIB.impl(op, serve, _KEY, with_keyset=True, allow_override=True)
    _COMPILED[op] = kernel
