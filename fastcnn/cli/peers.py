# SPDX-License-Identifier: Apache-2.0
"""``fastcnn bench --peers``: accelerate() beside the runtimes that people deploy CNNs on."""

import argparse
from typing import TYPE_CHECKING

from fastcnn.cli.console import CommandError, UsageError, note, print_json, print_table, quiet, save, set_threads, warn

if TYPE_CHECKING:
    from fastcnn.analysis.peers import Row


def run(args: argparse.Namespace) -> int:
    import torch

    from fastcnn.analysis.peers import compare, missing, original
    from fastcnn.analysis.peers.engines import FASTCNN
    from fastcnn.analysis.peers.measure import pixels
    from fastcnn.reference import MissingReference, pip_command

    if args.dtype == "float16":
        raise UsageError("--peers: --dtype must be float32 or bfloat16, got float16")
    if args.memory_format is not None:
        raise UsageError("--peers: every engine is given NCHW and chooses its own layout: leave --memory-format out")
    set_threads(args.threads)
    absent = missing()
    if absent:
        warn(f"fastcnn bench: not here: {', '.join(absent)}; the others run. {pip_command('fastcnn[bench]')}")
    rows: list[Row] = []
    for name in args.models:
        try:
            model, size = original(name)
        except MissingReference as error:
            raise CommandError(str(error)) from error
        for batch in args.batch:
            note(f"{name}, batch {batch} ...")
            with quiet():
                row = compare(name, model, pixels(batch, size), dtype=getattr(torch, args.dtype), rounds=args.rounds)
            rows.append(row)
            for label, why in row.notes.items():
                if not why.startswith("needs "):  # said once, above
                    warn(f"fastcnn bench: {name}, batch {batch}: {label}: {why}")
    if args.json:
        print_json({"results": [row.to_dict() for row in rows]})
    else:
        print_rows(rows)
    timed = [row for row in rows if row.milliseconds]
    if args.plot and timed:
        from fastcnn.analysis.peers.table import draw

        save(draw(timed), args.plot)
    return 0 if all(FASTCNN in row.milliseconds for row in rows) else 1


def print_rows(rows: "list[Row]") -> None:
    """A line an engine, the quickest of each model and batch first, then the goals and what was not timed."""
    from fastcnn.analysis.peers.engines import FASTCNN
    from fastcnn.analysis.peers.table import notes

    columns = (
        "model", "batch", "engine", "ms", "quartiles", "minimum", "x fastcnn's", "GFLOP/s", "% of peak", "error", "",
    )  # fmt: skip
    body = []
    for row in rows:
        for label in sorted(row.milliseconds, key=row.milliseconds.__getitem__):
            low, high = row.quartiles[label]
            ours = row.milliseconds.get(FASTCNN)
            body.append((
                row.model, row.batch, label, f"{row.milliseconds[label]:.2f}", f"{low:.2f}-{high:.2f}",
                f"{row.minimum[label]:.2f}", f"{row.milliseconds[label] / ours:.2f}" if ours else "",
                f"{row.gflops(label):.0f}", f"{row.percent_of_peak(label):.0f}" if row.dtype == "float32" else "",
                f"{row.errors[label]:.1e}", "noisy: other programs ran" if row.noisy else "",
            ))  # fmt: skip
    first = rows[0]
    title = (
        f"Forward, eval, {first.dtype}, {first.threads} threads: milliseconds a batch, median of up to {first.rounds} "
        f"interleaved rounds; % of the {max(row.peak_gflops for row in rows):.0f} GFLOP/s of {first.peak_how}"
    )
    print_table(title, columns, body, right=("batch", *columns[3:-1]))
    for line in notes(rows):
        print(line)
