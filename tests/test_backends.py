# SPDX-License-Identifier: Apache-2.0
"""explain() and use_backend(): which kernel serves a call, and asking for another."""

import pytest
import torch

import fastcnn
from fastcnn import _library, backends
from fastcnn.backends import BackendUnavailable

NOT_HERE = "x is on cpu"


def test_explain_names_the_kernel_and_every_reason():
    found = fastcnn.explain("hardswish", torch.ones(3))
    assert (found.backend, found.detail) == ("cpu", _library.isa_active())
    assert (
        found.rejected["cuda"] == NOT_HERE
        and found.rejected["reference"] == "cpu comes first"
        and set(found.rejected) == {"cuda", "triton", "reference"}
    )
    assert str(found).splitlines()[:2] == [f"hardswish: cpu ({_library.isa_active()})", "  not cuda: x is on cpu"]


@pytest.mark.parametrize(
    "op",
    [fastcnn.ops.hardswish, torch.ops.fastcnn.hardswish, torch.ops.fastcnn.hardswish.default, "hardswish"],
    ids=["function", "packet", "overload", "name"],
)
def test_explain_takes_an_op_in_any_form(op):
    assert fastcnn.explain(op, torch.ones(3)).op == "hardswish"


def test_explain_knows_the_activations_as_one_op_and_float64_as_plain():
    found = fastcnn.explain(fastcnn.ops.relu6, x=torch.ones(3, dtype=torch.float64))
    assert (found.op, found.backend, found.detail) == ("activation", "cpu", "plain, the build that has float64")


def test_explain_without_a_library(monkeypatch):
    monkeypatch.setattr(backends.CPU, "reason", "no C++ compiler was found")
    found = fastcnn.explain("hardswish", torch.ones(3))
    assert found.backend == "reference" and found.rejected["cpu"] == "no C++ compiler was found"


def test_explain_a_fake_call_and_bad_questions():
    assert fastcnn.explain("hardswish", torch.ones(3, device="meta")).backend == "fake"
    with pytest.raises(ValueError, match="^explain: op must be one of activation, .*, got 'conv3d'$"):
        fastcnn.explain("conv3d", torch.ones(3))
    with pytest.raises(
        ValueError, match="^explain: hardswish must be given the arguments of the call, one tensor at least$"
    ):
        fastcnn.explain("hardswish")


def test_the_reference_serves_forward_backward_and_autocast(monkeypatch):
    called = []
    for op, reference in backends.REFERENCES.items():
        monkeypatch.setitem(
            backends.REFERENCES,
            op,
            lambda *args, op=op, reference=reference: (called.append(op.name()), reference(*args))[1],
        )
    x, weight = torch.randn(1, 4, 5, 5, requires_grad=True), torch.randn(4, 1, 3, 3, requires_grad=True)
    with fastcnn.use_backend("reference"):
        assert fastcnn.explain("hardswish", x).backend == "reference"
        with torch.autocast("cpu", torch.bfloat16):
            y = fastcnn.ops.depthwise_conv2d(fastcnn.ops.hardswish(x), weight, padding=1)
        y.float().sum().backward()
    assert y.dtype is torch.bfloat16 and x.grad.shape == x.shape
    assert called == [
        f"fastcnn::{n}" for n in ("hardswish", "depthwise_conv2d", "depthwise_conv2d_backward", "hardswish_backward")
    ]
    fastcnn.ops.hardswish(x)
    assert len(called) == 4


def test_other_ops_pass_through_and_blocks_nest():
    x = torch.randn(3)
    with fastcnn.use_backend("cpu"):
        with fastcnn.use_backend("reference"):
            assert fastcnn.explain("hardswish", x).backend == "reference"
            torch.testing.assert_close(
                fastcnn.ops.hardswish(x) + torch.sin(x), torch.nn.functional.hardswish(x) + x.sin()
            )
        assert fastcnn.explain("hardswish", x).backend == "cpu"
        assert fastcnn.ops.hardswish(x).shape == (3,)


def test_a_backend_that_is_not_here_is_a_named_error(monkeypatch):
    monkeypatch.setattr(backends.CUDA, "reason", "nvcc was not found")
    with pytest.raises(BackendUnavailable, match="^use_backend: cuda is not available: nvcc was not found$"):
        fastcnn.use_backend("cuda")
    with pytest.raises(
        ValueError, match="^use_backend: backend must be one of cuda, triton, cpu, reference, got 'tpu'$"
    ):
        fastcnn.use_backend("tpu")


def test_a_call_that_the_backend_cannot_serve_is_a_named_error(monkeypatch):
    monkeypatch.setattr(backends._triton, "why_not", lambda: None)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with (
        fastcnn.use_backend("triton"),
        pytest.raises(BackendUnavailable, match="^hardswish: triton does not serve this call: x is on cpu$"),
    ):
        fastcnn.ops.hardswish(torch.ones(3))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delitem(backends._triton.OPS, "channel_shuffle")
    with (
        fastcnn.use_backend("triton"),
        pytest.raises(BackendUnavailable, match="^channel_shuffle: triton .*: it has no kernel for channel_shuffle$"),
    ):
        fastcnn.ops.channel_shuffle(torch.ones(1, 4, 2, 2), 2)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_hardswish_on_a_gpu(backend, dtype):
    x = (
        torch.randn(3, 17, 9, 5, device="cuda", dtype=dtype)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
    )
    with fastcnn.use_backend(backend):
        y = fastcnn.ops.hardswish(x)
        (grad,) = torch.autograd.grad(y.sum(), x)
    x64 = x.detach().double().requires_grad_()
    wanted = torch.nn.functional.hardswish(x64)
    torch.testing.assert_close(y.double(), wanted, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    torch.testing.assert_close(
        grad.double(), torch.autograd.grad(wanted.sum(), x64)[0], rtol=2 * torch.finfo(dtype).eps, atol=1e-6
    )
    assert y.stride() == x.stride() == grad.stride()
