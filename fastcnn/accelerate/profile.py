# SPDX-License-Identifier: Apache-2.0
"""Where the time of an accelerated model goes: every step of its plans and every operator beside them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from ..analysis import machine
from .clock import Timed, measure

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("step", "layer", "ms", "share", "GFLOP/s", "GB/s", "% of peak")
_MOST_BARS = 80


@dataclass
class Step:
    """One step of a plan, or an operator.

    Attributes:
        kind: of the step, or the operator's name.
        layer: module of the original, or the node where that is not known.
        plan: number of the plan; None for an operator that runs by itself.
        milliseconds: median over the calls; ``share`` of the sum of all.
        gflops: multiply-adds counted twice; None where their number is not known or zero.
        gigabytes: a second, of the maps and weights that it reads and writes.
        percent: of what this machine can: the time of the multiply-adds at the peak of its units, or of the bytes at the
            rate of its best copy of so many, whichever is longer, over the time taken. None but on a CPU in float32.
    """

    kind: str
    layer: str
    plan: int | None
    milliseconds: float
    share: float
    gflops: float | None
    gigabytes: float
    percent: float | None

    def cells(self) -> tuple[str, ...]:
        """As the table has it."""

        def number(value: float | None) -> str:
            return "" if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"

        return (self.kind, self.layer, f"{self.milliseconds:.3f}", f"{100 * self.share:.1f} %", number(self.gflops),
                number(self.gigabytes), number(self.percent))  # fmt: skip


@dataclass
class Profile:
    """``print`` it, on a terminal with rich in colours by ``rich.print``; or take :meth:`to_dict` or :meth:`plot`.

    Attributes:
        model: class of the original.
        shapes: of the inputs.
        device, dtype, threads, calls: the state all this was found in.
        peak_gflops, peak_gigabytes: of the machine, the latter by bytes at a time; None and empty but on a CPU in float32.
        peak_how: what the former was measured with.
        steps: in the order in which they run.
    """

    model: str
    shapes: list[list[int]]
    device: str
    dtype: str
    threads: int
    calls: int
    peak_gflops: float | None = None
    peak_how: str = ""
    peak_gigabytes: dict[int, float] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)

    @property
    def milliseconds(self) -> float:
        """The sum of the steps."""
        return sum(step.milliseconds for step in self.steps)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return asdict(self) | {"milliseconds": self.milliseconds}

    def title(self) -> str:
        inputs = ", ".join("x".join(map(str, shape)) for shape in self.shapes)
        state = f"{self.dtype} on {self.device}, {self.threads} threads"
        return f"{self.model}, input {inputs}, {state}: {self.milliseconds:.2f} ms in {len(self.steps)} steps, medians of {self.calls} calls"

    def rows(self) -> list[tuple[str, ...]]:
        """A row of ``COLUMNS`` for each step."""
        return [step.cells() for step in self.steps]

    def __str__(self) -> str:
        table = [COLUMNS, *self.rows()]
        widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS))]
        pad = [str.ljust] * 2 + [str.rjust] * (len(COLUMNS) - 2)
        lines = ["  ".join(f(cell, w) for f, cell, w in zip(pad, row, widths, strict=True)).rstrip() for row in table]
        return "\n".join([self.title(), *lines])

    def __rich__(self) -> Table:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(self.title()), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for i, name in enumerate(COLUMNS):
            table.add_column(Text(name), justify="right" if i > 1 else "left", overflow="fold")
        for row in self.rows():
            table.add_row(*map(Text, row))
        return table

    def figure(self) -> Any:
        """A bar a step, the first on top, a colour for each kind; of many steps the longest."""
        from matplotlib.figure import Figure

        shown = sorted(self.steps, key=lambda step: -step.milliseconds)[:_MOST_BARS]
        shown = [step for step in self.steps if any(step is each for each in shown)]
        figure = Figure((9.0, max(3.0, 1.6 + 0.22 * len(shown))), layout="constrained")
        axes = figure.subplots()
        for i, kind in enumerate(dict.fromkeys(step.kind for step in shown)):
            places = [place for place, step in enumerate(shown) if step.kind == kind]
            total = sum(shown[place].milliseconds for place in places)
            bars = axes.barh(places, [shown[place].milliseconds for place in places], color=f"C{i % 10}", hatch="/" * (i // 10),
                             label=f"{kind}: {total:.2f} ms")  # fmt: skip
            percents = [shown[place].percent for place in places]
            axes.bar_label(bars, ["" if p is None else f"{p:.0f} %" for p in percents], padding=2, fontsize="x-small")
        axes.set_yticks(range(len(shown)), [step.layer for step in shown], fontsize="x-small")
        axes.invert_yaxis()
        axes.set_xlabel("ms; beside the bar: percent of this machine's peak")
        axes.grid(axis="x", alpha=0.3)
        axes.margins(x=0.08, y=0.01)
        axes.legend(fontsize="small")
        axes.set_title(self.title(), fontsize="small", wrap=True)
        return figure

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`figure` to a file whose ending says the format (png, svg, pdf). Needs matplotlib."""
        self.figure().savefig(path, dpi=120)


def profile(model: str, program: fx.GraphModule, inputs: Sequence[Tensor], calls: int) -> Profile:
    """What ``program`` does on ``inputs``.

    Raises: ValueError where ``calls`` is no whole number from 1 up.
    """
    if isinstance(calls, bool) or not isinstance(calls, int) or calls < 1:
        raise ValueError(f"profile: calls must be a whole number from 1 up, got {calls!r}")
    timed = measure(program, tuple(inputs), calls)
    device = inputs[0].device
    dtype = next((x.dtype for x in inputs if x.is_floating_point()), inputs[0].dtype)
    found = Profile(model, [list(x.shape) for x in inputs], str(device), str(dtype).removeprefix("torch."),
                    torch.get_num_threads(), calls)  # fmt: skip
    known = device.type == "cpu" and dtype == torch.float32
    if known:
        from ..analysis.peers.peak import fma_peak

        found.peak_gflops, found.peak_how = fma_peak(found.threads)
        found.peak_gigabytes = {size: rate / 1e9 for size, rate in machine.copy_bandwidth().items()}
    total = sum(each.milliseconds for each in timed)
    found.steps = [_step(each, total, found.peak_gflops) for each in timed]
    return found


def _step(timed: Timed, total: float, peak: float | None) -> Step:
    seconds = max(timed.milliseconds, 1e-6) / 1e3
    percent = None if peak is None else 100 * machine.roof_seconds(timed.bytes, timed.macs, 1e9 * peak) / seconds
    gflops = 2e-9 * timed.macs / seconds if timed.macs else None
    share = timed.milliseconds / total if total else 0.0
    return Step(
        timed.kind, timed.layer, timed.plan, timed.milliseconds, share, gflops, 1e-9 * timed.bytes / seconds, percent
    )
