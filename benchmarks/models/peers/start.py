# SPDX-License-Identifier: Apache-2.0
"""Memory and time to the first result of each engine, in a process of its own that starts from a file.

The clock and the memory start after the imports. fastcnn reads what ``save`` wrote, ONNX Runtime and OpenVINO the ONNX
file, torch's engines a pickled model. Run as a program it is that process.
"""

from __future__ import annotations

import gc
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fastcnn.accelerate
from benchmarks.report import ROOT
from fastcnn.analysis.peers import Case, original
from fastcnn.analysis.peers.engines import COMPILE, COMPILE_LAST, ENGINES, FASTCNN, Call, missing
from fastcnn.analysis.peers.measure import Judge, pixels
from fastcnn.reference import WrongOutput

MODELS = {"memory": ("torchvision:mobilenet_v2", "torchvision:efficientnet_b0", "torchvision:resnet50"),
          "load": ("torchvision:mobilenet_v2",)}  # fmt: skip
LOAD_GOAL = 0.5  # seconds
CALLS = 10  # after the first, before the peak is read
INPUT, OUTPUT, SAVED, PICKLED = "x.pt", "y.pt", "saved", "model.pt"


class Alone(Case):
    """A case with no other engine beside: a model is read when it is needed, and is not copied."""

    def __init__(self, folder: Path, threads: int) -> None:
        super().__init__(nn.Identity(), torch.load(folder / INPUT), folder, threads)

    def cast(self, memory_format: torch.memory_format) -> tuple[nn.Module, torch.Tensor]:
        model = torch.load(self.folder / PICKLED, weights_only=False)  # written by the process that started this one
        return model.to(memory_format=memory_format), self.x.to(memory_format=memory_format)


def measure(kind: str, models: Sequence[str], threads: Sequence[int], repeats: int) -> Iterator[dict[str, Any]]:
    """``kind``: "memory" or "load". Medians over ``repeats`` processes an engine, the engines in turn."""
    for name in models:
        model, size = original(name)
        x = pixels(1, size)
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            notes: dict[str, str] = {}
            engines = _prepare(Case(model, x, Path(folder), max(threads)), notes)
            judge = Judge(Case(model, x, Path(folder), max(threads)))
            for count in threads:
                found: dict[str, list[dict[str, float]]] = {label: [] for label in engines}
                errors = {}
                for label in engines * repeats:
                    if label not in notes:
                        try:
                            found[label].append(_process(label, folder, count, model))
                            errors[label] = judge.check(label, torch.load(Path(folder) / OUTPUT))
                        except (RuntimeError, WrongOutput) as failure:
                            notes[label] = str(failure)
                right = [label for label in engines if label not in notes]
                key = {"memory": "growth_mb", "load": "load_ms"}[kind]
                yield {
                    "kind": kind, "model": name, "batch": 1, "size": size, "dtype": "float32", "threads": count,
                    key: {label: statistics.median(each[key] for each in found[label]) for label in right},
                    "errors": errors, "notes": notes,
                }  # fmt: skip


def _prepare(case: Case, notes: dict[str, str]) -> list[str]:
    """The files of the engines that are here; their names."""
    engines = []
    for label, engine in ENGINES.items():
        absent = missing({label: engine})
        if absent:
            notes[label] = f"needs {', '.join(absent)}"
        elif engine.serves(case):
            engines.append(label)
            if engine.needs:
                case.onnx(len(case.x))
    torch.save(case.x, case.folder / INPUT)
    torch.save(case.model, case.folder / PICKLED)
    fastcnn.accelerate(case.model, case.x).save(case.folder / SAVED)
    return engines


def _process(label: str, folder: str, threads: int, model: nn.Module) -> dict[str, float]:
    package = type(model).__module__  # of the pickled model: its import is none of the engine's
    command = [sys.executable, "-m", "benchmarks.models.peers.start", label, folder, str(threads), package]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{label} in a process of its own: {done.stderr[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(label: str, folder: str, threads: str, package: str) -> None:
    torch.set_num_threads(int(threads))
    needs = [name for name in ENGINES[label].needs if not name.startswith("onnx") or name == "onnxruntime"]
    for name in (*needs, package, *(["torch._inductor.compile_fx"] if label in (COMPILE, COMPILE_LAST) else [])):
        importlib.import_module(name)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts from here
    before, start = _status("VmRSS"), time.perf_counter()
    with torch.inference_mode():
        case = Alone(Path(folder), int(threads))
        call = _loaded(case) if label == FASTCNN else ENGINES[label].make(case)
        y = call()
        seconds = time.perf_counter() - start
        for _ in range(CALLS):
            call()
        growth = _status("VmHWM") - before
        torch.save(torch.as_tensor(y).clone(), Path(folder) / OUTPUT)
    print(json.dumps({"load_ms": seconds * 1e3, "growth_mb": growth}))


def _loaded(case: Alone) -> Call:
    fast = fastcnn.load(case.folder / SAVED)
    return lambda: fast(case.x)


def _status(name: str) -> float:
    """MB, from the kernel's account of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"/proc/self/status has no {name}")


def table(kind: str, rows: Sequence[dict[str, Any]]) -> str:
    key, unit, digits = {"memory": ("growth_mb", "MB", 1), "load": ("load_ms", "ms", 0)}[kind]
    labels = [label for label in ENGINES if any(label in row[key] for row in rows)]
    lines = [f"| model | threads | {' | '.join(f'{label} {unit}' for label in labels)} | goal |",
             "|" + "---|" * (len(labels) + 3)]  # fmt: skip
    for row in rows:
        values = [f"{row[key][label]:.{digits}f}" if label in row[key] else "-" for label in labels]
        lines.append(f"| {row['model']} | {row['threads']} | {' | '.join(values)} | {verdict(kind, row)} |")
    notes = [f"Not measured: {label} on {row['model']}: {why}." for row in rows for label, why in row["notes"].items()]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def verdict(kind: str, row: dict[str, Any]) -> str:
    if FASTCNN in row["notes"]:
        return "not measured"
    if kind == "load":
        met = row["load_ms"][FASTCNN] < 1e3 * LOAD_GOAL
        return f"{1e3 * LOAD_GOAL:.0f} ms: {'met' if met else '**missed**'}"
    peers = {label: growth for label, growth in row["growth_mb"].items() if label != FASTCNN}
    if not peers:
        return "no peer"
    leanest = min(peers, key=peers.__getitem__)
    return f"{leanest}'s: {'met' if row['growth_mb'][FASTCNN] <= peers[leanest] else '**missed**'}"


if __name__ == "__main__":
    main(*sys.argv[1:])
