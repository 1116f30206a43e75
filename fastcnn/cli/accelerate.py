# SPDX-License-Identifier: Apache-2.0
"""``fastcnn accelerate``: any CNN on the fused ops, what was done to it, and the result as a file."""

import argparse
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcnn.cli.console import (
    CommandError,
    UsageError,
    note,
    positive_int,
    print_json,
    print_table,
    quiet,
    save,
    set_threads,
)

if TYPE_CHECKING:
    from fastcnn.accelerate import Report
    from fastcnn.accelerate.layers import LayerTime

TIMED = "operators run one by one: for orientation, the sums are larger than a forward"


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "accelerate", help="put a model on the fused ops and report what was done", allow_abbrev=False
    )
    parser.add_argument(
        "model", metavar="MODEL|module:function",
        help="a name of ours, torchvision's or timm's (timm:NAME forces one), or a function that returns a model: "
        "package.module:function, path/to/file.py:function",
    )  # fmt: skip
    parser.add_argument("--batch", type=positive_int, default=1, metavar="N", help="images per step (default: 1)")
    parser.add_argument("--size", type=_size, metavar="H[xW]", help="of the input (default: the model's own, or 224)")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="to compute in (default: the model's own)"
    )
    parser.add_argument("--weights", metavar="PATH", help="a checkpoint (default: random weights)")
    parser.add_argument("--save", metavar="PATH", help="write graph and weights for fastcnn.load")
    parser.add_argument("--onnx", metavar="PATH", help="write an ONNX file of standard operators")
    parser.add_argument("--plot", metavar="PNG", help="draw the time per layer before and after")
    parser.add_argument("--threads", type=positive_int, metavar="N", help="threads of the CPU (default: torch's)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--off", nargs="+", action="extend", default=[], metavar="REWRITE", help="rewrites to leave out, by name"
    )
    parser.set_defaults(run=run)


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text, re.ASCII)
    if not found:
        raise argparse.ArgumentTypeError(f"must be H or HxW, whole numbers from 1 up, got {text!r}")
    return int(found[1]), int(found[2] or found[1])


def run(args: argparse.Namespace) -> int:
    import torch

    import fastcnn.accelerate
    from fastcnn.accelerate.rewrites import check_mapping
    from fastcnn.cli.models import find_model

    _check_files(args.save, args.onnx, args.plot)
    mapping = dict.fromkeys(args.off, False)
    try:
        check_mapping(mapping)
    except ValueError as error:
        raise UsageError(f"--off: {_bare(error)}") from error
    set_threads(args.threads)
    model, size, notes = find_model(args.model, args.weights, args.size)
    shape = [args.batch, *size]
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(shape, generator=generator).to(weight.device, weight.dtype)
    dtype = getattr(torch, args.dtype) if args.dtype else None
    try:
        with quiet():
            fast = fastcnn.accelerate.accelerate(model, example, dtype=dtype, strict=False, mapping=mapping)
    except (TypeError, ValueError) as error:
        raise CommandError(_bare(error)) from error
    report = fast.report
    report.notes[:0] = notes
    rows = []
    if args.plot and report.accelerated:
        from fastcnn.accelerate.layers import layer_times

        note("timing layer by layer")
        rows = layer_times(model, fast, example)
    if args.json:
        document = _plain(report.to_dict())
        print_json(document | {"layers": [row._asdict() for row in rows]} if args.plot else document)
    elif report.errors:
        print_report(report, shape, rows)
    if not report.accelerated:
        raise CommandError(_bare(report.refused))
    _write(args, model, fast, example, rows)
    return 0


def _check_files(*paths: str | None) -> None:
    """Before the work, which may take minutes."""
    for path in filter(None, paths):
        if not Path(path).absolute().parent.is_dir():
            raise CommandError(f"{path!r} cannot be written: no folder {str(Path(path).parent)!r}")
        if Path(path).is_dir():
            raise CommandError(f"{path!r} cannot be written: a folder")


def _bare(error: object) -> str:
    return str(error).removeprefix("accelerate: ")


def _plain(value: Any) -> Any:
    """``value`` with None for NaN and infinity, which are no JSON."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(args: argparse.Namespace, model: Any, fast: Any, example: Any, rows: "list[LayerTime]") -> None:
    if args.plot:
        save(draw(rows, f"{args.model}, batch {args.batch}"), args.plot)
    if args.save:
        try:
            fast.save(args.save)
        except (OSError, ValueError) as error:
            raise CommandError(f"{args.save!r} cannot be written: {error}") from error
        note(f"written: {args.save}")
    if args.onnx:
        try:
            from fastcnn.onnx import export

            export(fast, example, args.onnx, dynamic_batch=fast.rules[0].shape[0] is None)
        except Exception as error:  # of three packages, for an operator that ONNX lacks, a file, a missing package
            kind = "" if isinstance(error, (ImportError, OSError)) else f"{type(error).__name__}: "
            raise CommandError(f"{args.onnx!r} cannot be written: {kind}{error}") from error
        note(f"written: {args.onnx}")


def print_report(report: "Report", shape: Sequence[int], rows: "Sequence[LayerTime]" = ()) -> None:
    """A table for each part of the report that has something to say."""
    state = f"{report.dtype}, TF32 {'on' if report.tf32 else 'off'}, {report.threads} threads"
    verdict = "accelerated" if report.accelerated else f"returned as it is: {report.refused}"
    title = f"{report.model}, input {'x'.join(map(str, shape))}, {state}: {verdict}"
    print_table(title, ("figure", "before", "after", ""), _figures(report), right=("before", "after"))
    columns = ("compared on", "absolute", "relative", "same top-1", "against fp64", "the original's", "allowed")
    print_table("Differences to the original", columns, _differences(report), right=columns[1:])
    fused = [(name, count) for name, count in report.fused.items() if count]
    if fused:
        print_table("Rewritten", ("pattern", "count"), fused, right=("count",))
    runs = [(name, row["count"], row["backend"]) for name, row in report.operators.items()]
    print_table("Runs", ("operator", "count", "backend"), runs, right=("count",))
    if report.left:
        left = [(each.operator, each.count, _first(each.layers), each.reason) for each in report.left]
        print_table("Left", ("operator", "count", "at", "because"), left, right=("count",))
    if rows:
        print_layers(rows)
    for line in report.notes:
        print(f"note: {line}")


def _figures(report: "Report") -> list[tuple]:
    rows: list[tuple] = []
    times = report.milliseconds
    if times:
        rows.append(("time, ms", f"{times['before']:.2f}", f"{times['after']:.2f}", f"{report.speedup:.2f}x"))
    if report.bytes:
        megabytes = {when: f"{report.bytes[when] / 1e6:.1f}" for when in ("before", "after")}
        rows.append(("MB an image, counted", *megabytes.values(), ""))
        rows.append(("launches", report.launches["before"], report.launches["after"], ""))
    return rows


def _differences(report: "Report") -> list[tuple]:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.1e}"

    return [
        (name, number(row["absolute"]), number(row["relative"]), f"{100 * row['top1']:.0f} %",
         *(number(row[key]) for key in ("fp64", "original_fp64", "allowed")))
        for name, row in report.errors.items()
    ]  # fmt: skip


def _first(layers: Sequence[str]) -> str:
    named = [layer for layer in layers if layer]
    return f"{named[0]}{', ...' if len(layers) > 1 else ''}" if named else ""


def print_layers(rows: "Sequence[LayerTime]") -> None:
    cells = [
        (row.layer, f"{row.before:.3f}", f"{row.after:.3f}",
         ", ".join(f"{count} {name}" if count > 1 else name for name, count in row.operators.items()))
        for row in rows
    ]  # fmt: skip
    sums = [sum(getattr(row, when) for row in rows) for when in ("before", "after")]
    cells.append(("in all", *(f"{each:.3f}" for each in sums), ""))
    columns = ("layer", "before", "after", "runs now")
    print_table(f"Milliseconds per layer, {TIMED}", columns, cells, right=columns[1:3])


def draw(rows: "Sequence[LayerTime]", title: str) -> Any:
    """Two bars a layer, the first layer on top: milliseconds before and after."""
    from matplotlib.figure import Figure

    figure = Figure((9.0, max(3.0, 1.6 + 0.3 * len(rows))), layout="constrained")
    axes = figure.subplots()
    sums = {}
    for place, when in enumerate(("before", "after")):
        widths = [getattr(row, when) for row in rows]
        sums[when] = sum(widths)
        heights = [i + 0.4 * (place - 0.5) for i in range(len(rows))]
        axes.barh(heights, widths, height=0.4, color=f"C{place}", label=f"{when}: {sums[when]:.2f} ms")
    axes.set_yticks(range(len(rows)), [row.layer for row in rows], fontsize="small")
    axes.invert_yaxis()
    axes.set_xlabel("ms, operators run one by one")
    axes.grid(axis="x", alpha=0.3)
    axes.margins(y=0.01)
    axes.legend()
    axes.set_title(f"{title}: {sums['before']:.2f} ms before, {sums['after']:.2f} ms after")
    return figure
