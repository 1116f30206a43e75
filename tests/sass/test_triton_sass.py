# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels as machine code: no spills, wide accesses, tensor cores, no TF32 in float32, occupancy."""

from __future__ import annotations

import functools
import inspect
import re

import pytest
import torch

from fastcnn import _triton

if _triton.why_not() is not None:
    pytest.skip(f"Triton is not usable: {_triton.why_not()}", allow_module_level=True)

from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from tests.sass.triton_code import (
    NARROW,
    Compiled,
    calls,
    compile_calls,
    compile_launch,
    depthwise,
    gemm,
    launches,
    streaming,
)
from tests.sass.triton_code import launch as run

SHORT, LONG = (80, 90), (75, 86, 89, 100, 120)
ARCHITECTURES = [*SHORT, *(pytest.param(arch, marks=pytest.mark.long) for arch in LONG)]
TENSOR_CORES = {80: "HMMA", 86: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}
LOAD = r"\bLDG\S*"
# of a multiprocessor's warps: what only moves needs loads in flight, what computes hides less behind other warps
WARPS_OF_A_STREAM, FEWEST_WARPS = 0.25, 0.12


@pytest.fixture
def compiled(tmp_path):
    """``compiled(arch, call)`` -> what every kernel that ``call`` launches compiles to, by name."""
    return functools.partial(compile_calls, folder=tmp_path)


def _check(kernel: Compiled, dtype: torch.dtype, wide: bool = True, share: float = FEWEST_WARPS) -> None:
    assert kernel.occupancy >= share, f"{kernel.name}: {kernel.occupancy:.0%} of the warps fit, at least {share:.0%}"
    assert kernel.usage["STACK"] == kernel.usage["LOCAL"] == 0, f"{kernel.name} spills: {kernel.usage}"
    assert kernel.count(r"\b(LDL|STL)\b") == 0, f"{kernel.name} uses local memory"
    if wide:
        loads = kernel.count(r"\b(LDG|LDGSTS)\.\S*128\b") + kernel.count(r"\bUTMALDG\b")
        assert loads, f"{kernel.name}: no 128-bit load among {sorted(set(re.findall(LOAD, kernel.sass)))}"
    if dtype is torch.float32:
        assert kernel.count(r"\.TF32\b") == 0, f"{kernel.name} rounds float32 to TF32"


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("last", [True, False], ids=["channels_last", "nchw"])
def test_streaming_kernels(compiled, arch, last):
    for kernel in compiled(arch, lambda: streaming(torch.float16, last)).values():
        # in NCHW a window's pixels lie two apart and begin anywhere: its loads are single ones
        wide = kernel.name not in NARROW and (last or "max_pool2d" not in kernel.name)
        _check(kernel, torch.float16, wide=wide, share=WARPS_OF_A_STREAM)
        if (
            "sums" not in kernel.name
            and "statistics" not in kernel.name
            and kernel.name not in NARROW - {"global_avg_pool_backward_kernel"}
        ):
            # a thread loads 16 bytes and has 8 for each half; a pool's gradient in NCHW has registers for 8
            narrow = "split" in kernel.name or (kernel.name == "max_pool2d_backward_kernel" and not last)
            width = 64 if narrow else 128
            assert kernel.count(rf"\bSTG\.\S*{width}\b"), f"{kernel.name}: no {width}-bit store"


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 2)])
def test_depthwise_in_channels_last(compiled, arch, kernel, stride):
    found = compiled(arch, lambda: depthwise(torch.float16, True, kernel, stride))
    for each in found.values():
        _check(each, torch.float16, wide=each.name not in NARROW)
    forward = found["depthwise_conv2d_forward_kernel"]
    assert forward.count(r"\bLDG\.\S*128\b") >= 2 * kernel * kernel, "a tap and its weight are one wide load each"
    assert forward.count(r"\bLDG\.\S*U16\b") == 0 and forward.count(r"\bSTG\.\S*128\b")


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("last", "C", "O"), [(True, 24, 72), (True, 320, 1280), (False, 24, 72)])
def test_gemms_use_the_tensor_cores(compiled, arch, last, C, O):
    for kernel in compiled(arch, lambda: gemm(torch.float16, last, C, O)).values():
        _check(kernel, torch.float16, wide=kernel.name not in NARROW)
        if kernel.name not in NARROW and arch in TENSOR_CORES:
            assert kernel.count(rf"\b{TENSOR_CORES[arch]}\b"), f"{kernel.name}: no {TENSOR_CORES[arch]}"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_gemms_with_prologues_and_kxk(compiled, arch):
    gate, vector = torch.zeros(2, 64), torch.zeros(64)
    for options in ({"gate": gate}, {"pre_scale": vector, "pre_shift": vector}, {"kernel": 3}):
        for kernel in compiled(
            arch, functools.partial(gemm, torch.float16, True, 64, 64, backward=False, **options)
        ).values():
            _check(kernel, torch.float16)
            if arch in TENSOR_CORES:
                assert kernel.count(rf"\b{TENSOR_CORES[arch]}\b"), (
                    f"{kernel.name} {list(options)}: no {TENSOR_CORES[arch]}"
                )


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_float32_stays_float32(compiled, arch):
    assert not torch.backends.cuda.matmul.allow_tf32
    for kernel in compiled(arch, lambda: gemm(torch.float32, True, 24, 72)).values():
        _check(kernel, torch.float32, wide=kernel.name not in NARROW)
        assert not kernel.count(r"\b\w*[HG]MMA\b"), f"{kernel.name}: a tensor-core instruction"
        assert kernel.name in NARROW or kernel.count(r"\bFFMA\b"), f"{kernel.name}: no multiplication at all"


def test_tf32_shows_when_it_is_allowed(compiled):
    """The check above can fail."""
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        found = compiled(80, lambda: gemm(torch.float32, True, 24, 72, backward=False))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert found["conv_bn_act_forward_kernel"].count(r"\.TF32\b")


def _marked(launch) -> set[str]:
    """The arguments that Triton would be told 16 divides."""
    attributes = launch.source()[0].attrs
    return {launch.kernel.arg_names[place] for (place,) in attributes}


@pytest.mark.parametrize("call", calls().values(), ids=calls())
def test_arguments_are_specialised_as_triton_does(call):
    """What is compiled here is what a launch on a device would ask for: Triton's own binder decides that there."""
    backend = make_backend(GPUTarget("cuda", 80, 32))
    for launch in launches(80, call):
        kernel, (ours, options) = launch.kernel, launch.source()
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        bound, specialization, _ = bind(*launch.args, **launch.kwargs)
        packed, signature, constants, attributes = kernel._pack_args(
            backend, dict(launch.kwargs), bound, specialization, None
        )
        assert ours.signature == signature and ours.constants == constants, launch.label
        assert ours.attrs == {place: value for place, value in attributes.items() if value}, launch.label
        assert options.items() <= packed.__dict__.items(), launch.label


def test_pointers_are_divisible():
    """All that is allocated starts at a multiple of 16 bytes, and the launchers pass no address within."""
    for call in calls().values():
        for launch in launches(80, call):
            bound = inspect.signature(launch.kernel.fn).bind(
                *launch.args, **{n: v for n, v in launch.kwargs.items() if n in launch.kernel.arg_names}
            ).arguments  # fmt: skip
            pointers = {name for name, value in bound.items() if isinstance(value, torch.Tensor)}
            assert pointers <= _marked(launch), f"{launch.label}: {sorted(pointers - _marked(launch))}"


WIDE = r"\b(LDG|STG|LDGSTS)\.\S*128\b"


@pytest.mark.parametrize(
    "call",
    ["half NHWC", *(pytest.param(name, marks=pytest.mark.long) for name in ("half NHWC 3x3 s1", "half NHWC 24 to 72"))],
)
def test_divisibility_makes_accesses_wide(call, tmp_path):
    """Without it, or at an address that 16 does not divide, no kernel moves 16 bytes at once: it must stay."""
    for launch in launches(80, calls()[call]):
        if launch.label not in NARROW:
            without = compile_launch(80, launch, tmp_path, divisible=False)
            assert without.count(WIDE) == 0, f"{launch.label}: wide accesses that nothing promises"


def test_a_misaligned_map_is_read_narrowly(tmp_path):
    def misaligned() -> None:
        x = torch.zeros(2 * 24 * 64 + 1, dtype=torch.float16)[1:].view(2, 24, 8, 8)
        run("activation", x, "relu")

    (launch,) = launches(80, misaligned)
    assert _marked(launch) == {"y", "count"}
    kernel = compile_launch(80, launch, tmp_path)
    assert kernel.count(r"\bLDG\S*\.128\b") == 0 and kernel.count(r"\bSTG\S*\.128\b") > 0
