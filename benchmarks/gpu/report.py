# SPDX-License-Identifier: Apache-2.0
"""What a run found, as `results/<gpu name>.json`, Markdown tables and plots."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.kernels import EAGER, KernelRow
from benchmarks.gpu.nets import NetRow


@dataclass
class Run:
    """Everything of one run. ``left_out`` counts, by part, what its time did not suffice for."""

    machine: dict[str, Any]
    gate: str = ""
    kernels: list[KernelRow] = field(default_factory=list)
    nets: list[NetRow] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def wrong(self) -> list[KernelRow | NetRow]:
        return [row for row in (*self.kernels, *self.nets) if row.note.startswith("wrong")]


def stem(name: str) -> str:
    """A device's name as a file's.

    >>> stem("NVIDIA H100 80GB HBM3")
    'nvidia_h100_80gb_hbm3'
    """
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def write(run: Run, folder: Path) -> list[Path]:
    """The JSON, the tables, the plots that have something to show; the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / stem(run.machine["gpu"])
    written = [base.with_suffix(".json"), base.with_suffix(".md")]
    written[0].write_text(json.dumps(asdict(run), indent=1) + "\n", encoding="utf-8")
    written[1].write_text(markdown(run) + "\n", encoding="utf-8")
    return written + plots(run, base)


def markdown(run: Run) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in run.machine.items())
    parts = [f"# {run.machine['gpu']}", facts, f"Gate: {run.gate}", "## Kernels", kernel_summary(run.kernels),
             kernel_table(run.kernels), "## Networks", net_table(run.nets)]  # fmt: skip
    parts += [f"{count} of part {part} left out: its time was over." for part, count in run.left_out.items() if count]
    if run.wrong:
        parts.append(f"**{len(run.wrong)} results were wrong and are not timed.**")
    return "\n\n".join(part for part in parts if part)


def kernel_summary(rows: Sequence[KernelRow]) -> str:
    """Per op and implementation: how often it ran, percent of the roof, times torch eager on the same call."""
    eager = {(r.op, r.label, r.dtype): r.microseconds for r in rows if r.implementation == EAGER and r.microseconds}
    lines = ["| op | dtype | implementation | calls | % of byte roof, median | eager / it: median | worst | best |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for key in dict.fromkeys((r.op, r.dtype, r.implementation) for r in rows):
        group = [r for r in rows if (r.op, r.dtype, r.implementation) == key and r.microseconds]
        ratios = sorted(
            eager[r.op, r.label, r.dtype] / r.microseconds for r in group if (r.op, r.label, r.dtype) in eager
        )
        if not ratios:
            lines.append(f"| {' | '.join(key)} | 0 | - | - | - | - |")
            continue
        roof = statistics.median(r.percent_of_roof for r in group)
        lines.append(f"| {' | '.join(key)} | {len(group)} | {roof:.0f} | {statistics.median(ratios):.2f} | "
                     f"{ratios[0]:.2f} | {ratios[-1]:.2f} |")  # fmt: skip
    return "\n".join(lines)


def kernel_table(rows: Sequence[KernelRow]) -> str:
    lines = ["| op | call | dtype | implementation | us | quartiles | GB/s | % of byte roof | error | |",
             "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in rows:
        head = f"| {r.op} | {r.label} | {r.dtype} | {r.implementation} |"
        error = "-" if r.error is None else f"{r.error:.1e}"
        if r.microseconds is None:
            lines.append(f"{head} - | - | - | - | {error} | {_cell(r.note)} |")
        else:
            low, high = r.quartiles
            lines.append(f"{head} {r.microseconds:.1f} | {low:.1f} to {high:.1f} | {r.gigabytes_per_second:.0f} | "
                         f"{r.percent_of_roof:.0f} | {error} | {_cell(r.note)} |")
    return "\n".join(lines)


def net_table(rows: Sequence[NetRow]) -> str:
    lines = ["| network | batch | dtype | implementation | graph | ms | quartiles | images/s | % of byte roof | error | |",
             "|---|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for r in rows:
        head = f"| {r.net} | {r.batch} | {r.dtype} | {r.implementation} | {'yes' if r.graph else 'no'} |"
        error = "-" if r.error is None else f"{r.error:.1e}"
        if r.milliseconds is None:
            lines.append(f"{head} - | - | - | - | {error} | {_cell(r.note)} |")
        else:
            low, high = r.quartiles
            roof = "-" if r.percent_of_roof is None else f"{r.percent_of_roof:.0f}"
            time = f"{r.milliseconds:.3f} | {low:.3f} to {high:.3f}"
            lines.append(f"{head} {time} | {r.images_per_second:.0f} | {roof} | {error} | {_cell(r.note)} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "/")


def plots(run: Run, base: Path) -> list[Path]:
    """Percent of the roof by op and implementation; images a second against the batch, one panel a network."""
    timed_kernels = [row for row in run.kernels if row.microseconds]
    timed_nets = [row for row in run.nets if row.milliseconds]
    figures = {}
    if timed_kernels:
        figures["_kernels.png"] = _kernel_bars(timed_kernels)
    if timed_nets:
        figures["_nets.png"] = _net_lines(timed_nets)
    written = []
    for suffix, figure in figures.items():
        figure.suptitle(run.machine["gpu"])
        written.append(base.with_name(base.name + suffix))
        figure.savefig(written[-1], dpi=120)
    return written


def _kernel_bars(rows: Sequence[KernelRow]) -> Any:
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row.implementation for row in rows))
    ops = list(dict.fromkeys((row.op, row.dtype) for row in rows))
    figure = Figure((4 + 1.2 * len(ops), 5), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        heights = []
        for op in ops:
            group = [r.percent_of_roof for r in rows if (r.op, r.dtype) == op and r.implementation == name]
            heights.append(statistics.median(group) if group else 0.0)
        axes.bar([j + (i - (len(names) - 1) / 2) * width for j in range(len(ops))], heights, width, label=name)
    axes.set_xticks(range(len(ops)), [" ".join(op) for op in ops], rotation=30, ha="right")
    axes.set_ylabel("% of the byte roof, median of the calls")
    figure.legend(loc="outside right upper")
    return figure


def _net_lines(rows: Sequence[NetRow]) -> Any:
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((row.net, row.dtype) for row in rows))
    names = list(dict.fromkeys(row.implementation for row in rows))
    columns = min(len(panels), 3)
    height = -(-len(panels) // columns)
    figure = Figure((5 * columns, 4 * height), layout="constrained")
    grid = figure.subplots(height, columns, squeeze=False)
    for axes, panel in zip(grid.flat, panels):
        group = [row for row in rows if (row.net, row.dtype) == panel]
        for name, graph in dict.fromkeys((row.implementation, row.graph) for row in group):
            line = sorted((r.batch, r.images_per_second) for r in group if (r.implementation, r.graph) == (name, graph))
            style = {"color": f"C{names.index(name)}", "linestyle": "-" if graph else "--", "marker": "o"}
            axes.loglog(*zip(*line), label=f"{name}, graph" if graph else name, **style)
        batches = sorted({row.batch for row in group})
        axes.set_xticks(batches, [str(batch) for batch in batches], minor=False)
        axes.minorticks_off()
        axes.set(title=" ".join(panel), xlabel="batch", ylabel="images/s")
        axes.legend(fontsize="small")
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    return figure
