# SPDX-License-Identifier: Apache-2.0
"""What accelerate() makes of the models of torchvision and timm: `python -m benchmarks.models.accelerate_table [--write]`.

For each model of tests/accelerate/nets.py, at its native size and 2 threads: torch eager in NCHW and in channels_last,
torch.compile with frozen weights, and accelerate, in one interleaved run. Each must be right before it is timed. A run
over all takes hours: rows in the --json file are not measured again.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

import fastcnn
from benchmarks.report import write_section
from fastcnn.analysis.peers.engines import compiled
from fastcnn.benchmark import EAGER_CHANNELS_LAST, EAGER_NCHW, interleave
from fastcnn.reference import WrongOutput, assert_matches
from tests.accelerate.nets import NETS, Net

SECTION = "accelerate"
COMPILE, ACCELERATE = "torch.compile, frozen", "accelerate"
CHECKED = 2  # pictures of a batch that are held against fp64, which is slow


def check(name: str, y: Any, own: Sequence[Any], truth: Any) -> float:
    """The worst relative error of the tensors of an output. Raises: WrongOutput."""
    leaves = [[leaf[:CHECKED] for leaf in tree_leaves(each)] for each in (y, *own, truth)]
    errors = []
    for mine, *others, true in zip(*leaves, strict=True):
        references = {str(i): other for i, other in enumerate(others)}
        errors.append(assert_matches(name, mine, references, true))
    return max(errors)


@torch.inference_mode()
def measure(net: Net, batch: int, rounds: int, seconds: float) -> dict[str, Any]:
    """One row. An implementation that fails or is wrong is not timed and leaves its reason under ``notes``."""
    notes: dict[str, str] = {}
    with torch.inference_mode(False), torch.no_grad():
        model = net.build()
        x = net.pixels(batch, native=True)
        fast = fastcnn.accelerate(model, x, strict=False)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    pixels = x.contiguous(memory_format=torch.channels_last)
    truth = copy.deepcopy(model).double()(x[:CHECKED].double())  # each picture of a batch is computed alone
    own = [model(x), last(pixels)]
    torch.compiler.reset()
    makers = {
        EAGER_NCHW: lambda: lambda: model(x),
        EAGER_CHANNELS_LAST: lambda: lambda: last(pixels),
        COMPILE: lambda: compiled(last, pixels),
    }
    if fast.report.accelerated:
        makers[ACCELERATE] = lambda: lambda: fast(pixels)
    else:
        notes[ACCELERATE] = fast.report.refused
    calls: dict[str, Callable[[], Any]] = {}
    errors: dict[str, float] = {}
    for label, make in makers.items():
        try:
            call = make()
            errors[label] = check(f"{net.name}, {label}", call(), own, truth)
            calls[label] = call
        except WrongOutput as wrong:
            notes[label] = str(wrong)
        except Exception as failure:  # one that cannot compile or run is a finding, not the end of the table
            notes[label] = f"{type(failure).__name__}: {failure}".splitlines()[0][:200]
    comparison = interleave(calls, rounds, seconds)
    timings = comparison.timings
    ours = timings.get(ACCELERATE)
    return {
        "model": net.name,
        "batch": batch,
        "size": net.native,
        "milliseconds": {label: timing.median * 1e3 for label, timing in timings.items()},
        "speedup": {
            label: ours.speedup_over(timing) for label, timing in timings.items() if ours and timing is not ours
        },
        "errors": errors,
        "report": fast.report.to_dict(),
        "notes": notes,
        "noisy": comparison.noisy,
        "threads": torch.get_num_threads(),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row a model and batch, then where accelerate loses, then what was not timed."""
    labels = (EAGER_NCHW, EAGER_CHANNELS_LAST, COMPILE, ACCELERATE)
    head = ["model", "batch", *(f"{label} ms" for label in labels), "over channels_last", "over compile", "fused", "left",
            "max rel. error"]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in sorted(rows, key=lambda row: (row["batch"], row["model"])):
        times = [f"{row['milliseconds'][label]:.2f}" if label in row["milliseconds"] else "-" for label in labels]
        ratios = [f"{row['speedup'][label]:.2f}" if label in row["speedup"] else "-" for label in labels[1:3]]
        ratios[0] += " (noisy)" if row["noisy"] else ""
        fused = ", ".join(f"{name} {count}" for name, count in row["report"]["fused"].items() if count)
        left = ", ".join(f"{each['operator']} {each['count']}" for each in row["report"]["left"])
        error = f"{row['errors'][ACCELERATE]:.1e}" if ACCELERATE in row["errors"] else "-"
        cells = [row["model"], str(row["batch"]), *times, *ratios, fused or "nothing", left or "nothing", error]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_summary(rows)])


def _summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for batch in sorted({row["batch"] for row in rows}):
        for label in (EAGER_CHANNELS_LAST, COMPILE):
            ratios = {r["model"]: r["speedup"][label] for r in rows if r["batch"] == batch and label in r["speedup"]}
            lost = {model: ratio for model, ratio in ratios.items() if ratio <= 1.0}
            if ratios:
                text = ", ".join(
                    f"{model} {ratio:.2f}" for model, ratio in sorted(lost.items(), key=lambda item: item[1])
                )
                lines.append(
                    f"Batch {batch}, over {label}: faster on {len(ratios) - len(lost)} of {len(ratios)}, median "
                    f"{statistics.median(ratios.values()):.2f}; not on: {text or 'none'}."
                )
    notes = [f"{r['model']}, batch {r['batch']}, {label}: {why}" for r in rows for label, why in r["notes"].items()]
    return [*lines, *(f"Not timed: {note}." for note in notes)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--only", action="append", metavar="NAME", help="a name as in the table, or a part of one")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing per model and batch, at most")
    parser.add_argument("--json", type=Path, help="keep every row there; those it has are not measured again")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = json.loads(args.json.read_text(encoding="utf-8")) if args.json and args.json.exists() else []
    known = {(row["model"], row["batch"]) for row in rows}
    nets = [net for net in NETS if not args.only or any(part in net.name for part in args.only)]
    if not nets:
        parser.error(f"--only: no model has {' or '.join(args.only)} in its name")
    wanted = [(net, batch) for batch in args.batch for net in nets if (net.name, batch) not in known]
    for net, batch in tqdm(wanted, leave=False):
        rows.append(measure(net, batch, args.rounds, args.seconds))
        if args.json:
            args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    text = table([row for row in rows if row["batch"] in args.batch])
    print(text)
    if args.write:
        write_section(SECTION, text)


if __name__ == "__main__":
    main()
