# SPDX-License-Identifier: Apache-2.0
"""``fastcnn demo``: labelled pictures, published weights, the reference packages beside ours, the speed table.

The pictures are those of the foolbox wheel, ``imagenet_<number>_<class>.jpg``, read where pip put them: they are not
ours to copy.
"""

import argparse
import importlib.metadata
from pathlib import Path
from typing import Any

from fastcnn.cli.bench import print_results
from fastcnn.cli.console import (
    CommandError,
    load_model,
    model_metadata,
    note,
    positive_int,
    print_json,
    print_table,
    set_threads,
    warn,
)

MODELS = ("mobilenet_v2", "efficientnet_lite0")
PICTURES, HITS_WANTED, LOGITS_WITHIN = 20, 18, 1e-4
FOOLBOX = "foolbox==3.3.4"


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "demo", help="classify 20 labelled pictures, compare with torchvision and timm, time", allow_abbrev=False
    )
    parser.add_argument("--threads", type=positive_int, metavar="N", help="threads (default: torch's)")
    parser.add_argument("--rounds", type=positive_int, default=15, metavar="N", help="timing rounds (default: 15)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def labelled_pictures() -> list[tuple[Path, int]]:
    """The pictures of the installed foolbox with the class in their names."""
    from fastcnn.reference import pip_command

    try:
        files = importlib.metadata.files("foolbox") or []
    except importlib.metadata.PackageNotFoundError:
        raise CommandError(f"the pictures are missing: {pip_command(FOOLBOX, no_deps=True)}") from None
    paths = sorted(Path(f.locate()) for f in files if f.name.startswith("imagenet_") and f.suffix == ".jpg")
    if len(paths) != PICTURES:
        fix = pip_command("--force-reinstall", FOOLBOX, no_deps=True)
        raise CommandError(f"{PICTURES} pictures wanted, {len(paths)} found in the installed foolbox: {fix}")
    return [(path, int(path.stem.rsplit("_", 1)[1])) for path in paths]


def compare(name: str, pictures: list[tuple[Path, int]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Classify ``pictures`` with ours and with the reference on the same weights and inputs.

    Returns: the totals, and one entry per picture.
    """
    import torch

    from fastcnn.data import class_name, load_image, preprocess
    from fastcnn.reference import MissingReference, reference_model, relative_error

    config = model_metadata(name)
    ours = load_model(name, None)
    try:
        reference = reference_model(config["reference"], **config.get("reference_kwargs", {}))
    except MissingReference as error:
        raise CommandError(str(error)) from error
    reference.load_state_dict(ours.state_dict(), strict=True)
    details = []
    with torch.inference_mode():
        for path, label in pictures:
            x = preprocess(load_image(path), config)[None]
            y, wanted = ours(x.contiguous(memory_format=torch.channels_last)), reference(x)
            top, top_wanted = (logits.topk(5).indices[0].tolist() for logits in (y, wanted))
            details.append(
                {
                    "picture": path.name,
                    "label": label,
                    "label_name": class_name(label),
                    "top5": top,
                    "name": class_name(top[0]),
                    "probability": float(y.softmax(1)[0, top[0]]),
                    "logits_error": relative_error(y, wanted),
                    "same_top5": top == top_wanted,
                }
            )
    totals = {
        "model": name,
        "reference": config["reference"],
        "top1": sum(d["label"] == d["top5"][0] for d in details),
        "top5": sum(d["label"] in d["top5"] for d in details),
        "logits_error": max(d["logits_error"] for d in details),
        "same_top5": sum(d["same_top5"] for d in details),
    }
    return totals, details


def verdict(totals: dict[str, Any]) -> list[str]:
    """What of the demo's promise ``totals`` breaks; empty when nothing."""
    name, broken = totals["model"], []
    if totals["top1"] < HITS_WANTED:
        broken.append(f"{name}: {totals['top1']} of {PICTURES} pictures recognised, at least {HITS_WANTED} wanted")
    if not totals["logits_error"] <= LOGITS_WITHIN:
        broken.append(
            f"{name}: logits differ from {totals['reference']} by {totals['logits_error']:.1e},"
            f" at most {LOGITS_WITHIN:.0e} wanted"
        )
    if totals["same_top5"] != PICTURES:
        broken.append(f"{name}: the top-5 order equals {totals['reference']}'s on {totals['same_top5']} of {PICTURES}")
    return broken


def run(args: argparse.Namespace) -> int:
    import logging

    from fastcnn.benchmark import bench_model
    from fastcnn.reference import WrongOutput

    logging.getLogger("timm").setLevel(logging.ERROR)
    set_threads(args.threads)
    pictures = labelled_pictures()
    totals, details, speed, broken = [], {}, [], []
    for name in MODELS:
        note(f"{name}: classifying ...")
        total, details[name] = compare(name, pictures)
        totals.append(total)
        broken += verdict(total)
    if not args.json:
        _print_pictures(details)
        _print_totals(totals)
    for name in MODELS:
        try:
            note(f"{name}: timing ...")
            speed.append(bench_model(name, rounds=args.rounds, seconds=40.0))
        except WrongOutput as error:
            broken.append(str(error))
    if args.json:
        print_json({"totals": totals, "pictures": details, "speed": [s.to_dict() for s in speed], "broken": broken})
    elif speed:
        print_results(speed)
    for line in broken:
        warn(f"fastcnn demo: {line}")
    return 1 if broken else 0


def _print_pictures(details: dict[str, list[dict[str, Any]]]) -> None:
    def cell(detail: dict[str, Any]) -> str:
        mark = "+" if detail["top5"][0] == detail["label"] else "-"
        return f"{mark} {detail['name']} {detail['probability']:.2f}"

    columns = ("picture", "label", *details)
    by_picture = zip(*details.values(), strict=True)
    rows = [(row[0]["picture"], row[0]["label_name"], *map(cell, row)) for row in by_picture]
    print_table("Labelled pictures (+ recognised, - not)", columns, rows)


def _print_totals(totals: list[dict[str, Any]]) -> None:
    columns = ("model", "top-1", "top-5", "reference, same weights", "largest logit difference", "same top-5 order")
    rows = [
        (
            t["model"],
            f"{t['top1']} of {PICTURES}",
            f"{t['top5']} of {PICTURES}",
            t["reference"],
            f"{t['logits_error']:.1e}",
            f"{t['same_top5']} of {PICTURES}",
        )
        for t in totals
    ]
    print_table("Against the labels and the reference packages", columns, rows, right=columns[1:3] + columns[4:])
