# SPDX-License-Identifier: Apache-2.0
"""Every Triton kernel compiled to machine code without a GPU, with the specialisation that its launcher would ask
for.

The launchers run on CPU tensors; where a kernel would start, its arguments are taken as Triton's own launch takes
them (1 is a constant, what 16 divides is marked so) and compiled for an architecture. What the compiler made of them
is read with cuobjdump, which comes with Triton.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction, mangle_type

from fastcnn import _triton
from tests.sass import occupancy
from tests.triton.interpreter import load_kernels

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
FORMATS = {"NHWC": True, "NCHW": False}
# small vectors a channel, a gather by design, or sums of parts: no wide access promised
NARROW = {
    "sum_parts_kernel", "batch_norm_act_merge_kernel", "channel_shuffle_gather_kernel", "se_scale_gate_kernel",
    "se_scale_gate_backward_kernel", "se_scale_weight_kernel", "global_avg_pool_backward_kernel",
}  # fmt: skip


class Compiled(NamedTuple):
    name: str
    arch: int
    sass: str
    usage: dict[str, int]
    threads: int
    shared: int  # bytes asked for at the launch

    def count(self, pattern: str) -> int:
        return len(re.findall(pattern, self.sass))

    @property
    def occupancy(self) -> float:
        return occupancy.occupancy(self.arch, self.usage["REG"], self.shared, self.threads)


class Launch(NamedTuple):
    """A kernel with the arguments that a launcher gave it."""

    kernel: JITFunction
    args: tuple
    kwargs: dict[str, Any]

    @property
    def label(self) -> str:
        """The kernel's name; the gradient for x is the forward kernel, transposed."""
        name = self.kernel.fn.__name__.strip("_")
        return f"{name} transposed" if self.kwargs.get("TRANSPOSED") else name

    def source(self, divisible: bool = True) -> tuple[ASTSource, dict[str, int]]:
        """What Triton would compile, without its knowledge of what 16 divides unless ``divisible``, and the options."""
        options = {name: self.kwargs[name] for name in ("num_warps", "num_stages") if name in self.kwargs}
        given = {name: value for name, value in self.kwargs.items() if name not in options}
        bound = inspect.signature(self.kernel.fn).bind(*self.args, **given).arguments
        signature, constants, attributes = {}, {}, {}
        for place, (name, param) in enumerate(zip(self.kernel.arg_names, self.kernel.params)):
            value = bound[name]
            if param.is_constexpr or value is None or (type(value) is int and value == 1):
                signature[name], constants[name] = "constexpr", value
                continue
            signature[name] = mangle_type(value)
            number = value.data_ptr() if isinstance(value, torch.Tensor) else value
            if divisible and number % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
        return ASTSource(self.kernel, signature, constants, attributes), options


def launches(arch: int, call: Callable[[], Any]) -> list[Launch]:
    """What ``call`` would launch on that architecture, each kernel once."""
    found: dict[str, Launch] = {}

    def note(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        launch = Launch(kernel, args, kwargs)
        found.setdefault(launch.label, launch)

    load_kernels()
    configs = importlib.import_module("fastcnn.triton_kernels._configs")
    with (
        mock.patch.object(JITFunction, "run", note),
        mock.patch.object(configs, "has_tensor_cores", lambda device: arch >= 80),
        mock.patch.object(configs, "has_little_shared_memory", lambda device: arch in (86, 89, 120)),
    ):
        call()
    assert found, "no kernel was launched"
    return list(found.values())


def compile_launch(arch: int, launch: Launch, folder: Path, divisible: bool = True) -> Compiled:
    source, options = launch.source(divisible)
    with mock.patch.dict(os.environ, {"TRITON_CACHE_DIR": str(folder / "cache")}):
        os.environ.pop("TRITON_INTERPRET", None)
        made = triton.compile(source, target=GPUTarget("cuda", arch, occupancy.WARP), options=options)
    path = folder / f"{launch.label.replace(' ', '_')}_{arch}.cubin"
    path.write_bytes(made.asm["cubin"])

    def dump(flag: str) -> str:
        return subprocess.run([CUOBJDUMP, flag, path], capture_output=True, text=True, check=True).stdout

    usage = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", dump("-res-usage"))}
    threads = made.metadata.num_warps * occupancy.WARP
    return Compiled(launch.label, arch, dump("-sass"), usage, threads, made.metadata.shared)


def compile_calls(arch: int, call: Callable[[], Any], folder: Path) -> dict[str, Compiled]:
    return {launch.label: compile_launch(arch, launch, folder) for launch in launches(arch, call)}


def launch(op: str, *args: Any, **kwargs: Any) -> Any:
    return _triton.launcher(op)(*args, **kwargs)


def feature_map(dtype: torch.dtype, last: bool, N: int = 2, C: int = 24, H: int = 8, W: int = 8) -> torch.Tensor:
    memory_format = torch.channels_last if last else torch.contiguous_format
    return torch.zeros(N, C, H, W, dtype=dtype).contiguous(memory_format=memory_format)


def streaming(dtype: torch.dtype, last: bool) -> None:
    """Everything that only moves and scales: C = 24 is a multiple of 8, not of 16."""
    x, vector = feature_map(dtype, last), torch.zeros(24)
    launch("activation", x, "silu")
    launch("activation_backward", x, x, "hardswish")
    launch("batch_norm_act", x, vector, vector, vector, vector, x, 1e-5, "relu6")
    launch("batch_norm_act_train", x, vector, vector, vector, vector, x, 0.1, 1e-5, "silu")
    launch("batch_norm_act_backward", x, x, vector, vector, vector, vector, x, True, "silu", [True] * 4)
    launch("channel_shuffle", x, 12)
    launch("channel_shuffle_concat", *feature_map(dtype, last, C=48).chunk(2, 1))
    launch("global_avg_pool", x)
    launch("global_avg_pool_backward", feature_map(dtype, last, H=1, W=1), x)
    launch("max_pool2d", x, (3, 3), (2, 2), (1, 1), False)
    launch("max_pool2d_backward", feature_map(dtype, last, H=4, W=4), x, (3, 3), (2, 2), (1, 1), False)
    w1, w2, pooled = torch.zeros(6, 24), torch.zeros(24, 6), torch.zeros(2, 24)
    launch("se_scale", x, w1, vector[:6], w2, vector, "relu", "hardsigmoid")
    launch("se_scale_backward", x, x, pooled, w1, vector[:6], w2, vector, "relu", "sigmoid")
    if last:
        launch("channel_shuffle", feature_map(dtype, last, C=48), 4)


def depthwise(dtype: torch.dtype, last: bool, kernel: int, stride: int) -> None:
    x, bias = feature_map(dtype, last, C=72, H=28, W=28), torch.zeros(72)
    weight = torch.zeros(72, 1, kernel, kernel, dtype=dtype)
    geometry = (stride, stride), (kernel // 2,) * 4, (1, 1)
    y = launch("depthwise_conv2d", x, weight, bias, None, *geometry, "hardswish")
    launch("depthwise_conv2d_backward", y, x, weight, bias, None, *geometry, "identity", [True] * 4)


def gemm(
    dtype: torch.dtype, last: bool, C: int, O: int, kernel: int = 1, backward: bool = True, **prologue: Any
) -> None:
    x, residual = (feature_map(dtype, last, C=channels, H=56, W=56) for channels in (C, O))
    weight, vector = torch.zeros(O, C, kernel, kernel, dtype=dtype), torch.zeros(O)
    geometry = (1, 1), (kernel // 2,) * 4, (1, 1), 1
    y = launch("conv_bn_act", x, weight, None, *(vector,) * 4, residual, *geometry, 1e-5, "relu6", **prologue)
    if backward:
        mask = [True, True] + [False] * 4
        launch("conv_bn_act_backward", y, x, weight, None, *(None,) * 6, *geometry, False, "identity", mask)


def calls() -> dict[str, Callable[[], None]]:
    """What the gate compiles for every architecture, by what it is."""
    half, single, gate, vector = torch.float16, torch.float32, torch.zeros(2, 64), torch.zeros(64)
    found = {f"half {name}": functools.partial(streaming, half, last) for name, last in FORMATS.items()}
    for kernel, stride in ((3, 1), (5, 2)):
        found[f"half NHWC {kernel}x{kernel} s{stride}"] = functools.partial(depthwise, half, True, kernel, stride)
    for name, C, O in (("NHWC", 24, 72), ("NHWC", 320, 1280), ("NCHW", 24, 72)):
        found[f"half {name} {C} to {O}"] = functools.partial(gemm, half, FORMATS[name], C, O)
    narrow = functools.partial(gemm, half, True, 64, 64, backward=False)
    found["half NHWC 64 to 64 with a gate"] = functools.partial(narrow, gate=gate)
    found["half NHWC 64 to 64 behind batch norm"] = functools.partial(narrow, pre_scale=vector, pre_shift=vector)
    found["half NHWC 64 to 64, 3x3"] = functools.partial(narrow, kernel=3)
    found["float NHWC 24 to 72"] = functools.partial(gemm, single, True, 24, 72)
    return found
