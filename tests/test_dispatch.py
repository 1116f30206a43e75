# SPDX-License-Identifier: Apache-2.0
"""The table of fastcnn/_dispatch.py, and the CUDA key that it decides over, on a machine that need not have a GPU."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastcnn
from fastcnn import _dispatch, _triton, backends
from fastcnn._library import CUDA, SCHEMAS
from fastcnn.ops._register import overload

ARCHS = ["75", "80", "86", "89", "90", "100", "120", "120+PTX"]
CUDA_KEY = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
HALF, BFLOAT, SINGLE = torch.float16, torch.bfloat16, torch.float32


class Device:
    """A stand-in for the compiled library and a GPU: its kernels say so, as the Triton ones do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arch, self.calls = (8, 0), []
        self.libraries = [torch.library.Library("fastcnn", "FRAGMENT") for _ in range(2)]
        for op in SCHEMAS:
            self.libraries[0].impl(op, lambda *args, op=op: self._called("compiled", op, args), "CUDA")
        monkeypatch.setattr(_dispatch, "LIB", self.libraries[1])
        monkeypatch.setattr(_dispatch, "_COMPILED", {})
        monkeypatch.setattr(_dispatch, "arch_of", lambda index: self.arch)
        monkeypatch.setattr(_triton, "REGISTERED", set())
        monkeypatch.setattr(_triton, "why_not", lambda: None)
        monkeypatch.setattr(_triton, "launcher", lambda op: lambda *args: self._called("triton", op, args))
        monkeypatch.setattr(CUDA, "reason", None)
        monkeypatch.setattr(CUDA, "build", {"archs": ARCHS})
        monkeypatch.setattr(torch.Tensor, "get_device", lambda x: 0)
        monkeypatch.setattr(torch.cuda, "_lazy_call", lambda function: function())
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Fake 1")
        _dispatch.built_for.cache_clear()

    def _called(self, backend: str, op: str, args: tuple) -> torch.Tensor:
        self.calls.append((backend, op, args))
        return torch.zeros(1)

    def call(self, op: str, *args) -> str:
        """The backend that the CUDA key hands the call to."""
        self.calls.clear()
        overload(op).redispatch(CUDA_KEY, *args)
        ((backend, called, got),) = self.calls
        assert called == op and len(got) == len(args)
        assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(got, args))
        return backend

    def owner_of(self, op: str) -> str:
        return "python" if op in _dispatch._COMPILED else "library"


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    made = Device(monkeypatch)
    yield made
    for library in reversed(made.libraries):
        library._destroy()
    _dispatch.built_for.cache_clear()


def convolution(dtype: torch.dtype, C: int, O: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> tuple:
    """The arguments of the op."""
    x, weight = torch.zeros(1, C, 4, 4, dtype=dtype), torch.zeros(O, C // groups, kernel, kernel, dtype=dtype)
    return x, weight, *[None] * 6, [stride] * 2, [kernel // 2] * 4, [1, 1], groups, 1e-5, "relu"


def decide(op: str, arch: tuple[int, int], arguments: tuple) -> _dispatch.Choice:
    names = [argument.name for argument in overload(op)._schema.arguments]
    return _dispatch.RULES[op].decide(arch, *(arguments[names.index(name)] for name in _dispatch.RULES[op].names))


def test_the_table_has_every_op_and_reads_arguments_that_it_has():
    assert set(_dispatch.RULES) == set(SCHEMAS) == set(_triton.OPS)
    for op, rule in _dispatch.RULES.items():
        assert set(rule.names) <= {argument.name for argument in overload(op)._schema.arguments}


@pytest.mark.parametrize(("arch", "arguments", "backend", "words"), [
    ((8, 0), convolution(HALF, 96, 24), "triton", "bound by memory"),
    ((9, 0), convolution(BFLOAT, 16, 96), "triton", "bound by memory"),
    ((12, 0), convolution(HALF, 3, 32, 3, 2), "triton", "bound by memory"),
    ((9, 0), convolution(HALF, 64, 64, 3), "cuda", "enough work a byte"),
    ((9, 0), convolution(HALF, 2048, 512), "cuda", "enough work a byte"),
    ((9, 0), convolution(SINGLE, 96, 24), "cuda", "without TF32"),
    ((9, 0), convolution(torch.float64, 96, 24), "cuda", "without TF32"),
    ((9, 0), convolution(HALF, 32, 32, 3, groups=32), "cuda", "depthwise"),
    ((9, 0), convolution(HALF, 64, 64, 3, groups=4), "cuda", "channels of a group"),
    ((7, 5), convolution(HALF, 96, 24), "cuda", "no tensor cores of sm_75"),
    ((7, 5), convolution(SINGLE, 96, 24), "cuda", "sm_75"),
    ((7, 5), convolution(BFLOAT, 32, 32, 3, groups=32), "cuda", "depthwise"),
    ((7, 5), convolution(BFLOAT, 96, 24), None, "use float16 or float32"),
])  # fmt: skip
def test_a_convolution_by_dtype_shape_and_architecture(arch, arguments, backend, words):
    choice = decide("conv_bn_act", arch, arguments)
    assert choice.backend == backend and words in choice.why


def test_strided_1x1_counts_only_the_pixels_that_it_reads():
    # 98 flops a byte, at stride 2 too: an output pixel then comes with four of x, of which one is read
    assert decide("conv_bn_act", (9, 0), convolution(HALF, 256, 160)).backend == "triton"
    assert decide("conv_bn_act", (9, 0), convolution(HALF, 256, 160, stride=2)).backend == "triton"
    assert decide("conv_bn_act", (9, 0), convolution(HALF, 256, 240)).backend == "cuda"


def pointwise(dtype: torch.dtype, C: int, O: int, gate: bool = False, scale: bool = False, prologue: str = "identity") -> tuple:
    """The arguments of the op."""
    x, vector = torch.zeros(1, C, 4, 4, dtype=dtype), torch.zeros(C) if scale else None
    return (x, torch.zeros(O, C, 1, 1, dtype=dtype), None, None, torch.zeros(1, C) if gate else None, vector, vector,
            prologue, "relu")  # fmt: skip


@pytest.mark.parametrize(("arch", "arguments", "backend", "words"), [
    ((8, 0), pointwise(HALF, 96, 24), "triton", "bound by memory"),
    ((9, 0), pointwise(HALF, 2048, 512), "cuda", "enough work a byte"),
    ((9, 0), pointwise(HALF, 960, 160), "cuda", "enough work a byte"),
    ((9, 0), pointwise(HALF, 960, 160, gate=True), "triton", "bound by memory"),
    ((9, 0), pointwise(BFLOAT, 960, 160, scale=True, prologue="relu"), "triton", "bound by memory"),
    ((9, 0), pointwise(HALF, 960, 160, prologue="silu"), "triton", "bound by memory"),
    ((9, 0), pointwise(HALF, 2048, 512, gate=True), "cuda", "enough work a byte"),
    ((9, 0), pointwise(SINGLE, 96, 24, gate=True), "cuda", "without TF32"),
    ((7, 5), pointwise(HALF, 96, 24, gate=True), "cuda", "no tensor cores of sm_75"),
    ((7, 5), pointwise(BFLOAT, 96, 24), None, "pointwise_conv2d: x in bfloat16 is not supported on sm_75"),
])  # fmt: skip
def test_a_pointwise_convolution_by_what_stands_in_front_of_it(arch, arguments, backend, words):
    choice = decide("pointwise_conv2d", arch, arguments)
    assert choice.backend == backend and words in choice.why


@pytest.mark.parametrize(("arch", "archs", "covered"), [
    ((8, 0), ["80"], True), ((8, 6), ["80"], True), ((8, 0), ["86"], False), ((9, 0), ["80", "86"], False),
    ((9, 0), ["80+PTX"], True), ((7, 5), ["80+PTX"], False), ((10, 3), ARCHS, True), ((12, 1), ["120"], True),
    ((7, 0), ARCHS, False), ((13, 0), ARCHS, True), ((11, 0), ARCHS, False), ((8, 0), [], True),
])  # fmt: skip
def test_which_architectures_a_build_covers(monkeypatch, arch, archs, covered):
    monkeypatch.setattr(CUDA, "build", {"archs": archs})
    _dispatch.built_for.cache_clear()
    assert _dispatch.built_for(arch) is covered
    _dispatch.built_for.cache_clear()


def test_python_takes_over_only_the_keys_that_the_table_may_give_away(device):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _dispatch.install()
    taken = {op for op in SCHEMAS if device.owner_of(op) == "python"}
    assert taken == {"conv_bn_act", "conv_bn_act_train", "conv_bn_act_backward", "pointwise_conv2d"}
    assert device.call("hardswish", torch.ones(2)) == "compiled"
    assert device.call("conv_bn_act", *convolution(HALF, 96, 24)) == "triton"
    assert device.call("conv_bn_act", *convolution(HALF, 64, 64, 3)) == "compiled"
    device.arch = (7, 5)
    assert device.call("conv_bn_act", *convolution(HALF, 96, 24)) == "compiled"


@pytest.mark.parametrize("op", ["conv_bn_act", "conv_bn_act_train", "conv_bn_act_backward"])
def test_bfloat16_on_sm_75_is_refused_by_name(device, op):
    device.arch = (7, 5)
    _dispatch.install()
    x, weight, *rest, eps, kind = convolution(BFLOAT, 96, 24)
    arguments = {
        "conv_bn_act": (x, weight, *rest, eps, kind),
        "conv_bn_act_train": (x, weight, *rest, 0.1, eps, kind),
        "conv_bn_act_backward": (x, x, weight, None, *rest, False, kind, [True] * 6),
    }[op]
    words = f"^{op}: x in bfloat16 is not supported on sm_75, .* use float16 or float32$"
    with pytest.raises(_dispatch.Unsupported, match=words):
        overload(op).redispatch(CUDA_KEY, *arguments)
    assert device.calls == [] and issubclass(_dispatch.Unsupported, TypeError)


def test_without_a_usable_triton_the_compiled_kernel_serves(device, monkeypatch):
    monkeypatch.setattr(_triton, "why_not", lambda: "ImportError: no libcuda")
    _dispatch.install()
    assert device.call("conv_bn_act", *convolution(HALF, 96, 24)) == "compiled"


def test_tensors_of_several_devices_go_to_the_kernel_that_has_the_words(device, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "get_device", lambda x: -1)
    _dispatch.install()
    assert device.call("conv_bn_act", *convolution(HALF, 96, 24)) == "compiled"


def test_an_architecture_that_the_library_lacks_gets_triton_with_one_warning(device):
    device.arch = (7, 0)
    with pytest.warns(RuntimeWarning) as caught:
        _dispatch.install()
        assert device.call("hardswish", torch.ones(2)) == "triton"
        assert device.call("conv_bn_act", *convolution(SINGLE, 64, 64, 3)) == "triton"
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "has no code for sm_70 (Fake 1), only for 75, 80" in text and "FASTCNN_CUDA_ARCHS='70'" in text


def test_use_backend_cuda_means_the_compiled_kernel_whatever_the_table_says(device):
    _dispatch.install()
    arguments = convolution(HALF, 96, 24)
    assert device.call("conv_bn_act", *arguments) == "triton"
    device.calls.clear()
    backends.BACKENDS["cuda"].kernel(overload("conv_bn_act"))(*arguments)
    assert device.calls[0][:2] == ("compiled", "conv_bn_act")
    assert _dispatch.compiled(overload("hardswish")) is overload("hardswish")


def test_the_key_is_taken_over_below_autograd_and_autocast(device, monkeypatch):
    """The compiled kernels of the CPU stand in for those of CUDA, called as they are: boxed, by way of Python."""
    monkeypatch.setattr(_dispatch, "_KEY", "CPU")
    chosen = []
    monkeypatch.setattr(_dispatch, "choose", lambda *args: chosen.append(args[0]) or _dispatch.Choice("cuda", ""))
    x, weight = torch.randn(1, 8, 5, 5), torch.randn(4, 8, 1, 1, requires_grad=True)
    bias = torch.randn(4)

    def run() -> tuple[torch.Tensor, ...]:
        y = fastcnn.ops.conv_bn_act(x, weight, bias=bias, activation="silu")
        with torch.autocast("cpu", torch.bfloat16):
            low = fastcnn.ops.conv_bn_act(x, weight)
        return y, low, *torch.autograd.grad(y.sum(), weight)

    wanted = run()
    assert chosen == []
    _dispatch._take_over("conv_bn_act")
    _dispatch._take_over("conv_bn_act_backward")
    assert all(torch.equal(mine, theirs) and mine.dtype is theirs.dtype for mine, theirs in zip(run(), wanted))
    assert chosen == ["conv_bn_act", "conv_bn_act", "conv_bn_act_backward"]
    with fastcnn.use_backend("cpu"):
        assert torch.equal(_dispatch.compiled(overload("conv_bn_act"))(
            x, weight.detach(), bias, *[None] * 5, [1, 1], [0] * 4, [1, 1], 1, 1e-5, "silu"), wanted[0])  # fmt: skip
    assert len(chosen) == 3


def test_tracing_runs_and_compiles_no_kernel(device):
    _dispatch.install()
    with FakeTensorMode():
        x, weight = (torch.empty(shape, dtype=HALF, device="cuda") for shape in ((2, 96, 4, 4), (24, 96, 1, 1)))
        y = fastcnn.ops.hardswish(fastcnn.ops.conv_bn_act(x, weight))
    assert y.shape == (2, 24, 4, 4) and y.device.type == "cuda" and device.calls == []


def explained(op, *args, dtype: torch.dtype = HALF, shape: tuple = (1, 96, 4, 4), **kwargs) -> backends.Explanation:
    with FakeTensorMode():
        x = torch.empty(shape, dtype=dtype, device="cuda")
        made = [torch.empty(a, dtype=dtype, device="cuda") if isinstance(a, tuple) else a for a in args]
        return fastcnn.explain(op, x, *made, **kwargs)


def test_explain_names_the_backend_and_the_reason(device):
    found = explained(fastcnn.ops.conv_bn_act, (24, 96, 1, 1), activation="relu")
    assert found.backend == "triton" and "bound by memory" in found.detail
    assert found.rejected["cuda"].startswith("triton comes first: bound by memory")
    assert found.rejected["cpu"] == "x is on cuda"
    found = explained("conv_bn_act", (96, 96, 3, 3), padding=1, stride=2)
    assert found.backend == "cuda" and "compiled kernel: enough work a byte" in found.detail
    assert found.rejected["triton"].startswith("cuda comes first: enough work")
    found = explained("conv_bn_act", (24, 96, 1, 1), training=True)
    assert (found.op, found.backend) == ("conv_bn_act_train", "cuda")
    found = explained(torch.ops.fastcnn.conv_bn_act, (24, 96, 1, 1), *convolution(HALF, 96, 24)[2:])
    assert found.backend == "triton"
    assert explained("hardswish").rejected["triton"].endswith("takes less time to launch")


def test_explain_a_refused_call_and_one_that_lacks_what_decides(device):
    device.arch = (7, 5)
    found = explained("conv_bn_act", (24, 96, 1, 1), dtype=BFLOAT)
    assert found.backend is None and str(found).startswith("conv_bn_act: refused (conv_bn_act: x in bfloat16 is not")
    with pytest.raises(ValueError, match="^explain: conv_bn_act must be given weight, which decide"):
        explained("conv_bn_act")


def test_explain_on_an_architecture_that_the_library_lacks(device):
    device.arch = (7, 0)
    found = explained("hardswish")
    assert found.backend == "triton" and found.detail.endswith("the compiled library has no code for sm_70")


def test_a_call_on_the_cpu_meets_nothing_of_this():
    names = ("_dispatch", "_triton", "backends", "tuning")
    ours = {str(Path(fastcnn.__file__).parent / f"{name}.py") for name in names}
    met = set()
    x, weight = torch.randn(1, 8, 5, 5), torch.randn(8, 1, 3, 3)
    with torch.inference_mode():
        sys.setprofile(lambda frame, event, _: met.add(frame.f_code.co_filename))
        try:
            fastcnn.ops.hardswish(fastcnn.ops.depthwise_conv2d(x, weight, padding=1))
            fastcnn.ops.conv_bn_act(x, torch.ones(4, 8, 1, 1))
        finally:
            sys.setprofile(None)
    assert any(name.endswith("depthwise_conv2d.py") for name in met) and not met & ours
