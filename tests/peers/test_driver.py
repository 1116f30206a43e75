# SPDX-License-Identifier: Apache-2.0
"""benchmarks/models/bench_peers.py: its kinds on a tiny net, and what happens to its files."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import report
from benchmarks.models import bench_peers
from benchmarks.models.peers import foreign, scaling, start
from fastcnn.analysis.peers.engines import EAGER, ENGINES, FASTCNN
from tests.peers.rows import SIZE, net, row


@pytest.fixture
def tiny(monkeypatch):
    """A tiny net by any name, and the engines that start at once."""
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    for module in (foreign, scaling, start):
        monkeypatch.setattr(module, "original", lambda name: (net(), list(SIZE)))
    for module in (foreign, start):
        monkeypatch.setattr(module, "ENGINES", {label: ENGINES[label] for label in (FASTCNN, EAGER)})


def test_scaling(tiny):
    rows = list(scaling.measure(["net"], [1], rounds=1, seconds=5.0, batches=(1, 3), sides=(12, 20)))
    assert [(each["batch"], each["size"][-1]) for each in rows] == [(1, 12), (3, 12), (1, 20)]
    assert all(each["errors"][FASTCNN] <= 1e-5 and each["minimum"][FASTCNN] > 0 for each in rows)


def test_foreign(tiny, monkeypatch):
    monkeypatch.setattr(foreign, "CALLS", 4)
    monkeypatch.setattr(foreign, "TURN", 2)
    monkeypatch.setattr(foreign, "QUIET_TRIES", 1)
    started = []

    def popen(command):
        started.append(subprocess.Popen(command))
        return started[-1]

    monkeypatch.setattr(foreign, "subprocess", type("subprocess", (), {"Popen": staticmethod(popen)}))
    (found,) = foreign.measure(["net"], [1])
    assert set(found["alone"]) == set(found["beside"]) == {FASTCNN, EAGER} and found["notes"] == {}
    assert len(started) == 1 and started[0].poll() is not None


def test_memory_of_a_process_of_its_own(tiny, monkeypatch):
    monkeypatch.setattr(start, "ENGINES", {FASTCNN: ENGINES[FASTCNN]})
    (found,) = start.measure("memory", ["net"], [1], repeats=1)
    assert found["notes"] == {} and 0.0 < found["growth_mb"][FASTCNN] < 2000.0


def test_a_process_that_fails_is_noted(tiny, monkeypatch):
    def fails(label, *rest):
        raise RuntimeError(f"{label} in a process of its own: killed")

    monkeypatch.setattr(start, "_process", fails)
    (found,) = start.measure("load", ["net"], [1], repeats=2)
    assert found["load_ms"] == {} and found["notes"][EAGER] == f"{EAGER} in a process of its own: killed"
    assert start.verdict("load", found) == "not measured"


@pytest.fixture
def driver(monkeypatch, tmp_path):
    """Runs the program; ``compare`` gives made-up rows, RESULTS.md is a copy with the markers alone."""
    times = {}
    (tmp_path / "RESULTS.md").write_text("before\n<!-- peers -->\nold\n<!-- /peers -->\nafter\n", encoding="utf-8")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(bench_peers.CPU, "reason", None)
    monkeypatch.setattr(bench_peers, "original", lambda name: (net(), list(SIZE)))
    monkeypatch.setattr(
        bench_peers, "compare", lambda name, model, x, **options: row(name, batch=len(x), ours=times.get(name, 2.0))
    )
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bench_peers", *map(str, arguments)])
        bench_peers.main()
        return (tmp_path / "RESULTS.md").read_text(encoding="utf-8")

    return run, times, tmp_path / "rows.json"


def test_rows_are_kept_replaced_and_written(driver, capsys):
    run, times, path = driver
    assert "old" in run("a", "b", "--json", path)  # nothing is written unasked
    times["a"] = 1.0
    text = run("a", "--batch", 1, "--json", path, "--update", "--write")
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert sorted((each["model"], each["batch"], each["ratio"]) for each in rows) == [
        ("a", 1, 2.5), ("a", 16, 1.25), ("b", 1, 1.25), ("b", 16, 1.25)]  # fmt: skip
    assert (
        text.startswith("before\n<!-- peers -->\nSpeed in float32:") and "old" not in text and text.endswith("after\n")
    )
    run("c", "--json", path)
    assert {each["model"] for each in json.loads(path.read_text(encoding="utf-8"))} == {"c"}
    capsys.readouterr()
    run("--show", "--json", path)
    assert "| c | 16 |" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--update"], ["--show"], ["--bf16", "--memory"], ["--memory", "--load"]])
def test_what_does_not_go_together(driver, arguments):
    with pytest.raises(SystemExit) as error:
        driver[0](*arguments)
    assert error.value.code == 2


def test_nothing_is_timed_without_the_compiled_library(driver, monkeypatch):
    monkeypatch.setattr(bench_peers.CPU, "reason", "it was not built")
    with pytest.raises(SystemExit, match="the compiled library is not in use, nothing is timed: it was not built"):
        driver[0]("a")


def test_results_has_the_place():
    text = (bench_peers.start.ROOT / "RESULTS.md").read_text(encoding="utf-8")
    assert f"<!-- {bench_peers.SECTION} -->\n" in text and f"<!-- /{bench_peers.SECTION} -->\n" in text
