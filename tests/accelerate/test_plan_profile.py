# SPDX-License-Identifier: Apache-2.0
"""The profile: every step and operator once, figures that follow from time, multiply-adds and bytes."""

import io
import json
import re
from pathlib import Path

import pytest
import torch

import fastcnn
from fastcnn.accelerate import clock
from fastcnn.accelerate import profile as profiling
from fastcnn.accelerate.clock import Timed
from fastcnn.accelerate.plan import AVAILABLE
from fastcnn.analysis import machine
from fastcnn.analysis.peers import peak
from tests.accelerate.plan_nets import accelerated, net

needs_plans = pytest.mark.skipif(not AVAILABLE, reason="no compiled CPU library")


@pytest.fixture(autouse=True)
def rates(monkeypatch):
    """100 GFLOP/s, 10 GB/s at any size."""
    monkeypatch.setattr(peak, "fma_peak", lambda threads: peak.Peak(100.0, "a test"))
    monkeypatch.setattr(machine, "copy_bandwidth", lambda: dict.fromkeys(machine._PROBE_BYTES, 10e9))


@needs_plans
def test_steps_of_the_plan_with_work_of_the_whole_batch():
    _, fast = accelerated()
    x = torch.randn(3, 3, 24, 24)
    found = fast.profile(x, calls=2)
    notes = fast._packed.latest().planned.plans[0].notes
    assert [(step.kind, step.layer, step.plan) for step in found.steps] == [(n.name, n.layer, 0) for n in notes]
    for step, note in zip(found.steps, notes, strict=True):
        seconds = step.milliseconds / 1e3
        assert seconds > 0 and step.share == pytest.approx(step.milliseconds / found.milliseconds)
        assert (step.gflops or 0) * seconds == pytest.approx(2e-9 * 3 * note.macs)
        assert step.gigabytes * seconds == pytest.approx(1e-9 * (3 * (note.bytes - note.weights) + note.weights))
    assert sum(n.macs for n in notes) == macs_of_the_net()
    assert (found.shapes, found.dtype, found.calls, found.device) == ([[3, 3, 24, 24]], "float32", 2, "cpu")


def macs_of_the_net() -> int:
    """Per image at 24 x 24, by hand: stem, expansion, depthwise, gate, projection, grouped, classifier."""
    return (12 * 27 + 20 * 12 + 20 * 9 + 12 * 20) * 144 + 2 * 4 * 20 + 18 * 12 * 9 * 100 + 18 * 5


def test_operators_without_a_plan():
    _, fast = accelerated(mapping={"plan": False})
    found = fast.profile(torch.randn(2, 3, 24, 24), calls=1)
    assert all(
        step.plan is None and step.kind.partition(".")[0] in ("fastcnn", "aten", "mkldnn") for step in found.steps
    )
    assert {"stem.0", "head"} <= {step.layer for step in found.steps}
    work = sum((step.gflops or 0) * step.milliseconds for step in found.steps)
    assert work == pytest.approx(2e-6 * 2 * macs_of_the_net(), rel=1e-3)


def test_another_dtype_has_no_percentages():
    _, fast = accelerated(dtype=torch.bfloat16)
    found = fast.profile(torch.randn(2, 3, 24, 24), calls=1)
    assert found.dtype == "bfloat16" and found.peak_gflops is None and found.steps
    assert all(step.percent is None for step in found.steps)


def test_percent_is_of_the_slower_of_arithmetic_and_bytes():
    heavy = profiling._step(Timed("conv", "a", 1.0, 10**7, 1000, 0), 4.0, 100.0)  # 20 MFLOP: 0.2 ms at the peak
    moved = profiling._step(Timed("copy", "b", 2.0, 0, 10**7, None), 4.0, 100.0)  # 10 MB: 1 ms
    assert (heavy.percent, heavy.gflops, heavy.share) == (pytest.approx(20.0), pytest.approx(20.0), 0.25)
    assert (moved.percent, moved.gflops, moved.gigabytes) == (pytest.approx(50.0), None, pytest.approx(5.0))
    assert moved.cells() == ("copy", "b", "2.000", "50.0 %", "", "5.0", "50.0")


@needs_plans
def test_medians_over_the_calls_after_the_first(monkeypatch):
    _, fast = accelerated()
    times = iter([9.0, 1.0, 5.0, 2.0])
    run = torch.ops.fastcnn.run_plan_profile

    def timed(*args):
        outputs, seconds = run(*args)
        return outputs, torch.full_like(seconds, next(times) / 1e3)

    monkeypatch.setattr(clock.torch.ops.fastcnn, "run_plan_profile", timed)
    steps = fast.profile(torch.randn(1, 3, 24, 24), calls=3).steps
    assert [step.milliseconds for step in steps] == pytest.approx([2.0] * len(steps))


def test_forms(tmp_path):
    _, fast = accelerated(dynamic_size=True)
    found = fast.profile(torch.randn(1, 3, 30, 18), calls=1)
    assert found.shapes == [[1, 3, 30, 18]]
    document = json.loads(json.dumps(found.to_dict()))
    assert document["milliseconds"] == pytest.approx(found.milliseconds) and len(document["steps"]) == len(found.steps)
    lines = str(found).splitlines()
    assert (
        lines[0] == found.title()
        and lines[1].split()[:3] == ["step", "layer", "ms"]
        and len(lines) == 2 + len(found.steps)
    )
    rich = pytest.importorskip("rich.console")
    console = rich.Console(record=True, width=120, file=io.StringIO())
    console.print(found)
    text = console.export_text()
    assert "GFLOP/s" in text and found.steps[0].layer in text


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    _, fast = accelerated()
    found = fast.profile(torch.randn(1, 3, 24, 24), calls=1)
    found.plot(tmp_path / "steps.svg")
    assert "<svg" in (tmp_path / "steps.svg").read_text()
    labels = [text.get_text() for text in found.figure().axes[0].get_yticklabels()]
    assert labels == [step.layer for step in found.steps]


def test_bad_input():
    _, fast = accelerated()
    with pytest.raises(ValueError, match="profile: calls must be a whole number from 1 up, got 0"):
        fast.profile(torch.randn(1, 3, 24, 24), calls=0)
    with pytest.raises(TypeError, match="takes 1 inputs, got 0"):
        fast.profile()
    with pytest.raises(ValueError, match=r"must be \[N, 3, 24, 24\] as in the example"):
        fast.profile(torch.randn(1, 3, 25, 24))


@needs_plans
def test_the_example_of_the_readme(capsys):
    text = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n((?:(?!```).)*?fast\.profile.*?)```", text, re.DOTALL)
    names = {"torch": torch, "fastcnn": fastcnn, "model": net()}
    exec(code, names)  # noqa: S102  (of our own page)
    assert names["slowest"].share == max(step.share for step in names["found"].steps)
    assert "Plans(count=1" in capsys.readouterr().out


def test_rates_of_this_machine(monkeypatch):
    monkeypatch.undo()
    rates = machine.copy_bandwidth()
    assert set(rates) == set(machine._PROBE_BYTES) and all(rate > 1e8 for rate in rates.values())
    ordered = [rates[size] for size in sorted(rates)]
    assert ordered == sorted(ordered, reverse=True) and machine.peak_flops() > 1e8
    assert machine.roof_seconds(10**6, 10**9) >= 2e9 / machine.peak_flops()
