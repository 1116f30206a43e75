# SPDX-License-Identifier: Apache-2.0
"""What a busy neighbour costs each engine: 100 calls while another process keeps one core at work, and 100 without."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fastcnn.analysis.peers import Case, original
from fastcnn.analysis.peers.engines import ENGINES, FASTCNN
from fastcnn.analysis.peers.measure import pixels, ready
from fastcnn.benchmark import FOREIGN_CPU, PAUSE, _ForeignLoad

MODELS = ("torchvision:mobilenet_v2",)
CALLS, TURN = 100, 10  # of each engine; in a row before the next engine has its turn
QUIET_TRIES = 5


def measure(models: Sequence[str], threads: Sequence[int]) -> Iterator[dict[str, Any]]:
    for name in models:
        model, size = original(name)
        for count in threads:
            torch.set_num_threads(count)
            notes: dict[str, str] = {}
            with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
                calls, errors = ready(Case(model, pixels(1, size), Path(folder), count), ENGINES, notes)
                alone, load = _quiet(calls)
                with busy_core():
                    beside = hundred(calls)
            yield {
                "kind": "foreign", "model": name, "batch": 1, "size": size, "dtype": "float32", "threads": count,
                "alone": {label: sum(times) * 1e3 for label, times in alone.items()},
                "beside": {label: sum(times) * 1e3 for label, times in beside.items()},
                "median_alone": {label: statistics.median(times) * 1e3 for label, times in alone.items()},
                "median_beside": {label: statistics.median(times) * 1e3 for label, times in beside.items()},
                "errors": errors, "notes": notes, "noisy": load > FOREIGN_CPU,
            }  # fmt: skip


def _quiet(calls: Mapping[str, Callable[[], Any]]) -> tuple[dict[str, list[float]], float]:
    """The run that other programs disturbed least, the first undisturbed one ending the search, and their load."""
    found = []
    for _ in range(QUIET_TRIES):
        load = _ForeignLoad()
        times = hundred(calls)
        found.append((load.measure(), times))
        if found[-1][0] <= FOREIGN_CPU:
            break
    load, times = min(found, key=lambda each: each[0])
    return times, load


def hundred(calls: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of :data:`CALLS` calls of each, :data:`TURN` at a time in turn."""
    times: dict[str, list[float]] = {label: [] for label in calls}
    for _ in range(CALLS // TURN):
        for label, call in calls.items():
            time.sleep(PAUSE)
            call()
            for _ in range(TURN):
                start = time.perf_counter()
                call()
                times[label].append(time.perf_counter() - start)
    return times


@contextmanager
def busy_core() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.5)  # an interpreter that is still starting waits for the disk
        yield
    finally:
        process.kill()
        process.wait()


def losses(row: dict[str, Any]) -> dict[str, float]:
    """By engine: time beside a busy process over time alone."""
    return {label: row["beside"][label] / row["alone"][label] for label in row["alone"]}


def table(rows: Sequence[dict[str, Any]]) -> str:
    head = ["model", "threads", "engine", f"{CALLS} calls alone, ms", "beside a busy process, ms", "times as long",
            "median alone, ms", "median beside, ms"]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    verdicts = []
    for row in rows:
        lost = losses(row)
        for label in sorted(lost, key=lost.__getitem__):
            values = (row["alone"][label], row["beside"][label], lost[label], row["median_alone"][label],
                      row["median_beside"][label])  # fmt: skip
            numbers = [f"{value:.{digits}f}" for value, digits in zip(values, (0, 0, 2, 2, 2), strict=True)]
            where = f"{row['model']}{' (noisy)' if row['noisy'] else ''}"
            lines.append(f"| {where} | {row['threads']} | {label} | {' | '.join(numbers)} |")
        verdicts += [f"Not timed: {label} on {row['model']}: {why}." for label, why in row["notes"].items()]
        if FASTCNN in lost:
            steadier = [label for label in lost if lost[label] < lost[FASTCNN]]
            verdict = f"missed, less is lost by {', '.join(steadier)}" if steadier else "met"
            verdicts.append(f"{row['model']}, {row['threads']} threads: {verdict}.")
    return "\n".join([*lines, "", "Goal: fastcnn loses no more than any peer.", *verdicts])
