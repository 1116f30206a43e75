# SPDX-License-Identifier: Apache-2.0
"""``fastcnn list``: the models by name, from their metadata alone; a picture that compares them."""

import argparse
from collections.abc import Sequence
from typing import Any

from fastcnn.cli.console import CommandError, UsageError, note, print_json, print_table, save


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("list", help="list the models", allow_abbrev=False)
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern, for example 'mobilenet*'")
    parser.add_argument("--compare", metavar="PNG", help="draw parameters against MACs against published top-1")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def describe(name: str) -> dict[str, Any]:
    """What the table shows of one model; None for what its metadata do not say."""
    import fastcnn.models

    data = fastcnn.models.metadata(name)
    return {
        "name": name,
        "parameters": data.get("params"),
        "macs": data.get("macs"),
        "top1": data.get("top1"),
        "input_size": list(data["input_size"]),
        "reference": data.get("reference"),
        "paper": data.get("paper"),
        "weights": sorted(data.get("weights") or {}),
    }


def run(args: argparse.Namespace) -> int:
    import fastcnn

    names = fastcnn.list_models(args.pattern)
    if not names:
        raise UsageError(f"no model matches {args.pattern!r}; `fastcnn list` shows all {len(fastcnn.list_models())}")
    models = [describe(name) for name in names]
    if args.compare:
        save(draw(models), args.compare)
    if args.json:
        print_json(models)
        return 0
    rows = [
        (
            m["name"],
            "" if m["parameters"] is None else f"{m['parameters'] / 1e6:.2f} M",
            "" if m["macs"] is None else f"{m['macs'] / 1e6:,.0f} M",
            m["top1"],
            "x".join(map(str, m["input_size"])),
            m["reference"],
            m["paper"],
            ", ".join(m["weights"]),
        )
        for m in models
    ]
    columns = ("model", "parameters", "MACs", "top-1", "input", "reference", "paper", "weights")
    print_table(f"{len(rows)} models", columns, rows, right=columns[1:5])
    return 0


def draw(models: Sequence[dict[str, Any]]) -> Any:
    """MACs to the right, published top-1 upwards, parameters as area, a colour a paper; all three must be known."""
    from matplotlib.figure import Figure

    known = [m for m in models if m["parameters"] and m["macs"] and m["top1"]]
    if not known:
        raise CommandError("none of these models has parameters, MACs and a published top-1 in its metadata")
    if len(known) < len(models):
        note(f"{len(models) - len(known)} of {len(models)} are not drawn: no published top-1, or no counts")
    figure = Figure((14, 9), layout="constrained")
    axes = figure.subplots()
    papers = list(dict.fromkeys(m["paper"] for m in known))
    for i, paper in enumerate(papers):
        group = [m for m in known if m["paper"] == paper]
        macs, top1, areas = zip(*((m["macs"], m["top1"], 8 * m["parameters"] / 1e6) for m in group), strict=True)
        axes.scatter(macs, top1, areas, color=f"C{i}", alpha=0.5, marker="osD^v"[i // 10 % 5], label=paper[:24])
    for m in known:
        axes.annotate(m["name"], (m["macs"], m["top1"]), fontsize=6, textcoords="offset points", xytext=(3, 3))
    axes.set_xscale("log")
    axes.set(xlabel="multiply-adds per image", ylabel="published top-1, %", title="Area: parameters")
    axes.grid(alpha=0.3)
    legend = figure.legend(loc="outside right upper", fontsize="small", title="paper")
    for handle in legend.legend_handles:
        handle.set_sizes([40])
    return figure
