# SPDX-License-Identifier: Apache-2.0
"""The files and the command of `make bench-gpu`, without a GPU."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from benchmarks import report as cpu_report
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import report
from benchmarks.gpu.kernels import COMPILE, EAGER, KernelRow
from benchmarks.gpu.nets import NetRow


def _kernel(op, label, implementation, microseconds, note=""):
    if microseconds is None:
        return KernelRow(op, label, "float16", implementation, 10**6, note=note)
    rate = 1e6 / (microseconds * 1e-6) / 1e9
    quartiles = (microseconds - 1, microseconds + 1)
    return KernelRow(op, label, "float16", implementation, 10**6, microseconds, quartiles, rate, rate / 20, 1e-4, note)


@pytest.fixture
def run():
    made = report.Run({"gpu": "NVIDIA H100 80GB HBM3", "torch": "2.14"}, "12 passed")
    made.kernels = [
        _kernel("hardswish", "a", EAGER, 20.0), _kernel("hardswish", "a", "fastcnn cuda", 10.0),
        _kernel("hardswish", "b", EAGER, 30.0), _kernel("hardswish", "b", "fastcnn cuda", 60.0),
        _kernel("hardswish", "a", COMPILE, None, "left out: time"),
        _kernel("se_scale", "a", EAGER, None, "wrong: a | b"),
    ]  # fmt: skip
    made.nets = [
        NetRow("mobilenet_v2", batch, "float16", "fastcnn", graph, 2.0, (1.9, 2.1), batch / 2e-3, None, 1e-3)
        for batch in (1, 64)
        for graph in (False, True)
    ] + [NetRow("mobilenet_v2", 1, "float16", "TensorRT", True, note="failed: no")]
    made.left_out = {"networks": 3, "kernels float16": 0}
    return made


def test_json_tables_and_plots_are_named_after_the_gpu(run, tmp_path):
    pytest.importorskip("matplotlib")
    written = report.write(run, tmp_path / "new")
    names = ["", "", "_kernels", "_nets"]
    suffixes = [".json", ".md", ".png", ".png"]
    assert [p.name for p in written] == [f"nvidia_h100_80gb_hbm3{n}{s}" for n, s in zip(names, suffixes)]
    data = json.loads(written[0].read_text(encoding="utf-8"))
    assert data["machine"] == run.machine and len(data["kernels"]) == 6 and data["nets"][0]["milliseconds"] == 2.0
    assert written[1].read_text(encoding="utf-8") == report.markdown(run) + "\n"
    for plot in written[2:]:
        assert plot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and plot.stat().st_size > 10_000


def test_nothing_timed_draws_nothing(run, tmp_path):
    pytest.importorskip("matplotlib")
    run.kernels = run.kernels[4:]
    run.nets = run.nets[4:]
    assert report.plots(run, tmp_path / "x") == []


def test_the_summary_has_wins_and_losses(run):
    lines = report.kernel_summary(run.kernels).splitlines()[2:]
    assert lines == [
        "| hardswish | float16 | torch eager | 2 | 2 | 1.00 | 1.00 | 1.00 |",
        "| hardswish | float16 | fastcnn cuda | 2 | 3 | 1.25 | 0.50 | 2.00 |",
        "| hardswish | float16 | torch.compile | 0 | - | - | - | - |",
        "| se_scale | float16 | torch eager | 0 | - | - | - | - |",
    ]


def test_tables_are_tables_whatever_a_note_says(run):
    for table in (report.kernel_table(run.kernels), report.net_table(run.nets), report.kernel_summary(run.kernels)):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    text = report.markdown(run)
    assert "3 of part networks left out" in text and "kernels float16 left out" not in text
    assert "**1 results were wrong and are not timed.**" in text and [r.op for r in run.wrong] == ["se_scale"]


def _python(code):
    return [sys.executable, "-c", code]


@pytest.mark.parametrize(("code", "passed", "line"), [
    ("print('=== 12 passed, 3 skipped in 2s ===')", True, "12 passed, 3 skipped in 2s"),
    ("print('=== 12 skipped in 2s ==='); exit(0)", False, "no GPU test ran: 12 skipped in 2s"),
    ("print('=== no tests ran ==='); exit(5)", False, "no GPU test ran: no tests ran"),
    ("print('FAILED a::b - no'); print('== 1 failed, 9 passed =='); exit(1)", False,
     "FAILED a::b - no\n1 failed, 9 passed"),
    ("import time; time.sleep(60)", False, "not through after 0.02 minutes"),
])  # fmt: skip
def test_the_gate_needs_tests_that_ran_and_passed(code, passed, line):
    assert command.gate(0.02 if "sleep" in code else 1.0, _python(code)) == (passed, line)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says nothing where there is a GPU")
def test_without_a_gpu_one_line_says_what_is_missing(capsys, tmp_path):
    assert command.main(["--out", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.out == "" and re.fullmatch(r"bench-gpu: missing: .*CUDA.*\n", said.err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="would build and run")
def test_make_says_it_too():
    outer = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")  # of a `make test` around this one
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    done = subprocess.run(["make", "bench-gpu"], cwd=cpu_report.ROOT, capture_output=True, text=True, check=False,
                          env=environment)  # fmt: skip
    assert done.returncode != 0
    assert done.stdout == "" and done.stderr.startswith("bench-gpu: missing: an NVIDIA GPU")


def test_a_failed_gate_times_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(command, "missing", lambda: None)
    monkeypatch.setattr(command, "gate", lambda minutes: (False, "1 failed"))
    monkeypatch.setattr(command, "CudaClock", lambda: pytest.fail("a clock was made"))
    assert command.main(["--out", str(tmp_path)]) == 1
    assert "the gate failed, nothing is timed" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [False, True])
def test_a_whole_run_writes_what_it_found(monkeypatch, capsys, tmp_path, run, wrong):
    """Every part replaced by what it returns: the order, the shares of time, the exit code."""
    seen = []

    def kernels(calls, dtype, device, clock, bandwidth, budget):
        seen.append((dtype, device, bandwidth, round(budget.left)))
        return (run.kernels if wrong else run.kernels[:5]), 2

    def nets(models, device, clock, bandwidth, budget):
        seen.append((models, device, bandwidth, round(budget.left)))
        return run.nets, 0

    monkeypatch.setattr(command, "missing", lambda: None)
    monkeypatch.setattr(command, "gate", lambda minutes: (True, "12 passed"))
    monkeypatch.setattr(command, "CudaClock", lambda: None)
    monkeypatch.setattr(command, "copy_bandwidth", lambda clock, device: 2e12)
    monkeypatch.setattr(command, "machine", lambda bandwidth: run.machine)
    monkeypatch.setattr(command.kernels, "measure", kernels)
    monkeypatch.setattr(command.nets, "measure", nets)
    monkeypatch.setattr(report, "plots", lambda run, base: [])
    assert command.main(["--out", str(tmp_path), "--model", "mobilenet_v2"]) == (1 if wrong else 0)
    assert [s[0] for s in seen] == [torch.float16, torch.bfloat16, ["mobilenet_v2"]]
    assert [s[3] for s in seen] == [210, 420, 900]  # the second dtype has what the first left
    data = json.loads((tmp_path / "nvidia_h100_80gb_hbm3.json").read_text(encoding="utf-8"))
    assert data["gate"] == "12 passed" and data["left_out"]["kernels bfloat16"] == 2
    assert len(data["nets"]) == 5 and ("wrong" in capsys.readouterr().err) is wrong


def test_all_parts_together_stay_under_half_an_hour():
    assert sum(command.MINUTES.values()) <= 27
