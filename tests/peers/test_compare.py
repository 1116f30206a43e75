# SPDX-License-Identifier: Apache-2.0
"""Only what is right is timed, and only in rounds that nobody disturbed."""

import os
import re
import sys

import pytest
import torch

from fastcnn import benchmark
from fastcnn.analysis.peers import Case, compare, engines, measure, missing, original, peak
from fastcnn.analysis.peers.engines import EAGER, ENGINES, FASTCNN, OPENVINO, OPENVINO_STREAMS, ORT, Engine
from tests.peers.rows import SIZE, net, off_by

QUICK = {label: ENGINES[label] for label in (FASTCNN, EAGER)}


@pytest.fixture
def known_peak(monkeypatch):
    monkeypatch.setattr(peak, "_best", {})
    monkeypatch.setattr(peak, "_probe", lambda threads: peak.Peak(100.0 * threads, "nothing"))


def run(more=None, batch=3, **options):
    x = measure.pixels(batch, SIZE)
    return compare("net", net(), x, engines=QUICK | (more or {}), rounds=1, seconds=5.0, **options)


def test_engines_that_are_right_are_timed(known_peak):
    row = run({"close": off_by(5e-6)})
    assert set(row.milliseconds) == set(row.quartiles) == set(row.minimum) == {FASTCNN, EAGER, "close"}
    assert row.errors["close"] == pytest.approx(5e-6, rel=0.2) and row.notes == {}
    assert (row.batch, row.size, row.dtype) == (3, list(SIZE), "float32")
    assert row.peak_gflops == 100.0 * row.threads
    assert row.macs == 8 * 3 * 9 * 12 * 12 + 8 * 5


def test_a_wrong_engine_is_a_failure_and_no_time():
    row = run({"wrong": off_by(3e-5)})
    assert "wrong" not in row.milliseconds and "wrong" not in row.errors
    said = (
        r"Sequential, wrong: the output differs from the reference by [23].\de-05 \(allowed: 1.0e-05\); it is not timed"
    )
    assert re.fullmatch(said, row.notes["wrong"])


@pytest.mark.parametrize("spoil", [
    lambda y: y[:, :4], lambda y: y * float("nan"), lambda y: y.flip(0), lambda y: torch.cat((y[:2], y[1:2])),
], ids=["shape", "nan", "order of the batch", "last image"])  # fmt: skip
def test_every_image_and_value_of_a_batch_is_judged(spoil):
    row = run({"wrong": Engine(lambda case: lambda: spoil(case.model(case.x)))})
    assert "wrong" not in row.milliseconds and "it is not timed" in row.notes["wrong"]


def test_an_engine_that_fails_does_not_end_the_run():
    def broken(case):
        raise RuntimeError("no such operator\nand a page of text")

    row = run({"broken": Engine(broken)})
    assert row.notes == {"broken": "RuntimeError: no such operator"} and FASTCNN in row.milliseconds


def test_bfloat16_is_judged_as_bfloat16():
    row = run({"wrong": off_by(0.5), "as good as bf16": off_by(2e-3)}, dtype=torch.bfloat16)
    assert {FASTCNN, EAGER, "as good as bf16"} == set(row.milliseconds)
    assert 1e-5 < row.errors[FASTCNN] < 0.05 and re.search(r"by 5\.\de-01", row.notes["wrong"])


def test_another_dtype_is_refused():
    with pytest.raises(ValueError, match="compare: dtype must be float32 or bfloat16, got float16"):
        run(dtype=torch.float16)


def test_a_package_that_is_not_here_leaves_its_engine_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert missing({OPENVINO: Engine(ENGINES[OPENVINO].make, ("openvino", "torch"))}) == ["openvino"]
    row = run({OPENVINO: Engine(ENGINES[OPENVINO].make, ("openvino",))})
    assert row.notes == {OPENVINO: "needs openvino"} and FASTCNN in row.milliseconds


def test_rounds_with_foreign_load_are_rejected(monkeypatch):
    """The kernel's counters are fed: busy seconds beyond our own, and a clock; a round reads them before and after."""
    allowed = benchmark.FOREIGN_CPU + 0.5 * max((os.cpu_count() or 1) - torch.get_num_threads(), 0)
    readings = [(0.0, 0.0)]  # when interleave starts

    def feed(*loads):
        clock = busy = 0.0
        for load in loads:
            readings.append((busy, clock))
            busy, clock = busy + load, clock + 1.0
            readings.append((busy, clock))

    feed(allowed * 1.1, allowed * 0.9, allowed * 2, allowed * 0.5)
    feeding = iter(readings)
    monkeypatch.setattr(benchmark._ForeignLoad, "_read", staticmethod(lambda: next(feeding)))
    found = benchmark.interleave({"a": lambda: None, "b": lambda: None}, rounds=2, seconds=30.0)
    assert (found.clean, found.dirty, found.noisy) == (2, 2, False)
    assert {len(timing.rounds) for timing in found.timings.values()} == {2} and next(feeding, None) is None


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Of three images; its ONNX files are written once."""
    pytest.importorskip("onnxscript")
    return Case(net(), measure.pixels(3, SIZE), tmp_path_factory.mktemp("case"), threads=2)


@pytest.mark.parametrize("name, needs", [(ORT, "onnxruntime"), (OPENVINO, "openvino"), (OPENVINO_STREAMS, "openvino")])
def test_each_runtime_computes_the_net(name, needs, case):
    pytest.importorskip(needs)
    with torch.inference_mode():
        judge = measure.Judge(case)
        call = ENGINES[name].make(case)
        for _ in range(2):
            assert judge.check(name, call()) <= 1e-5


def test_openvino_is_told_precision_and_threads(case):
    pytest.importorskip("openvino")
    network = engines._openvino(case, 3, {})
    assert "float32" in str(network.get_property("INFERENCE_PRECISION_HINT"))  # bf16 is its own choice on some CPUs
    assert network.get_property("INFERENCE_NUM_THREADS") == 2


def test_who_serves_what(tmp_path):
    def serving(batch, threads, dtype):
        case = Case(net(), measure.pixels(batch, SIZE), tmp_path, threads, dtype)
        return {label for label, engine in ENGINES.items() if engine.serves(case)}

    everyone = set(ENGINES)
    assert serving(2, 2, torch.float32) == everyone
    assert serving(1, 2, torch.float32) == serving(2, 1, torch.float32) == everyone - {OPENVINO_STREAMS}
    assert serving(2, 2, torch.bfloat16) == everyone - {ORT}


def test_a_name_of_ours_means_the_model_that_peers_get():
    pytest.importorskip("torchvision")
    model, size = original("shufflenet_v2_x0_5")
    assert type(model).__module__.startswith("torchvision") and size == [3, 224, 224] and not model.training
    norm = model.conv1[1]
    assert (norm.running_mean != 0).all() and (norm.weight != 1).all()


def test_the_peak_is_the_best_that_was_seen(monkeypatch):
    rates = iter([50.0, 80.0, 60.0])
    monkeypatch.setattr(peak, "_best", {})
    monkeypatch.setattr(peak, "_probe", lambda threads: peak.Peak(next(rates), ""))
    assert [peak.fma_peak(2).gflops for _ in range(3)] == [50.0, 80.0, 80.0]


@pytest.mark.parametrize("compiler", [None, "no-such-compiler"])
def test_the_peak_is_measured_with_and_without_a_compiler(monkeypatch, compiler):
    monkeypatch.setattr(peak, "GEMM", 256)
    if compiler:
        monkeypatch.setenv("CXX", compiler)
    peak._library.cache_clear()
    found = peak._probe(1)
    peak._library.cache_clear()
    assert 0.1 < found.gflops < 1e5
    assert found.how == (
        "a 256 x 256 matrix product" if compiler or peak._library() is None else "a loop of multiply-adds"
    )
