# SPDX-License-Identifier: Apache-2.0
"""Every op on every backend of the GPU: they agree with plain torch, on any stream, device, capture and compiler."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch

import fastcnn
from fastcnn import _library, _triton
from fastcnn.ops._register import REFERENCES, overload
from fastcnn.testing import LAYOUTS
from tests.cross.samples import tensors_of
from tests.gpu.tools import DEVICE, assert_agree, here, samples_on

names = pytest.mark.parametrize("name", _library.SCHEMAS)
SHAPES = ((2, 8, 7, 5), (1, 33, 9, 9), (0, 6, 4, 4))
MAP = (2, 32, 14, 14)
FORWARD = [name for name in _library.SCHEMAS if not name.endswith("_backward")]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _run(name: str, backend: str, arguments: tuple) -> list[torch.Tensor]:
    with fastcnn.use_backend(backend):
        return tensors_of(overload(name)(*arguments))


def _first(name: str, dtype: torch.dtype = torch.float32, layout: str = "channels_last", device: str = DEVICE) -> tuple:
    return next(samples_on(device, name, dtype, layout, shapes=(MAP,)))


@names
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_every_backend_agrees_with_the_reference(name, dtype, layout):
    if dtype.itemsize == 2 and name.endswith(("_backward", "_train")):
        pytest.skip("a half that falls on the other side of a knot has another slope; tests/ops keep away from knots")
    for arguments in samples_on(DEVICE, name, dtype, layout, shapes=SHAPES):
        wanted = tensors_of(REFERENCES[overload(name)](*arguments))
        for backend in here(name):
            label = f"{name} on {backend}, {tuple(arguments[0].shape)}"
            assert_agree(_run(name, backend, arguments), wanted, arguments, label)


@names
def test_there_is_a_kernel_for_the_op_and_explain_names_it(name):
    assert here(name), "neither CUDA nor Triton has a kernel"
    found = fastcnn.explain(overload(name), *_first(name, torch.float16))
    assert found.backend in here(name) and "reference" in found.rejected


@names
def test_the_current_stream_is_used(name):
    """The input is written late on a side stream: a kernel on another stream reads it too early."""
    arguments = _first(name)
    backends = here(name)
    wanted = {backend: _run(name, backend, arguments) for backend in backends}
    x = arguments[0]
    values, stream = x.clone(), torch.cuda.Stream()
    for backend in backends:
        x.fill_(float("nan"))
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            x.copy_(values)
            results = _run(name, backend, arguments)
        stream.synchronize()
        for mine, theirs in zip(results, wanted[backend]):
            assert torch.equal(mine, theirs), f"{name} on {backend}"


def test_two_streams_at_once_do_not_meet():
    streams = [torch.cuda.Stream() for _ in range(2)]
    maps = [torch.randn(8, 64, 56, 56, device=DEVICE) for _ in streams]
    weights = [torch.randn(64, 1, 3, 3, device=DEVICE) for _ in streams]
    torch.cuda.synchronize()
    wanted = [fastcnn.ops.depthwise_conv2d(x, w, padding=1) for x, w in zip(maps, weights)]
    torch.cuda.synchronize()
    results: list[list[torch.Tensor]] = [[], []]
    for _ in range(20):
        for place, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                results[place].append(fastcnn.ops.depthwise_conv2d(maps[place], weights[place], padding=1))
    torch.cuda.synchronize()
    for mine, theirs in zip(results, wanted):
        assert all(torch.equal(result, theirs) for result in mine)


@names
def test_a_second_device(name):
    if torch.cuda.device_count() < 2:
        pytest.skip("only one CUDA device")
    first, second = (_first(name, device=f"cuda:{index}") for index in (0, 1))
    torch.cuda.set_device(0)
    for backend in here(name):
        wanted, results = (_run(name, backend, arguments) for arguments in (first, second))
        assert torch.cuda.current_device() == 0
        for mine, theirs in zip(results, wanted):
            assert mine.device.index == 1
            torch.testing.assert_close(mine.cpu(), theirs.cpu(), rtol=1e-4, atol=1e-4)


@names
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_captured_graph_replays_on_new_values(name, dtype):
    for backend in here(name):
        arguments = _first(name, dtype)
        fastcnn.warmup(lambda *values: _run(name, backend, values), arguments)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = _run(name, backend, arguments)
        for _ in range(2):
            arguments[0].copy_(arguments[0].flip(0) * 0.5)
            graph.replay()
            torch.cuda.synchronize()
            for mine, theirs in zip(results, _run(name, backend, arguments)):
                assert torch.equal(mine, theirs), f"{name} on {backend}"


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
def test_compiled_by_inductor_in_one_graph(name, layout):
    torch.compiler.reset()  # it counts how often one place in the source is compiled
    op, arguments = overload(name), _first(name, layout=layout)
    results = tensors_of(torch.compile(lambda *values: op(*values), fullgraph=True)(*arguments))
    assert_agree(results, tensors_of(op(*arguments)), arguments, name)


def test_triton_never_compiles_inside_a_capture(monkeypatch):
    if "triton" not in here("activation"):
        pytest.skip("Triton is not usable")
    launcher = sys.modules[_triton.launcher("activation").__module__]
    monkeypatch.setattr(launcher, "_BLOCK", 256)  # a constant that no other test has compiled for
    x = torch.randn(4099, device=DEVICE)
    with fastcnn.use_backend("triton"), pytest.raises(RuntimeError, match="call fastcnn.warmup"):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            fastcnn.ops.sigmoid(x)
    with fastcnn.use_backend("triton"):
        assert fastcnn.warmup(fastcnn.ops.sigmoid, x) == 1 and fastcnn.warmup(fastcnn.ops.sigmoid, x) == 0
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = fastcnn.ops.sigmoid(x)
    graph.replay()
    torch.testing.assert_close(y, torch.sigmoid(x))


def test_tuning_on_the_device(tmp_path, monkeypatch):
    if "triton" not in here("conv_bn_act"):
        pytest.skip("Triton is not usable")
    monkeypatch.setenv("FASTCNN_TUNING_FILE", str(tmp_path / "tuning.json"))
    x = torch.randn(8, 96, 28, 28, device=DEVICE, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(24, 96, 1, 1, device=DEVICE, dtype=torch.float16)
    with fastcnn.use_backend("triton"):
        before = fastcnn.ops.conv_bn_act(x, weight)
        (tuned,) = fastcnn.tune(fastcnn.ops.conv_bn_act, x, weight)
        after = fastcnn.ops.conv_bn_act(x, weight)
    assert tuned.seconds <= tuned.table_seconds and (tmp_path / "tuning.json").is_file()
    torch.testing.assert_close(after, before, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(dtype):
    if dtype is torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no bfloat16 tensor cores: the table refuses it")
    x, bias = torch.randn(2, 8, 6, 6, device=DEVICE), torch.randn(8, device=DEVICE, requires_grad=True)
    depthwise, dense = (
        torch.randn(8, n, 3, 3, device=DEVICE, requires_grad=True) for n in (1, 8)
    )
    mean, var = torch.zeros(8, device=DEVICE), torch.ones(8, device=DEVICE)
    with torch.autocast("cuda", dtype):
        y = fastcnn.ops.depthwise_conv2d(x, depthwise, bias, padding=1, activation="relu")
        y = fastcnn.ops.conv_bn_act(y, dense, None, None, mean, var, padding=1, training=True)
    assert y.dtype is dtype and mean.dtype is torch.float32 and bool(mean.any())
    y.sum().backward()
    assert {t.grad.dtype for t in (depthwise, dense, bias)} == {torch.float32}


def test_autograd_on_the_device_matches_the_cpu():
    formats, pool = (torch.contiguous_format, torch.channels_last), fastcnn.ops.global_avg_pool
    x, w = torch.randn(2, 8, 9, 9), torch.randn(8, 1, 3, 3)
    for op, memory_format in itertools.product((fastcnn.ops.hardswish, pool), formats):
        grads = []
        for device in ("cpu", DEVICE):
            leaves = [t.to(device).requires_grad_() for t in (x, w)]
            z = leaves[0].contiguous(memory_format=memory_format)
            y = op(fastcnn.ops.depthwise_conv2d(z, leaves[1], padding=1))
            grads.append(torch.autograd.grad(y.square().sum(), leaves))
        for mine, theirs in zip(grads[1], grads[0]):
            torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-4, atol=1e-4)
