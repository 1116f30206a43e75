# SPDX-License-Identifier: Apache-2.0
"""Time an image of accelerate()'s result over batch sizes, image sizes and threads; all of a model timed in turn."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fastcnn
from fastcnn.analysis.peers import Case
from fastcnn.analysis.peers.engines import FASTCNN
from fastcnn.analysis.peers.measure import Judge, multiply_adds, original, pixels
from fastcnn.benchmark import interleave

MODELS = ("torchvision:mobilenet_v2", "torchvision:efficientnet_b0")
BATCHES = (1, 2, 4, 8, 16, 32, 64)
SIDES = (128, 160, 192, 224, 256, 288, 320, 384, 448)
RISE = 1.10  # of the time an image, over any smaller batch

Shape = tuple[int, int]  # batch, height and width


def measure(
    models: Sequence[str], threads: Sequence[int], rounds: int, seconds: float,
    batches: Sequence[int] = BATCHES, sides: Sequence[int] = SIDES,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    for name in models:
        model, size = original(name)
        for count in threads:
            torch.set_num_threads(count)
            yield from _rows(name, model, [(batch, size[-1]) for batch in batches], rounds, seconds)
            yield from _rows(name, model, [(1, side) for side in sides if side != size[-1]], rounds, seconds)


@torch.inference_mode()
def _rows(
    name: str, model: nn.Module, shapes: Sequence[Shape], rounds: int, seconds: float
) -> Iterator[dict[str, Any]]:
    calls: dict[Shape, Callable[[], Any]] = {}
    errors, macs, modules = {}, {}, {}
    for batch, side in shapes:
        x = pixels(batch, (3, side, side))
        if side not in modules:  # one for all batches
            with torch.inference_mode(False), torch.no_grad():
                modules[side] = fastcnn.accelerate(model, pixels(1, (3, side, side)))
            macs[side] = multiply_adds(model, x)
        with tempfile.TemporaryDirectory() as folder:
            judge = Judge(Case(model, x, Path(folder), torch.get_num_threads()))
        calls[batch, side] = lambda fast=modules[side], x=x: fast(x)
        errors[batch, side] = judge.check(f"batch {batch}, {side} pixels", calls[batch, side]())
    comparison = interleave({str(shape): call for shape, call in calls.items()}, rounds, seconds)
    for batch, side in shapes:
        timing = comparison.timings[str((batch, side))]
        yield {
            "kind": "scaling", "model": name, "batch": batch, "size": [3, side, side], "dtype": "float32",
            "threads": torch.get_num_threads(), "milliseconds": {FASTCNN: timing.median * 1e3},
            "minimum": {FASTCNN: min(timing.rounds) * 1e3}, "errors": {FASTCNN: errors[batch, side]},
            "macs": macs[side], "rounds": len(timing.rounds), "noisy": comparison.noisy,
        }  # fmt: skip


def an_image(row: dict[str, Any]) -> float:
    """Milliseconds, of the quickest round."""
    return row["minimum"][FASTCNN] / row["batch"]


def rise(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> float | None:
    """The time an image over that of the best smaller batch of the same model, size and threads."""
    same = ("model", "size", "threads")
    smaller = [
        an_image(other) for other in rows if other["batch"] < row["batch"] and all(other[k] == row[k] for k in same)
    ]
    return an_image(row) / min(smaller) if smaller else None


def over_one_thread(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> float | None:
    same = ("model", "size", "batch")
    one = [an_image(other) for other in rows if other["threads"] == 1 and all(other[k] == row[k] for k in same)]
    return one[0] / an_image(row) if one and row["threads"] > 1 else None


def table(rows: Sequence[dict[str, Any]]) -> str:
    head = ["model", "threads", "size", "batch", "ms an image, minimum", "over the best smaller batch",
            "faster than 1 thread", "GFLOP/s", "max rel. error"]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    risen = []
    for row in sorted(rows, key=lambda r: (r["model"], r["threads"], r["batch"] == 1, r["size"], r["batch"])):
        up, faster = rise(row, rows), over_one_thread(row, rows)
        if up is not None and up > RISE:
            risen.append(f"{row['model']} with {row['threads']} threads at batch {row['batch']} ({up:.2f})")
        cells = [
            row["model"], row["threads"], row["size"][-1], row["batch"],
            f"{an_image(row):.3f}{' (noisy)' if row['noisy'] else ''}", _ratio(up), _ratio(faster),
            f"{2e-6 * row['macs'] / an_image(row):.0f}", f"{row['errors'][FASTCNN]:.1e}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    goal = f"Goal: the time an image never rises with the batch by more than {100 * RISE - 100:.0f} %. "
    return "\n".join([*lines, "", goal + (f"Missed: {', '.join(risen)}." if risen else "Met.")])


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
