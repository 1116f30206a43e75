# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.models.table CHECK.json [--write]``: docs/ARCHITECTURES.md from `fastcnn check --all --json`."""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastcnn.models import list_models, metadata
from fastcnn.models.registry import _all_metadata

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/ARCHITECTURES.md"
COLUMNS = ("model", "paper", "input", "parameters", "MACs", "reference", "top-1", "parity error")
RIGHT = ("parameters", "MACs", "top-1", "parity error")
HEAD = """# The models

{count} models, each created by `fastcnn.create_model(name)`. This file is written by
`fastcnn check --all --json > check.json; python -m tests.models.table check.json --write`.

- parameters and MACs (multiply-adds of convolutions and linear layers, one image) are counted on our nets; those of the
  package's net are the same, as are the keys and shapes of its state_dict and the shape of its output (NASNet-A mobile's
  counts 568.2 M: it computes rows that it crops);
- reference: the package and its name of the net; "plain torch": no package has it, `tests/models/plain` states it;
- top-1: published for ImageNet, in percent, by the source that metadata.json names; not measured here;
- parity error: of the logits in fp32, random weights, against the reference in fp64, relative to the largest; allowed
  is 1e-5, or 5 times the reference's own error where that is more. An asterisk: on a smaller input than the one named.
  For "plain torch" it is against the same net on the ops' plain-torch backend. Random weights make deep nets amplify
  rounding: where more than 1e-4 is allowed, ours in fp64 is held against a millionth of it, or
  5 times the reference's difference between NCHW and channels_last in fp64.
"""


def write_table(results: Sequence[dict[str, Any]]) -> str:
    """The document, in the order of metadata.json. ``results`` are those of ``fastcnn check --json``."""
    found = {result["model"]: result for result in results}
    wrong = [name for name, result in found.items() if not result["ok"]]
    if wrong:
        raise SystemExit(f"tests.models.table: not equal to their reference: {', '.join(wrong)}")
    names = [name for name in _all_metadata() if name in set(list_models())]
    rule = ["---:" if column in RIGHT else "---" for column in COLUMNS]
    lines = [HEAD.format(count=len(names)), _row(COLUMNS), _row(rule)]
    return "\n".join([*lines, *(_row(_cells(name, found.get(name))) for name in names)]) + "\n"


def _cells(name: str, result: dict[str, Any] | None) -> list[str]:
    facts = metadata(name)
    kind, _, net = facts["reference"].partition(":")
    fixed = [f"`{name}`", _paper(facts["paper"]), "x".join(map(str, facts["input_size"]))]
    reference = "plain torch" if kind == "plain" else f"{kind} `{net}`"
    top1 = str(facts.get("top1", ""))
    if result is None:
        return [*fixed, "", "", reference, top1, "not measured"]
    smaller = "" if result["input_size"] == facts["input_size"] else " *"
    counts = [f"{result['parameters']:,}", f"{result['macs'] / 1e6:,.1f} M"]
    in_fp64 = "" if result["error64"] is None else f"; {result['error64']:.0e} in fp64"
    return [*fixed, *counts, reference, top1, f"{result['error']:.1e}{in_fp64}{smaller}"]


def _paper(text: str) -> str:
    arxiv = re.search(r"\d{4}\.\d{4,5}", text)
    return f"[{arxiv[0]}](https://arxiv.org/abs/{arxiv[0]})" if arxiv else text


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.models.table", description=__doc__)
    parser.add_argument("results", type=Path, help="what `fastcnn check --all --json` printed")
    parser.add_argument("--write", action="store_true", help=f"into {DOCUMENT.name}; else to the terminal")
    args = parser.parse_args(argv)
    text = write_table(json.loads(args.results.read_text(encoding="utf-8")))
    if not args.write:
        print(text, end="")
        return
    DOCUMENT.parent.mkdir(exist_ok=True)
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
