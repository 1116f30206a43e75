# SPDX-License-Identifier: Apache-2.0
"""Measures the tables of RESULTS.md: `python -m benchmarks.report ops|models [--json FILE]`.

ops: every shape of every registered model at batch 1 and 16, NCHW and channels_last, our op against torch eager on the same tensors.
models: every registered model against its reference in torch eager (fastcnn.benchmark.bench_model).
Each prints Markdown; a table goes between its markers in RESULTS.md with --write.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

import fastcnn
from benchmarks import implementations, shapes
from benchmarks.conftest import LAYOUTS
from fastcnn.analysis import machine

ROOT = Path(__file__).resolve().parent.parent
LARGE_US = 30.0  # from here on our op must not be slower (NOISE); below it may take EXTRA_US more
NOISE = 1.02
EXTRA_US = 12.0
ROUNDS = 11
SLICE = 0.001  # seconds of calls that make one sample


class Row(NamedTuple):
    op: str
    label: str
    batch: int
    layout: str
    torch_us: float
    fastcnn_us: float
    percent_of_roof: float

    @property
    def ratio(self) -> float:
        return self.fastcnn_us / self.torch_us

    @property
    def kept(self) -> bool:
        return self.ratio <= NOISE if self.torch_us >= LARGE_US else self.fastcnn_us - self.torch_us <= EXTRA_US


def alternate(first, second, rounds: int = ROUNDS) -> tuple[float, float]:
    """Medians of two callables in microseconds, timed in turn so that both see the same machine."""
    samples: tuple[list[float], list[float]] = ([], [])
    counts = []
    for call in (first, second):
        call(), call()
        start = time.perf_counter()
        call()
        counts.append(max(1, min(200, int(SLICE / (time.perf_counter() - start)))))
    for round_ in range(rounds):
        for which in (0, 1) if round_ % 2 else (1, 0):
            call, count = (first, second)[which], counts[which]
            call()  # the caches hold the other one's tensors
            start = time.perf_counter()
            for _ in range(count):
                call()
            samples[which].append((time.perf_counter() - start) / count * 1e6)
    return statistics.median(samples[0]), statistics.median(samples[1])


@torch.inference_mode()
def measure_ops(ops: list[str], models: list[str], batches: list[int], layouts: list[str]) -> list[Row]:
    rows = []
    for op in ops:
        for batch in batches:
            for call in tqdm(shapes.op_calls(op, models, [batch]), desc=f"{op} batch {batch}", leave=False):
                for layout in layouts:
                    pair = implementations.build(call, memory_format=LAYOUTS[layout])
                    implementations.assert_equal(call, pair)
                    theirs, ours = alternate(pair.torch, pair.fastcnn)
                    row = Row(op, call.label, batch, layout, theirs, ours, 0.0)
                    if not row.kept:  # once more, longer, before a loss is reported
                        theirs, ours = alternate(pair.torch, pair.fastcnn, 3 * ROUNDS)
                    percent = 100 * machine.roof_seconds(pair.bytes, pair.macs) / (ours * 1e-6)
                    rows.append(Row(op, call.label, batch, layout, theirs, ours, percent))
    return rows


def ops_table(rows: list[Row]) -> str:
    """Per op, batch and layout: how many shapes, the ratio's quartiles and worst, the rule kept; then every row that breaks it."""
    lines = ["| op | batch | layout | shapes | torch / fastcnn: median | worst | best | % of roof, median | rule kept |",
             "|---|---|---|---|---|---|---|---|---|"]
    for key in dict.fromkeys((r.op, r.batch, r.layout) for r in rows):
        group = [r for r in rows if (r.op, r.batch, r.layout) == key]
        speedups = sorted(1 / r.ratio for r in group)
        kept = sum(r.kept for r in group)
        lines.append(f"| {key[0]} | {key[1]} | {key[2]} | {len(group)} | {statistics.median(speedups):.2f} | {speedups[0]:.2f} | {speedups[-1]:.2f} "
                     f"| {statistics.median(r.percent_of_roof for r in group):.0f} | {kept} of {len(group)} |")
    broken = [r for r in rows if not r.kept]
    lines += ["", f"Rule: at {LARGE_US:.0f} us or more of torch eager not slower (2 % noise), below at most {EXTRA_US:.0f} us more. "
              f"Broken by {len(broken)} of {len(rows)}{':' if broken else '.'}"]
    if broken:
        lines += ["", "| op | shape | layout | torch us | fastcnn us |", "|---|---|---|---|---|"]
        lines += [f"| {r.op} | {r.label} | {r.layout} | {r.torch_us:.1f} | {r.fastcnn_us:.1f} |" for r in sorted(broken, key=lambda r: -r.ratio)]
    return "\n".join(lines)


def _distinct(old: list[dict], new: list[Row]) -> list[Row]:
    """One row per op, label, batch and layout, the newest: calls that differ by an eps alone share their label."""
    return list({row[:4]: row for row in (*(Row(**fields) for fields in old), *new)}.values())


def measure_models(models: list[str], batches: list[int], seconds: float) -> list:
    from fastcnn.benchmark import bench_model

    return [bench_model(name, batch, seconds=seconds) for batch in batches for name in tqdm(models, desc=f"batch {batch}", leave=False)]


def models_table(results: list) -> str:
    lines = ["| model | batch | eager NCHW ms | eager channels_last ms | fastcnn ms | over NCHW | over channels_last | max rel. error |",
             "|---|---|---|---|---|---|---|---|"]
    for r in results:
        nchw, last, ours = (r.milliseconds[k] for k in ("eager NCHW", "eager channels_last", "fastcnn"))
        lines.append(f"| {r.model} | {r.batch} | {nchw:.2f} | {last:.2f} | {ours:.2f} | {r.speedup['eager NCHW']:.2f} | "
                     f"{r.speedup['eager channels_last']:.2f}{' (noisy)' if r.noisy else ''} | {r.error:.1e} |")
    return "\n".join(lines)


def write_section(name: str, table: str) -> None:
    """Replaces what stands between ``<!-- name -->`` and ``<!-- /name -->`` in RESULTS.md."""
    path = ROOT / "RESULTS.md"
    text = path.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"RESULTS.md has no section {name}")
    path.write_text(pattern.sub(lambda m: m[1] + table + "\n" + m[2], text), encoding="utf-8")


def section_main(name: str, table: Callable[[], str], description: str) -> None:
    """The command line of a benchmark that prints one table, which is section ``name`` of RESULTS.md."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    args = parser.parse_args()
    text = table()
    print(text)
    if args.write:
        write_section(name, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("ops", "models"))
    parser.add_argument("--op", action="append", choices=implementations.OPS)
    parser.add_argument("--model", action="append")
    parser.add_argument("--batch", type=int, action="append")
    parser.add_argument("--layout", action="append", choices=tuple(LAYOUTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0, help="at most this long per model")
    parser.add_argument("--json", type=Path, help="write every row there as well")
    parser.add_argument("--update", action="store_true", help="ops: keep the rows of the --json file that are not measured anew")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    args = parser.parse_args()
    if args.update and not args.json:
        parser.error("--update needs --json")
    torch.set_num_threads(args.threads)
    models, batches = args.model or fastcnn.list_models(), args.batch or [1, 16]
    if args.what == "ops":
        rows = measure_ops(args.op or list(implementations.OPS), models, batches, args.layout or list(LAYOUTS))
        rows = _distinct(json.loads(args.json.read_text(encoding="utf-8")) if args.update else [], rows)
        table, data = ops_table(rows), [row._asdict() for row in rows]
    else:
        results = measure_models(models, batches, args.seconds)
        table, data = models_table(results), [result.to_dict() for result in results]
    print(table)
    if args.json:
        args.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    if args.write:
        write_section(args.what, table)


if __name__ == "__main__":
    main()
