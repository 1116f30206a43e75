# SPDX-License-Identifier: Apache-2.0
"""``fastcnn classify``: the most probable ImageNet classes of pictures."""

import argparse
import math
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fastcnn.cli.console import (
    UsageError,
    load_model,
    model_metadata,
    positive_int,
    print_json,
    print_table,
    progress,
    set_threads,
    warn,
)


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("classify", help="classify pictures", allow_abbrev=False)
    parser.add_argument("images", nargs="+", metavar="IMAGE|FOLDER", help="picture files, or folders searched for them")
    parser.add_argument("--model", required=True, metavar="NAME", help="a name from `fastcnn list`")
    parser.add_argument(
        "--weights", metavar="PATH", help="a state_dict (.safetensors, .pth); default: the published weights"
    )
    parser.add_argument("--topk", type=positive_int, default=5, metavar="K", help="classes per picture (default: 5)")
    parser.add_argument(
        "--batch", type=positive_int, default=1, metavar="N", help="pictures per forward pass (default: 1)"
    )
    parser.add_argument("--threads", type=positive_int, metavar="N", help="threads (default: torch's)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import warnings

    warnings.filterwarnings("ignore", module=r"PIL\.")  # the person gets one line per bad file, not Pillow's
    config = model_metadata(args.model)
    threads = set_threads(args.threads)
    model = load_model(args.model, args.weights)
    files, errors = collect(args.images)
    pictures, seconds = classify(model, config, files, errors, args.topk, args.batch)
    done = max(len(pictures), 1)
    summary = {
        "model": args.model,
        "weights": args.weights or "published",
        "threads": threads,
        "batch": args.batch,
        "model_ms_per_picture": seconds["model"] / done * 1e3,
        "loading_ms_per_picture": seconds["loading"] / done * 1e3,
    }
    if args.json:
        print_json({**summary, "pictures": pictures, "errors": errors})
    elif pictures:
        _print_pictures(pictures)
        warn(
            f"{_count(pictures)}, {args.model}: {summary['model_ms_per_picture']:.2f} ms each (batch {args.batch}, "
            f"{threads} threads), {summary['loading_ms_per_picture']:.2f} ms each to load and preprocess"
        )
    if errors and not args.json:
        warn(f"{len(errors)} of {len(pictures) + len(errors)} failed")
    return 1 if errors else 0


def collect(paths: Iterable[str]) -> tuple[list[Path], list[dict[str, str]]]:
    """The files that ``paths`` stand for, and an entry for each path that stands for none."""
    from fastcnn.data import PictureError, find_images

    files: list[Path] = []
    errors: list[dict[str, str]] = []
    for path in paths:
        try:
            files += find_images(path)
        except PictureError as error:
            _report(errors, path, str(error))
    return files, errors


def classify(
    model: Any, config: dict[str, Any], files: Sequence[Path], errors: list[dict[str, str]], topk: int, batch: int
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Classify ``files`` in order; those that fail are appended to ``errors``.

    Returns: one entry per classified picture, and the seconds spent in the model and in loading.
    """
    import torch

    from fastcnn.data import PictureError, class_name, load_image, preprocess, printable

    seconds = {"model": 0.0, "loading": 0.0}
    results: list[dict[str, Any]] = []
    inputs: list[tuple[Path, torch.Tensor]] = []

    @torch.inference_mode()
    def flush() -> None:
        x = torch.stack([tensor for _, tensor in inputs]).contiguous(memory_format=torch.channels_last)
        if not seconds["model"]:
            model(x)  # the first call packs weights and starts threads; it is not the latency that a user sees
        start = time.perf_counter()
        logits = model(x).float()
        seconds["model"] += time.perf_counter() - start
        if topk > logits.shape[1]:
            raise UsageError(f"--topk must be at most {logits.shape[1]}, the model's classes, got {topk}")
        values, classes = logits.softmax(1).topk(topk)
        for (path, _), p, c in zip(inputs, values.tolist(), classes.tolist(), strict=True):
            if not all(map(math.isfinite, p)):
                line = f"{printable(path)}: the model's output is not finite; are these the right weights?"
                _report(errors, path, line)
                continue
            top = [
                {"class": index, "name": class_name(index), "probability": value}
                for index, value in zip(c, p, strict=True)
            ]
            results.append({"path": str(path), "top": top})
        inputs.clear()

    for path in progress(files, "Classifying"):
        start = time.perf_counter()
        try:
            inputs.append((path, preprocess(load_image(path), config)))
        except PictureError as error:
            _report(errors, path, str(error))
        except ValueError as error:
            _report(errors, path, f"{printable(path)}: {error}")
        seconds["loading"] += time.perf_counter() - start
        if len(inputs) == batch:
            flush()
    if inputs:
        flush()
    return results, seconds


def _count(pictures: Sequence[Any]) -> str:
    return f"{len(pictures)} picture{'' if len(pictures) == 1 else 's'}"


def _report(errors: list[dict[str, str]], path: str | Path, line: str) -> None:
    errors.append({"path": str(path), "error": line})
    warn(line)


def _print_pictures(pictures: list[dict[str, Any]]) -> None:
    from fastcnn.data import printable

    everywhere = not sys.stdout.isatty()  # a program that reads lines wants the file on each; a person, once
    rows = [
        (
            printable(picture["path"]) if everywhere or rank == 0 else "",
            top["class"],
            top["name"],
            f"{top['probability']:.4f}",
        )
        for picture in pictures
        for rank, top in enumerate(picture["top"])
    ]
    print_table("Top classes", ("picture", "class", "name", "probability"), rows, right=("class", "probability"))
