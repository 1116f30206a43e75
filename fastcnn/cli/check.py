# SPDX-License-Identifier: Apache-2.0
"""``fastcnn check``: models held against their reference packages, structure and logits."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastcnn.cli.bench import expand
from fastcnn.cli.console import UsageError, print_json, print_table, progress, warn

if TYPE_CHECKING:
    from fastcnn.check import Parity


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("check", help="hold models against their reference packages", allow_abbrev=False)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names, or patterns such as 'mobilenet*'")
    parser.add_argument("--all", action="store_true", help="every model")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.all == bool(args.models):
        raise UsageError("name models, or give --all")
    names = expand(["*"] if args.all else args.models)

    from fastcnn.check import Parity, check_model
    from fastcnn.models import metadata
    from fastcnn.reference import MissingReference

    results: list[Parity] = []
    for name in progress(names, "Checking", least=2):
        try:
            result = check_model(name)
        except MissingReference as error:
            result = Parity(name, metadata(name)["reference"], problems=[str(error)])
        results.append(result)
        for problem in result.problems:
            warn(f"fastcnn check: {name}: {problem}")
    if args.json:
        print_json([result.to_dict() for result in results])
    else:
        print_results(results)
    return 1 if any(result.problems for result in results) else 0


def print_results(results: Sequence["Parity"]) -> None:
    """One row per model."""
    columns = ("model", "reference", "parameters", "MACs", "keys", "input", "error", "allowed", "")
    rows = [
        (
            r.model,
            r.reference,
            f"{r.parameters:,}",
            f"{r.macs / 1e6:,.1f} M",
            r.state_dict_entries,
            "x".join(map(str, r.input_size)),
            "" if r.error is None else f"{r.error:.1e}",
            "" if r.allowed is None else f"{r.allowed:.1e}",
            "differs" if r.problems else "equal",
        )
        for r in results
    ]
    wrong = sum(bool(r.problems) for r in results)
    title = (
        f"{len(results) - wrong} of {len(results)} equal their reference: parameters, state_dict, output shape, MACs; "
        "logits in fp32 against the reference in fp64. 'torch backend': no package has the net, it is compared with "
        "itself on plain torch"
    )
    print_table(title, columns, rows, right=columns[2:8])
