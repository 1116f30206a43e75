# SPDX-License-Identifier: Apache-2.0
"""`pytest benchmarks` as the README has it: on a fresh checkout and after a saved run, grouped, with rates."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
QUICK = ("--benchmark-min-rounds=1", "--benchmark-max-time=0.001", "--benchmark-warmup=off")


def bench(*options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *options]
    environment = {name: value for name, value in os.environ.items() if "XDIST" not in name}  # a worker times nothing
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False, env=environment)


def test_every_op_is_collected():
    done = bench("benchmarks", "--collect-only", "--model", "mobilenet_v3_small", "--model", "shufflenet_v2_x0_5")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    files = {path.name for path in (ROOT / "benchmarks/ops").glob("bench_*.py")}
    assert {name for name in files if f"{name}::bench_" in done.stdout} == files


def test_compare_on_a_fresh_checkout_and_after_a_saved_run(tmp_path):
    options = ("benchmarks/ops/bench_channel_shuffle.py", "--model", "shufflenet_v2_x0_5", *QUICK,
               f"--benchmark-storage={tmp_path}")  # fmt: skip
    for step in ("--benchmark-compare", "--benchmark-autosave", "--benchmark-compare"):
        done = bench(*options, step)
        assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
    assert "(0001_" in done.stdout and "(NOW)" in done.stdout  # the comparison's rows
    saved = json.loads(next(tmp_path.rglob("*.json")).read_text(encoding="utf-8"))
    groups: dict[str, set[str]] = {}
    for one in saved["benchmarks"]:
        groups.setdefault(one["group"], set()).add(one["extra_info"]["implementation"])
        assert {"gigabytes_per_second", "percent_of_roof"} <= set(one["extra_info"])
    assert groups and all(found == {"torch", "fastcnn"} for found in groups.values())
