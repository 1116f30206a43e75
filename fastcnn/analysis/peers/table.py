# SPDX-License-Identifier: Apache-2.0
"""The rows as a table: for a terminal, as Markdown, as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastcnn.analysis.peers.engines import (
    COMPILE,
    COMPILE_LAST,
    EAGER,
    FASTCNN,
    OPENVINO,
    OPENVINO_STREAMS,
    ORT,
)
from fastcnn.analysis.peers.goals import verdict, wanted
from fastcnn.analysis.peers.measure import Row

# a column's header: the engines of which it shows the faster one
SHOWN = {
    "fastcnn": (FASTCNN,),
    "ONNX Runtime": (ORT,),
    "OpenVINO": (OPENVINO, OPENVINO_STREAMS),
    "torch.compile": (COMPILE_LAST, COMPILE),
    "eager": (EAGER,),
}
COLUMNS = (
    "model", "batch", "threads", *SHOWN, "fastest peer", "ratio", "goal", "GFLOP/s", "% of peak", "peer's %", "error",
    "OpenVINO's error",
)  # fmt: skip
LEGEND = (
    "Milliseconds a batch: median (quartiles; minimum). ratio = the fastest peer's median over ours. GFLOP/s and % of "
    "the measured multiply-add peak count two operations for each multiply-add of the definition; peer's % is the "
    "fastest peer's. OpenVINO and torch.compile: the faster of their forms. error: the largest one against the model "
    "in fp64, over the largest value."
)  # fmt: skip


def cells(row: Row) -> tuple[str, ...]:
    """One for each of :data:`COLUMNS`."""
    peer = row.fastest_peer
    ratio = "-" if row.ratio() is None else f"{row.ratio():.2f}{' (noisy)' if row.noisy else ''}"
    return (
        row.model,
        str(row.batch),
        str(row.threads),
        *(_time(row, labels) for labels in SHOWN.values()),
        peer or "-",
        ratio,
        verdict(row),
        f"{row.gflops(FASTCNN):.0f}" if FASTCNN in row.milliseconds else "-",
        _percent(row, FASTCNN),
        _percent(row, peer),
        _error(row, FASTCNN),
        _error(row, OPENVINO),
    )


def faster(row: Row, labels: Sequence[str]) -> str | None:
    timed = [label for label in labels if label in row.milliseconds]
    return min(timed, key=row.milliseconds.__getitem__, default=None)


def _time(row: Row, labels: Sequence[str]) -> str:
    label = faster(row, labels)
    if label is None:
        return "-"
    low, high = row.quartiles[label]
    return f"{row.milliseconds[label]:.2f} ({low:.2f}-{high:.2f}; {row.minimum[label]:.2f})"


def _percent(row: Row, label: str | None) -> str:
    # of a peak that is fp32's
    return f"{row.percent_of_peak(label):.0f}" if row.dtype == "float32" and label in row.milliseconds else "-"


def _error(row: Row, label: str) -> str:
    return f"{row.errors[label]:.1e}" if label in row.errors else "-"


def markdown(rows: Sequence[Row]) -> str:
    """A line a row, then the goals and what was not timed."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    lines += [f"| {' | '.join(cells(row))} |" for row in sorted(rows, key=_order)]
    return "\n".join([*lines, "", LEGEND, "", *notes(rows)])


def _order(row: Row) -> tuple:
    return row.dtype, row.batch, row.threads, -(wanted(row) or 0.0), row.model


def notes(rows: Sequence[Row]) -> list[str]:
    """What a reader must not overlook: missed goals by batch, losses, engines without a time."""
    lines = []
    for key in sorted({(row.dtype, row.batch, row.threads) for row in rows}):
        group = [row for row in rows if (row.dtype, row.batch, row.threads) == key]
        judged = [row for row in group if wanted(row) is not None]
        missed = [row for row in judged if ": met" not in verdict(row)]
        lost = [row for row in group if (row.ratio() or 1.0) < 1.0]
        goals = f"goals met by {len(judged) - len(missed)} of {len(judged)}, missed: {_names(missed)}. "
        lines.append(
            f"{key[0]}, batch {key[1]}, {key[2]} threads: {goals if judged else ''}Slower than the fastest peer: "
            f"{_names(lost)}."
        )
    for threads in sorted({row.threads for row in rows if row.dtype == "float32"}):
        peaks = [(row.peak_gflops, row.peak_how) for row in rows if (row.dtype, row.threads) == ("float32", threads)]
        low, high = min(peaks), max(peaks)
        span = f"{low[0]:.0f} to {high[0]:.0f}" if f"{low[0]:.0f}" != f"{high[0]:.0f}" else f"{high[0]:.0f}"
        lines.append(f"Peak of {threads} threads, measured beside each row: {span} GFLOP/s, {high[1]}.")
    for row in rows:
        if row.dtype == "bfloat16" and row.errors:
            errors = ", ".join(f"{label} {error:.1e}" for label, error in row.errors.items())
            lines.append(f"Errors in bfloat16 on {row.model} at batch {row.batch}: {errors}.")
    absent: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for label, why in row.notes.items():
            absent.setdefault((label, why), []).append(f"{row.model} at batch {row.batch}")
    lines += [f"Not timed: {label} on {', '.join(where)}: {why}." for (label, why), where in absent.items()]
    return lines


def _names(rows: Sequence[Row]) -> str:
    return ", ".join(row.model if row.ratio() is None else f"{row.model} {row.ratio():.2f}" for row in rows) or "none"


def draw(rows: Sequence[Row]) -> Any:
    """A group of bars a row, a bar an engine: speed over the fastest peer's. A figure of matplotlib's."""
    from matplotlib.figure import Figure

    figure = Figure((9.0, max(3.0, 1.8 + 0.9 * len(rows))), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(SHOWN)
    for place, (name, labels) in enumerate(SHOWN.items()):
        timed = [(i, faster(row, labels)) for i, row in enumerate(rows)]
        bars = [(i, row_speed(rows[i], label), rows[i].milliseconds[label]) for i, label in timed if label]
        found = axes.barh([i + (place - 2) * height for i, _, _ in bars], [speed for _, speed, _ in bars], height,
                          label=name, color=f"C{place}")  # fmt: skip
        axes.bar_label(found, [f"{time:.2f} ms" for _, _, time in bars], padding=3, fontsize="x-small")
    axes.axvline(1.0, color="0.4", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [f"{row.model}\nbatch {row.batch}" for row in rows], fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel("speed over the fastest peer's; milliseconds a batch, median, beside the bar")
    axes.margins(x=0.12)
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=len(SHOWN), fontsize="small")
    first = rows[0]
    axes.set_title(f"{first.dtype}, {first.threads} threads, one interleaved run")
    return figure


def row_speed(row: Row, label: str) -> float:
    """Over the fastest peer's; over ours where no peer was timed."""
    return row.milliseconds[row.fastest_peer or FASTCNN] / row.milliseconds[label]
