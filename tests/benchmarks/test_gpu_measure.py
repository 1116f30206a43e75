# SPDX-License-Identifier: Apache-2.0
"""Kernels and networks of `make bench-gpu` on the CPU: checked before timed, wrong ones and absent ones named."""

import sys
import types

import pytest
import torch

import fastcnn
from benchmarks import implementations, shapes
from benchmarks.gpu import kernels, nets, trt
from benchmarks.gpu.timer import Budget
from tests.benchmarks.clocks import FakeClock, Seconds

ROOF = 1e9  # bytes a second
F32 = torch.float32


def _calls(op):
    return shapes.op_calls(op, ["mobilenet_v3_small"], [1])


def _measure(call, backends=("cpu", "cuda"), compiled=False, clock=None):
    rows = kernels.measure_call(call, F32, "cpu", clock or FakeClock(1e-3), ROOF, Budget(60), backends, compiled)
    return {row.implementation: row for row in rows}


def test_the_same_values_in_another_dtype():
    call = _calls("conv_bn_act")[1]
    half = implementations.build(call, torch.float16)
    exact = implementations.build(call, torch.float16, compute=torch.float64)
    assert exact.torch().dtype is torch.float64
    torch.testing.assert_close(half.torch().double(), exact.torch(), rtol=1e-2, atol=1e-2)
    assert half.bytes * 4 == exact.bytes


def test_a_kernel_is_timed_against_the_byte_roof():
    call = _calls("depthwise_conv2d")[0]
    rows = _measure(call)
    assert list(rows) == ["fastcnn cpu", "fastcnn cuda", kernels.EAGER, kernels.COMPILE, kernels.CUDNN]
    moved = implementations.build(call).bytes
    for name in ("fastcnn cpu", kernels.EAGER, kernels.CUDNN):
        row = rows[name]
        assert (row.bytes, row.microseconds, row.quartiles) == (moved, pytest.approx(1000), pytest.approx((1000, 1000)))
        assert row.gigabytes_per_second == pytest.approx(moved / 1e-3 / 1e9)
        assert row.percent_of_roof == pytest.approx(100 * moved / ROOF / 1e-3)
    assert rows["fastcnn cuda"].microseconds is None
    assert "does not serve" in rows["fastcnn cuda"].note or "not available" in rows["fastcnn cuda"].note
    assert (rows[kernels.COMPILE].microseconds, rows[kernels.COMPILE].note) == (None, "left out: time")


def test_a_wrong_kernel_is_named_and_not_timed(monkeypatch):
    call = _calls("hardswish")[0]
    timed = []
    monkeypatch.setattr(fastcnn.ops, "hardswish", lambda x: x.relu())
    clock = FakeClock(cost=lambda call: timed.append(call) or 1e-3)
    rows = _measure(call, clock=clock)
    assert rows["fastcnn cpu"].note.startswith("wrong: error ")
    assert rows["fastcnn cpu"].microseconds is None and rows["fastcnn cpu"].error > 1e-2
    assert rows[kernels.EAGER].microseconds is not None
    assert len(set(timed)) == 1  # torch eager alone


def test_one_that_fails_is_a_row_not_the_end(monkeypatch):
    call = _calls("hardswish")[0]

    def broken(net, **options):
        def run():
            raise RuntimeError("ptxas died\nat length")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    rows = _measure(call, compiled=True)
    assert rows[kernels.COMPILE].note == "failed: RuntimeError: ptxas died"
    assert rows["fastcnn cpu"].microseconds is not None


def test_compiling_stops_when_its_share_is_spent(monkeypatch):
    seconds = Seconds()

    def compile_for_8_seconds(call, mode, dynamic):
        assert (mode, dynamic) == (kernels.COMPILE_MODE, False)
        seconds.now += 8.0
        return call

    monkeypatch.setattr(torch, "compile", compile_for_8_seconds)
    rows, left_out = kernels.measure(iter(_calls("hardswish")), F32, "cpu", FakeClock(), ROOF, Budget(30.0, seconds), ())
    assert left_out == 0
    compiled = [row.microseconds is not None for row in rows if row.implementation == kernels.COMPILE]
    assert compiled == [True, True] + [False] * (len(compiled) - 2) and len(compiled) > 2


@pytest.mark.parametrize("op", ["conv_bn_act", "depthwise_conv2d"])
def test_the_convolution_alone_has_the_calls_output(op):
    for call in _calls(op)[:6]:
        assert tuple(kernels._convolution(call, F32, "cpu")().shape) == call.output
    assert kernels._convolution(_calls("hardswish")[0], F32, "cpu") is None


def test_cases_take_the_ops_in_turn_the_largest_first():
    ops = ("depthwise_conv2d", "se_scale", "hardswish")
    found = list(kernels.cases(ops, ["mobilenet_v3_small"], 2))
    assert [call.op for call in found[:6]] == [*ops, *ops]
    for op in ops:
        sizes = [kernels._elements(call) for call in found if call.op == op]
        assert sizes == sorted(sizes, reverse=True) and len(sizes) == len(_calls(op))


def test_what_time_leaves_out_is_counted(monkeypatch):
    monkeypatch.setattr(kernels, "COMPILE_SHARE", -1.0)
    calls = _calls("hardswish")
    seconds = Seconds()
    clock = FakeClock(cost=lambda call: setattr(seconds, "now", seconds.now + 10.0) or 1e-3)
    rows, left_out = kernels.measure(iter(calls), F32, "cpu", clock, ROOF, Budget(15.0, seconds), ("cpu",))
    assert left_out == len(calls) - 1 > 0
    assert {row.label for row in rows} == {calls[0].label}


@pytest.fixture(scope="module")
def weights():
    return nets.Weights("mobilenet_v3_small")


def test_a_network_is_checked_and_timed(weights):
    rows = nets.measure_net(weights, F32, 2, "cpu", FakeClock(0.5), ROOF, Budget(60), Budget(-1), graphs=False)
    found = {row.implementation: row for row in rows}
    assert list(found) == [nets.EAGER, nets.FASTCNN, nets.TRITON, nets.COMPILE]
    for name in (nets.EAGER, nets.FASTCNN):
        row = found[name]
        assert (row.milliseconds, row.images_per_second) == (pytest.approx(500), pytest.approx(4))
        assert row.error < 1e-5
        assert row.percent_of_roof == pytest.approx(100 * nets.roof_bytes("mobilenet_v3_small") * 2 / ROOF / 0.5)
    assert found[nets.TRITON].milliseconds is None and found[nets.TRITON].note
    assert found[nets.COMPILE].note == "left out: time"


def test_a_wrong_network_is_not_timed(weights, monkeypatch):
    theirs, ours = weights.on("cpu", F32)
    with torch.no_grad():
        ours.classifier[0].bias.add_(1.0)
    monkeypatch.setattr(weights, "on", lambda device, dtype: (theirs, ours))
    rows = nets.measure_net(weights, F32, 1, "cpu", FakeClock(), ROOF, Budget(60), Budget(-1), graphs=False)
    row = next(row for row in rows if row.implementation == nets.FASTCNN)
    assert row.note.startswith("wrong: ") and row.milliseconds is None


def test_graphs_are_checked_and_timed_like_the_rest(weights, monkeypatch):
    monkeypatch.setattr(nets, "graphed", lambda call: lambda: call() * 1.0)
    rows = nets.measure_net(weights, F32, 1, "cpu", FakeClock(), ROOF, Budget(60), Budget(-1))
    timed = [(row.implementation, row.graph) for row in rows if row.milliseconds]
    assert timed == [(nets.EAGER, False), (nets.EAGER, True), (nets.FASTCNN, False), (nets.FASTCNN, True)]
    of_triton = [row.note for row in rows if row.implementation == nets.TRITON]
    assert of_triton[0] == of_triton[1] != ""


def test_a_graph_that_replays_something_else_is_wrong(weights, monkeypatch):
    monkeypatch.setattr(nets, "graphed", lambda call: lambda: call().roll(1, 1))
    rows = nets.measure_net(weights, F32, 1, "cpu", FakeClock(), ROOF, Budget(60), Budget(-1))
    notes = [row.note for row in rows if row.graph and row.implementation in (nets.EAGER, nets.FASTCNN)]
    assert [note[:6] for note in notes] == ["wrong:"] * 2


def test_every_configuration_once_the_telling_ones_first():
    found = list(nets.configurations(["a", "b"]))
    assert len(found) == len(set(found)) == 2 * 2 * 4
    assert found[:3] == [("a", torch.float16, 1), ("b", torch.float16, 1), ("a", torch.float16, 64)]
    assert {batch for _, _, batch in found} == {1, 8, 64, 256}
    assert nets.measure(["mobilenet_v2"], "cpu", FakeClock(), ROOF, Budget(-1.0)) == ([], 8)


def test_the_roof_of_a_network_without_a_list_is_unknown():
    assert nets.roof_bytes("efficientnet_lite0") is None
    assert nets.roof_bytes("mobilenet_v1_x1_0") == pytest.approx(20.6e6, rel=0.02)


def test_tensorrt_is_used_when_it_is_there(monkeypatch):
    monkeypatch.setattr(trt.importlib.util, "find_spec", lambda name: None)
    assert trt.installed() is None
    monkeypatch.setattr(trt.importlib.util, "find_spec", lambda name: name == "torch_tensorrt" or None)
    package = types.ModuleType("torch_tensorrt")
    package.compile = lambda net, ir, inputs, enabled_precisions: (lambda x: (net(x), ir, enabled_precisions))
    monkeypatch.setitem(sys.modules, "torch_tensorrt", package)
    x = torch.ones(2)
    assert trt.build(torch.neg, x)()[1:] == ("dynamo", {F32})
