# SPDX-License-Identifier: Apache-2.0
"""``fastcnn list``: the models by name."""

import argparse
from typing import Any

from fastcnn.cli.console import UsageError, print_json, print_table


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("list", help="list the models", allow_abbrev=False)
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern, for example 'mobilenet*'")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def describe(name: str) -> dict[str, Any]:
    """What the table shows of one model."""
    import fastcnn.models

    data = fastcnn.models.metadata(name)
    return {
        "name": name,
        "parameters": data.get("parameters") or _count_parameters(name),
        "input_size": list(data["input_size"]),
        "reference": data.get("reference"),
        "paper": data.get("paper"),
        "weights": sorted(data.get("weights") or {}),
    }


def _count_parameters(name: str) -> int:
    import torch

    import fastcnn

    with torch.device("meta"):  # shapes only: nothing is allocated or initialised
        return sum(p.numel() for p in fastcnn.create_model(name).parameters())


def run(args: argparse.Namespace) -> int:
    import fastcnn

    names = fastcnn.list_models(args.pattern)
    if not names:
        raise UsageError(f"no model matches {args.pattern!r}; `fastcnn list` shows all {len(fastcnn.list_models())}")
    models = [describe(name) for name in names]
    if args.json:
        print_json(models)
        return 0
    rows = [
        (
            m["name"],
            f"{m['parameters'] / 1e6:.2f} M",
            "x".join(map(str, m["input_size"])),
            m["reference"],
            m["paper"],
            ", ".join(m["weights"]),
        )
        for m in models
    ]
    columns = ("model", "parameters", "input", "reference", "arXiv", "weights")
    print_table(f"{len(rows)} models", columns, rows, right=("parameters", "input"))
    return 0
