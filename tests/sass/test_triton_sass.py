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
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from fastcnn import _triton

if _triton.why_not() is not None:
    pytest.skip(f"Triton is not usable: {_triton.why_not()}", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction, mangle_type

SHORT, LONG = (80, 90), (75, 86, 89, 100, 120)
ARCHITECTURES = [*SHORT, *(pytest.param(arch, marks=pytest.mark.long) for arch in LONG)]
TENSOR_CORES = {80: "HMMA", 86: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}
LOAD = r"\bLDG\S*"
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Compiled(NamedTuple):
    name: str
    sass: str
    usage: dict[str, int]

    def count(self, pattern: str) -> int:
        return len(re.findall(pattern, self.sass))


def _source(kernel: JITFunction, args: tuple, kwargs: dict[str, Any]) -> tuple[ASTSource, dict[str, int]]:
    options = {name: kwargs.pop(name) for name in ("num_warps", "num_stages") if name in kwargs}
    bound = inspect.signature(kernel.fn).bind(*args, **kwargs).arguments
    signature, constants, attributes = {}, {}, {}
    for place, (name, param) in enumerate(zip(kernel.arg_names, kernel.params)):
        value = bound[name]
        if param.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        signature[name] = mangle_type(value)
        number = value.data_ptr() if isinstance(value, torch.Tensor) else value
        if number % 16 == 0:
            attributes[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, attributes), options


def _read(folder: Path, name: str, cubin: bytes) -> Compiled:
    path = folder / f"{name}.cubin"
    path.write_bytes(cubin)

    def dump(flag: str) -> str:
        return subprocess.run([CUOBJDUMP, flag, path], capture_output=True, text=True, check=True).stdout

    usage = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", dump("-res-usage"))}
    return Compiled(name, dump("-sass"), usage)


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """``compiled(arch, call)`` -> what every kernel that ``call`` launches compiles to, by name."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    def run(arch: int, call) -> dict[str, Compiled]:
        found: dict[str, Compiled] = {}

        def compile_instead(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
            name = kernel.fn.__name__.strip("_")
            if name in found:
                return
            source, options = _source(kernel, args, kwargs)
            made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
            found[name] = _read(tmp_path, name, made.asm["cubin"])

        monkeypatch.setattr(JITFunction, "run", compile_instead)
        _triton._package()
        configs = importlib.import_module("fastcnn.triton_kernels._configs")
        monkeypatch.setattr(configs, "has_tensor_cores", lambda device: arch >= 80)
        call()
        assert found, "no kernel was launched"
        return found

    return run


def _launch(op: str, *args: Any, **kwargs: Any) -> Any:
    return _triton.launcher(op)(*args, **kwargs)


def _map(dtype: torch.dtype, last: bool, N: int = 2, C: int = 24, H: int = 8, W: int = 8) -> torch.Tensor:
    memory_format = torch.channels_last if last else torch.contiguous_format
    return torch.zeros(N, C, H, W, dtype=dtype).contiguous(memory_format=memory_format)


def _streaming(dtype: torch.dtype, last: bool) -> None:
    """Everything that only moves and scales: C = 24 is a multiple of 8, not of 16."""
    x, vector = _map(dtype, last), torch.zeros(24)
    _launch("activation", x, "silu")
    _launch("activation_backward", x, x, "hardswish")
    _launch("batch_norm_act", x, vector, vector, vector, vector, x, 1e-5, "relu6")
    _launch("batch_norm_act_train", x, vector, vector, vector, vector, x, 0.1, 1e-5, "silu")
    _launch("batch_norm_act_backward", x, x, vector, vector, vector, vector, x, True, "silu", [True] * 4)
    _launch("channel_shuffle", x, 12)
    _launch("channel_shuffle_concat", *_map(dtype, last, C=48).chunk(2, 1))
    _launch("global_avg_pool", x)
    _launch("global_avg_pool_backward", _map(dtype, last, H=1, W=1), x)
    w1, w2, pooled = torch.zeros(6, 24), torch.zeros(24, 6), torch.zeros(2, 24)
    _launch("se_scale", x, w1, vector[:6], w2, vector, "relu", "hardsigmoid")
    _launch("se_scale_backward", x, x, pooled, w1, vector[:6], w2, vector, "relu", "sigmoid")
    if last:
        _launch("channel_shuffle", _map(dtype, last, C=48), 4)


def _depthwise(dtype: torch.dtype, last: bool, kernel: int, stride: int) -> None:
    x, weight, bias = (
        _map(dtype, last, C=72, H=28, W=28),
        torch.zeros(72, 1, kernel, kernel, dtype=dtype),
        torch.zeros(72),
    )
    geometry = (stride, stride), (kernel // 2,) * 4, (1, 1)
    y = _launch("depthwise_conv2d", x, weight, bias, None, *geometry, "hardswish")
    _launch("depthwise_conv2d_backward", y, x, weight, bias, None, *geometry, "identity", [True] * 4)


def _gemm(
    dtype: torch.dtype, last: bool, C: int, O: int, kernel: int = 1, backward: bool = True, **prologue: Any
) -> None:
    x, weight, vector = (
        _map(dtype, last, C=C, H=56, W=56),
        torch.zeros(O, C, kernel, kernel, dtype=dtype),
        torch.zeros(O),
    )
    geometry = (1, 1), (kernel // 2,) * 4, (1, 1), 1
    y = _launch(
        "conv_bn_act",
        x,
        weight,
        None,
        *(vector,) * 4,
        _map(dtype, last, C=O, H=56, W=56),
        *geometry,
        1e-5,
        "relu6",
        **prologue,
    )
    if backward:
        _launch(
            "conv_bn_act_backward",
            y,
            x,
            weight,
            None,
            *(None,) * 6,
            *geometry,
            False,
            "identity",
            [True, True] + [False] * 4,
        )


def _check(kernel: Compiled, dtype: torch.dtype, wide: bool = True) -> None:
    assert kernel.usage["STACK"] == kernel.usage["LOCAL"] == 0, f"{kernel.name} spills: {kernel.usage}"
    assert kernel.count(r"\b(LDL|STL)\b") == 0, f"{kernel.name} uses local memory"
    if wide:
        loads = kernel.count(r"\b(LDG|LDGSTS)\.\S*128\b") + kernel.count(r"\bUTMALDG\b")
        assert loads, f"{kernel.name}: no 128-bit load among {sorted(set(re.findall(LOAD, kernel.sass)))}"
    if dtype is torch.float32:
        assert kernel.count(r"\.TF32\b") == 0, f"{kernel.name} rounds float32 to TF32"


# small vectors a channel, a gather by design, or sums of parts: no wide access promised
NARROW = {
    "sum_parts_kernel", "batch_norm_act_merge_kernel", "channel_shuffle_gather_kernel", "se_scale_gate_kernel",
    "se_scale_gate_backward_kernel", "se_scale_weight_kernel", "global_avg_pool_backward_kernel",
}  # fmt: skip


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("last", [True, False], ids=["channels_last", "nchw"])
def test_streaming_kernels(compiled, arch, last):
    for kernel in compiled(arch, lambda: _streaming(torch.float16, last)).values():
        _check(kernel, torch.float16, wide=kernel.name not in NARROW)
        if (
            "sums" not in kernel.name
            and "statistics" not in kernel.name
            and kernel.name not in NARROW - {"global_avg_pool_backward_kernel"}
        ):
            width = 64 if "split" in kernel.name else 128  # a thread loads 16 bytes and has 8 for each half
            assert kernel.count(rf"\bSTG\.\S*{width}\b"), f"{kernel.name}: no {width}-bit store"


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 2)])
def test_depthwise_in_channels_last(compiled, arch, kernel, stride):
    found = compiled(arch, lambda: _depthwise(torch.float16, True, kernel, stride))
    for each in found.values():
        _check(each, torch.float16, wide=each.name not in NARROW)
    forward = found["depthwise_conv2d_forward_kernel"]
    assert forward.count(r"\bLDG\.\S*128\b") >= 2 * kernel * kernel, "a tap and its weight are one wide load each"
    assert forward.count(r"\bLDG\.\S*U16\b") == 0 and forward.count(r"\bSTG\.\S*128\b")


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("last", "C", "O"), [(True, 24, 72), (True, 320, 1280), (False, 24, 72)])
def test_gemms_use_the_tensor_cores(compiled, arch, last, C, O):
    for kernel in compiled(arch, lambda: _gemm(torch.float16, last, C, O)).values():
        _check(kernel, torch.float16, wide=kernel.name not in NARROW)
        if kernel.name not in NARROW and arch in TENSOR_CORES:
            assert kernel.count(rf"\b{TENSOR_CORES[arch]}\b"), f"{kernel.name}: no {TENSOR_CORES[arch]}"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gemms_with_prologues_and_kxk(compiled, arch):
    gate, vector = torch.zeros(2, 64), torch.zeros(64)
    for options in ({"gate": gate}, {"pre_scale": vector, "pre_shift": vector}, {"kernel": 3}):
        for kernel in compiled(
            arch, functools.partial(_gemm, torch.float16, True, 64, 64, backward=False, **options)
        ).values():
            _check(kernel, torch.float16)
            if arch in TENSOR_CORES:
                assert kernel.count(rf"\b{TENSOR_CORES[arch]}\b"), (
                    f"{kernel.name} {list(options)}: no {TENSOR_CORES[arch]}"
                )


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_float32_stays_float32(compiled, arch):
    assert not torch.backends.cuda.matmul.allow_tf32
    for kernel in compiled(arch, lambda: _gemm(torch.float32, True, 24, 72)).values():
        _check(kernel, torch.float32, wide=kernel.name not in NARROW)
        assert not kernel.count(r"\b\w*[HG]MMA\b"), f"{kernel.name}: a tensor-core instruction"
        assert kernel.name in NARROW or kernel.count(r"\bFFMA\b"), f"{kernel.name}: no multiplication at all"


def test_tf32_shows_when_it_is_allowed(compiled):
    """The check above can fail."""
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        found = compiled(80, lambda: _gemm(torch.float32, True, 24, 72, backward=False))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert found["conv_bn_act_forward_kernel"].count(r"\.TF32\b")
