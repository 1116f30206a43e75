# SPDX-License-Identifier: Apache-2.0
"""``fastcnn bench``: models against their reference packages, equal outputs asserted before anything is timed."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastcnn.cli.console import (
    UsageError,
    model_metadata,
    note,
    positive_int,
    print_json,
    print_table,
    set_threads,
    warn,
)

if TYPE_CHECKING:
    from fastcnn.benchmark import ModelResult


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("bench", help="time models against their reference packages", allow_abbrev=False)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="names, or patterns such as 'mobilenet*'")
    parser.add_argument(
        "--batch", type=positive_int, nargs="+", default=[1], metavar="N", help="batch sizes (default: 1)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--threads", type=positive_int, metavar="N", help="threads of all (default: torch's)")
    parser.add_argument(
        "--memory-format",
        choices=("contiguous", "channels_last"),
        help="fastcnn's; the reference is timed in both (default: channels_last)",
    )
    parser.add_argument("--rounds", type=positive_int, default=15, metavar="N", help="undisturbed rounds (default: 15)")
    parser.add_argument(
        "--layers", action="store_true",
        help="accelerate() step by step: time, GFLOP/s, GB/s, percent of the peak; MODEL as `fastcnn accelerate` takes it",
    )  # fmt: skip
    parser.add_argument(
        "--peers", action="store_true",
        help="accelerate() beside ONNX Runtime, OpenVINO and torch.compile; MODEL as `fastcnn accelerate` takes it",
    )  # fmt: skip
    parser.add_argument("--plot", metavar="FILE", help="with --layers: draw the time of each step; with --peers: the speeds")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.layers and args.peers:
        raise UsageError("--layers and --peers are two measurements: give one")
    if args.layers:
        from fastcnn.cli import layers

        return layers.run(args)
    if args.peers:
        from fastcnn.cli import peers

        return peers.run(args)
    if args.plot:
        raise UsageError("--plot draws what --layers or --peers measures: give one of them")
    import torch

    from fastcnn.benchmark import bench_model
    from fastcnn.reference import MissingReference, WrongOutput

    names = expand(args.models)
    set_threads(args.threads)
    layout = torch.contiguous_format if args.memory_format == "contiguous" else torch.channels_last
    results: list[ModelResult] = []
    failures: list[dict[str, Any]] = []
    for name in names:
        for batch in args.batch:
            try:
                note(f"{name}, batch {batch} ...")
                results.append(bench_model(name, batch, getattr(torch, args.dtype), layout, args.rounds))
            except (WrongOutput, MissingReference) as error:
                failures.append({"model": name, "batch": batch, "error": str(error)})
                warn(f"fastcnn bench: {error}")
    if args.json:
        print_json({"results": [result.to_dict() for result in results], "failures": failures})
    elif results:
        print_results(results)
    return 1 if failures else 0


def expand(patterns: Sequence[str]) -> list[str]:
    """The models that names and patterns stand for, each once, in order."""
    import fastcnn

    names: dict[str, None] = {}
    for pattern in patterns:
        if not any(c in pattern for c in "*?["):
            model_metadata(pattern)
            names[pattern] = None
            continue
        matches = fastcnn.list_models(pattern)
        if not matches:
            raise UsageError(f"no model matches {pattern!r}; `fastcnn list` shows them all")
        names.update(dict.fromkeys(matches))
    return list(names)


def print_results(results: Sequence["ModelResult"]) -> None:
    """The speed table: one row per model and batch."""
    from fastcnn.benchmark import EAGER_CHANNELS_LAST, EAGER_NCHW, FASTCNN

    def cell(result: "ModelResult", label: str) -> str:
        low, high = result.quartiles[label]
        return f"{result.milliseconds[label]:.2f} [{low:.2f}, {high:.2f}]"

    columns = (
        "model", "batch", "torch NCHW", "torch channels_last", "fastcnn", "x NCHW", "x channels_last", "max error", "",
    )  # fmt: skip
    rows = [
        (
            r.model,
            r.batch,
            cell(r, EAGER_NCHW),
            cell(r, EAGER_CHANNELS_LAST),
            cell(r, FASTCNN),
            f"{r.speedup[EAGER_NCHW]:.2f}",
            f"{r.speedup[EAGER_CHANNELS_LAST]:.2f}",
            f"{r.error:.1e}",
            "noisy: other programs ran" if r.noisy else "",
        )
        for r in results
    ]
    first = results[0]
    title = (
        f"Forward, eval, {first.dtype}, fastcnn in {first.memory_format}, {first.threads} threads: milliseconds, median"
        f" [quartiles] of {first.rounds} interleaved rounds; x = times faster than torch eager"
    )
    print_table(title, columns, rows, right=columns[1:-1])
