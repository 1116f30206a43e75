# SPDX-License-Identifier: Apache-2.0
"""``fastcnn bench``: the timing method on clocks of our own, and models that must not be timed."""

import json
import time

import pytest
import torch

import fastcnn
from fastcnn import benchmark, reference
from fastcnn.cli import main

MODEL = "shufflenet_v2_x0_5"


def sleeper(seconds, log, name):
    def call():
        log.append(name)
        time.sleep(seconds)

    return call


@pytest.fixture
def quiet(monkeypatch):
    """No other program runs."""
    monkeypatch.setattr(benchmark._ForeignLoad, "measure", lambda self: 0.0)


def test_interleave_measures_medians_and_ratios(quiet):
    log = []
    result = benchmark.interleave(
        {"slow": sleeper(0.02, log, "slow"), "fast": sleeper(0.005, log, "fast")}, rounds=5, seconds=30
    )
    slow, fast = result.timings["slow"], result.timings["fast"]
    assert (result.clean, result.dirty, result.noisy) == (5, 0, False) and len(slow.rounds) == len(fast.rounds) == 5
    assert 0.02 <= slow.median < 0.04 and 0.005 <= fast.median < 0.01
    assert 2 < fast.speedup_over(slow) < 6 and fast.quartiles[0] <= fast.median <= fast.quartiles[1]
    switches = sum(a != b for a, b in zip(log, log[1:], strict=False))
    assert switches >= 5


def test_disturbed_rounds_are_dropped(monkeypatch):
    loads = iter([0.0, 9.0] * 2 + [0.0, 0.0] * 100)
    monkeypatch.setattr(benchmark._ForeignLoad, "measure", lambda self: next(loads))
    result = benchmark.interleave({"a": sleeper(0.001, [], "a")}, rounds=6, seconds=30)
    assert (result.clean, result.dirty, result.noisy) == (6, 2, False) and len(result.timings["a"].rounds) == 6


def test_a_machine_that_is_never_quiet_gives_a_result_marked_noisy(monkeypatch):
    monkeypatch.setattr(benchmark._ForeignLoad, "measure", lambda self: 99.0)
    result = benchmark.interleave({"a": sleeper(0.001, [], "a")}, rounds=4, seconds=30)
    assert result.noisy and result.clean == 0 and len(result.timings["a"].rounds) == 12


def test_calibrated_statistics_are_not_the_fresh_ones():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4, momentum=0.03))
    random_state = torch.get_rng_state()
    bn = reference.calibrate(net, [3, 16, 16])[1]
    assert torch.equal(torch.get_rng_state(), random_state) and not net.training and bn.momentum == 0.03
    for tensor, fresh in ((bn.running_mean, 0), (bn.running_var, 1), (bn.weight, 1), (bn.bias, 0)):
        assert (tensor != fresh).all()


@pytest.mark.parametrize("dtype, allowed", [(torch.float32, 1e-5), (torch.bfloat16, 2**-7), (torch.float16, 2**-10)])
def test_the_parity_rule(dtype, allowed):
    truth = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    exact, close, wrong = (truth + torch.tensor([0.0, d]) for d in (0.0, 0.9 * allowed, 3 * allowed))
    assert reference.assert_matches("net", close.to(dtype), {"torch": exact}, truth) <= allowed
    reference.assert_matches("net", wrong.to(dtype), {"torch": close}, truth)  # 5 times the reference's own error
    nan = torch.full((1, 2), torch.nan, dtype=dtype)
    for bad in (wrong.to(dtype), nan, torch.zeros(1, 3, dtype=dtype), torch.zeros(1, 2, dtype=dtype)):
        with pytest.raises(reference.WrongOutput, match="net: the output differs from the reference"):
            reference.assert_matches("net", bad, {"torch": exact}, truth)


@pytest.fixture
def no_timing(monkeypatch):
    """Every model is asserted, and 'timed' with made-up rounds."""
    timing = {benchmark.EAGER_NCHW: 0.004, benchmark.EAGER_CHANNELS_LAST: 0.003, benchmark.FASTCNN: 0.002}
    called = []

    def interleave(calls, rounds, seconds):
        called.append(list(calls))
        return benchmark.Comparison({k: benchmark.Timing([timing[k]] * rounds) for k in calls}, rounds, 0, False)

    monkeypatch.setattr(benchmark, "interleave", interleave)
    return called


@pytest.mark.parametrize("arguments", [[], ["--batch", "5"], ["--dtype", "bfloat16", "--memory-format", "contiguous"]])
def test_bench_reports_medians_and_both_ratios(capsys, no_timing, arguments):
    pytest.importorskip("torchvision")
    assert main(["bench", MODEL, "--threads", str(torch.get_num_threads()), "--rounds", "3", "--json", *arguments]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["model"] == MODEL and result["rounds"] == 3 and 0 < result["error"] < 0.2
    assert result["milliseconds"] == {"eager NCHW": 4.0, "eager channels_last": 3.0, "fastcnn": 2.0}
    assert result["speedup"] == {"eager NCHW": 2.0, "eager channels_last": 1.5}


def test_bench_prints_one_row_per_model_and_batch(capsys, no_timing):
    pytest.importorskip("torchvision")
    assert main(["bench", "shufflenet_v2_x0_?", MODEL, "--batch", "1", "2"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[1] for line in lines if line and line[0] == MODEL] == ["1", "2"]


def test_a_wrong_model_is_not_timed(capsys, no_timing, monkeypatch):
    pytest.importorskip("torchvision")
    build = fastcnn.create_model

    def wrong(name, **kwargs):
        net = build(name, **kwargs)
        net.register_forward_hook(lambda module, inputs, output: output * 1.0001)
        return net

    monkeypatch.setattr(fastcnn.models, "create_model", wrong)
    assert main(["bench", MODEL, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["results"] == [] and "differs from the reference" in document["failures"][0]["error"]
    assert no_timing == []


def test_a_missing_reference_names_the_command(capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchvision.models", None)
    assert main(["bench", MODEL]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and "-m pip install torchvision" in captured.err and "Traceback" not in captured.err
    with pytest.raises(ValueError, match="reference must be 'package:name'"):
        reference.reference_model("somewhere:net")


def test_unknown_models_are_usage_mistakes(capsys):
    assert main(["bench", "mobilenet_v99"]) == 2
    assert "mobilenet_v2" in capsys.readouterr().err
    assert main(["bench", "vit*"]) == 2
    assert "no model matches 'vit*'" in capsys.readouterr().err
