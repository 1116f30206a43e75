# SPDX-License-Identifier: Apache-2.0
"""accelerate() against ONNX Runtime, OpenVINO and torch.compile: `python -m benchmarks.models.bench_peers [MODEL...]`.

One process, every engine in turn, rounds with foreign load rejected, equal threads, each output held against fp64
first (fastcnn/analysis/peers). --bf16, --scaling, --foreign, --memory and --load measure what their help says instead.
Rows go to the --json file, and all that it holds goes into RESULTS.md with --write. Needs `pip install '.[bench]'`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.models.peers import foreign, scaling, start
from benchmarks.report import write_section
from fastcnn._library import CPU
from fastcnn.analysis.peers import Row, compare, missing, original
from fastcnn.analysis.peers.measure import pixels
from fastcnn.analysis.peers.table import markdown
from fastcnn.cli.console import quiet
from fastcnn.reference import pip_command

SECTION = "peers"
MODELS = tuple(
    f"torchvision:{name}"
    for name in (
        "mobilenet_v3_large", "mobilenet_v3_small", "shufflenet_v2_x1_0", "efficientnet_b0", "mobilenet_v2",
        "mnasnet1_0", "resnet18", "resnet50", "resnext50_32x4d", "googlenet", "densenet121", "inception_v3", "vgg16",
    )
) + ("timm:tf_efficientnet_lite0", "timm:mobilenetv1_100", "timm:seresnet50")  # fmt: skip
HALF = ("torchvision:mobilenet_v2", "torchvision:mobilenet_v3_large", "torchvision:resnet50")
KINDS = {
    "speed": "models",
    "scaling": "time an image over batch sizes, image sizes and threads",
    "foreign": "100 calls while another process keeps one core busy",
    "memory": "growth of peak resident memory, one process an engine",
    "load": "from a file to the first result, one process an engine",
}
_OF = {"scaling": scaling, "foreign": foreign}


def speed(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    dtype = torch.bfloat16 if args.bf16 else torch.float32
    for name in tqdm(args.models or (HALF if args.bf16 else MODELS), leave=False):
        model, size = original(name)
        for batch in args.batch:
            for count in args.threads:
                torch.set_num_threads(count)
                with quiet():
                    row = compare(name, model, pixels(batch, size), dtype=dtype, rounds=args.rounds,
                                  seconds=args.seconds)  # fmt: skip
                yield row.to_dict()


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    if args.kind == "scaling":
        return scaling.measure(args.models or scaling.MODELS, args.threads, args.rounds, args.seconds)
    if args.kind == "foreign":
        return foreign.measure(args.models or foreign.MODELS, args.threads)
    if args.kind in start.MODELS:
        return start.measure(args.kind, args.models or start.MODELS[args.kind], args.threads, args.rounds)
    return speed(args)


def key(row: dict[str, Any]) -> tuple:
    """What makes a row: a second one of the same key replaces it."""
    return row["kind"], row["model"], row["batch"], tuple(row["size"]), row["dtype"], row["threads"]


def tables(rows: list[dict[str, Any]]) -> str:
    """Markdown: a table a kind, of those that ``rows`` has."""
    parts = []
    for dtype in ("float32", "bfloat16"):
        found = [Row.from_dict(row) for row in rows if row["kind"] == "speed" and row["dtype"] == dtype]
        if found:
            parts.append(f"Speed in {dtype}:\n\n{markdown(found)}")
    for kind in list(KINDS)[1:]:
        found = [row for row in rows if row["kind"] == kind]
        if found:
            text = start.table(kind, found) if kind in start.MODELS else _OF[kind].table(found)
            parts.append(f"{KINDS[kind].capitalize()}:\n\n{text}")
    return "\n\n".join(parts)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help="as `fastcnn accelerate` takes (default: the goals')"
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=int, nargs="+", default=[2], help="of every engine; several run in turn")
    parser.add_argument("--rounds", type=int, help="clean ones (default: 15), or processes an engine (default: 3)")
    parser.add_argument("--seconds", type=float, default=120.0, help="of timing a model and batch, at most")
    parser.add_argument("--json", type=Path, help="keep every row there")
    parser.add_argument("--update", action="store_true", help="keep the file's other rows")
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    parser.add_argument("--bf16", action="store_true", help="every engine computes in bfloat16")
    kind = parser.add_mutually_exclusive_group()
    for name in list(KINDS)[1:]:
        kind.add_argument(f"--{name}", dest="kind", action="store_const", const=name, help=KINDS[name])
    kind.add_argument(
        "--show", dest="kind", action="store_const", const="show", help="measure nothing: the file's tables"
    )
    parser.set_defaults(kind="speed")
    args = parser.parse_args()
    args.rounds = args.rounds or (3 if args.kind in start.MODELS else 15)
    if (args.update or args.kind == "show") and not args.json:
        parser.error("--update and --show need --json")
    if args.bf16 and args.kind != "speed":
        parser.error("--bf16 goes with plain speed alone")
    return args


def main() -> None:
    args = parse()
    if not CPU.loaded:
        raise SystemExit(
            f"bench_peers: the compiled library is not in use, nothing is timed: {CPU.reason}; {CPU.fix()}"
        )
    absent = missing()
    if absent:
        print(f"not here: {', '.join(absent)}; the others run. {pip_command('fastcnn[bench]')}")
    kept = args.json and args.json.exists() and (args.update or args.kind == "show")
    rows = {key(row): row for row in (json.loads(args.json.read_text(encoding="utf-8")) if kept else [])}
    for row in measure(args) if args.kind != "show" else ():
        rows[key(row)] = row
        if args.json:
            args.json.write_text(json.dumps(list(rows.values()), indent=1) + "\n", encoding="utf-8")
    text = tables(list(rows.values()))
    print(text)
    if args.write:
        write_section(SECTION, text)


if __name__ == "__main__":
    main()
