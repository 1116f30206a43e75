# SPDX-License-Identifier: Apache-2.0
"""``fastcnn summary``: what a model costs, layer by layer, and what training it takes."""

import argparse
from typing import TYPE_CHECKING, Any

from fastcnn.cli.console import CommandError, UsageError, model_metadata, positive_int, print_json, print_table, save

if TYPE_CHECKING:
    from fastcnn.analysis import Summary

REFERENCE_INPUT = [3, 224, 224]  # of "package:name", which no metadata describes


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("summary", help="parameters, MACs and memory of a model", allow_abbrev=False)
    parser.add_argument("model", metavar="MODEL", help="a name from `fastcnn list`, or such as torchvision:vgg16")
    parser.add_argument("--batch", type=positive_int, default=1, metavar="N", help="images per step (default: 1)")
    parser.add_argument(
        "--optimizer", choices=("sgd", "momentum", "adam"), default="momentum", help="whose state (default: momentum)"
    )
    parser.add_argument("--plot", metavar="PNG", help="draw memory, parameters and MACs per layer")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    summary = summary_of(args.model, args.batch, args.optimizer)
    if args.plot:
        save(draw(summary), args.plot)
    if args.json:
        print_json(summary.to_dict())
    else:
        print_summary(summary)
    return 0


def summary_of(name: str, batch: int = 1, optimizer: str = "momentum") -> "Summary":
    """The model called ``name``, ours or a reference package's ("package:name"), counted on the meta device."""
    import torch

    import fastcnn
    from fastcnn.analysis import summarize
    from fastcnn.reference import MissingReference, reference_model

    with torch.device("meta"):
        if ":" not in name:
            facts = model_metadata(name)
            return summarize(fastcnn.create_model(name), facts["input_size"], name, batch, optimizer)
        try:
            net = reference_model(name)
        except MissingReference as error:
            raise CommandError(str(error)) from error
        except (ValueError, AttributeError, KeyError) as error:
            raise UsageError(str(error)) from error
        return summarize(net, REFERENCE_INPUT, name, batch, optimizer)


def print_summary(summary: "Summary") -> None:
    """The table of the layers, and that of the sums."""
    from fastcnn.analysis.summary import FLOAT, GB, MB

    columns = ("layer", "kind", "output", "parameters", "MACs", "activations KB")
    rows = [
        (
            layer.name,
            layer.kind,
            "x".join(map(str, layer.output_shape)),
            f"{layer.parameters:,}",
            f"{layer.macs:,}",
            f"{layer.activation_bytes / 1024:,.1f}",
        )
        for layer in summary.layers
    ]
    print_table(f"{summary.model}, input {'x'.join(map(str, summary.input_size))}", columns, rows, right=columns[2:])
    training = summary.training_bytes
    floats, batch_bytes = summary.activation_bytes // FLOAT, summary.batch * summary.activation_bytes
    rows = [
        ("parameters", f"{summary.parameters:,}", f"{FLOAT * summary.parameters / MB:,.2f} MB"),
        ("MACs per image", f"{summary.macs:,}", f"{summary.macs / 1e9:,.3f} G"),
        ("activations per image", f"{floats:,}", f"{summary.activation_bytes / MB:,.3f} MB"),
        ("activations per batch", f"{summary.batch * floats:,}", f"{batch_bytes / MB:,.2f} MB"),
        *((f"training: {what}", f"{size // FLOAT:,}", f"{size / GB:,.3f} GB") for what, size in training.items()),
        ("training: in all", f"{sum(training.values()) // FLOAT:,}", f"{sum(training.values()) / GB:,.3f} GB"),
    ]
    title = f"Sums in fp32, batch {summary.batch}, {summary.optimizer}; 1 MB = 2^20 bytes, 1 GB = 2^30"
    print_table(title, ("what", "count", "size"), rows, right=("count", "size"))


def draw(summary: "Summary") -> Any:
    """Three panels of bars, a bar a layer: memory, parameters, multiply-adds."""
    from matplotlib.figure import Figure

    from fastcnn.analysis.summary import MB

    layers = [layer for layer in summary.layers if layer.output_shape]
    panels = (
        ("activations, MB per image", [layer.activation_bytes / MB for layer in layers]),
        ("parameters, millions", [layer.parameters / 1e6 for layer in layers]),
        ("MACs, millions per image", [layer.macs / 1e6 for layer in layers]),
    )
    figure = Figure((max(8.0, min(0.3 * len(layers), 60.0)), 10), layout="constrained")
    grid = figure.subplots(3, 1, sharex=True)
    for i, (axes, (title, heights)) in enumerate(zip(grid, panels, strict=True)):
        axes.bar(range(len(layers)), heights, color=f"C{i}")
        axes.set_ylabel(title)
        axes.grid(axis="y", alpha=0.3)
        axes.margins(x=0.01)
    if len(layers) <= 200:  # more names than that would lie on each other
        labels = [layer.name or layer.kind for layer in layers]
        grid[-1].set_xticks(range(len(layers)), labels, rotation=90, fontsize="x-small")
    grid[0].set_title(f"{summary.model}: {summary.parameters / 1e6:.2f} M parameters, {summary.macs / 1e9:.3f} G MACs")
    return figure
