# SPDX-License-Identifier: Apache-2.0
"""``fastcnn bench --layers``: where the time of an accelerated model goes, step by step."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastcnn.cli.console import CommandError, UsageError, note, print_json, print_table, save, set_threads

if TYPE_CHECKING:
    from fastcnn.accelerate import Profile

CALLS = 20


def run(args: argparse.Namespace) -> int:
    _check(args)
    set_threads(args.threads)
    found = [_profile(name, batch, args.dtype) for name in args.models for batch in args.batch]
    if args.json:
        print_json({"profiles": [each.to_dict() | {"model": name} for name, each in found]})
    else:
        for name, each in found:
            print_profile(name, each)
    if args.plot:
        save(found[0][1].figure(), args.plot)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Before the work, which may take minutes."""
    if args.plot and len(args.models) * len(args.batch) > 1:
        raise UsageError("--plot: draws one model at one batch size, got more")
    if args.plot and not Path(args.plot).absolute().parent.is_dir():
        raise CommandError(f"{args.plot!r} cannot be written: no folder {str(Path(args.plot).parent)!r}")


def _profile(name: str, batch: int, dtype: str) -> tuple[str, "Profile"]:
    import torch

    from fastcnn.accelerate import accelerate
    from fastcnn.cli.models import find_model

    note(f"{name}, batch {batch} ...")
    model, size, _ = find_model(name)
    example = torch.randn([batch, *size], generator=torch.Generator().manual_seed(0))
    try:
        fast = accelerate(model, example, dtype=getattr(torch, dtype))
    except (TypeError, ValueError) as error:
        raise CommandError(str(error).removeprefix("accelerate: ")) from error
    return name, fast.profile(example, calls=CALLS)


def print_profile(name: str, profile: "Profile") -> None:
    from fastcnn.accelerate.profile import COLUMNS

    rows: list[Any] = profile.rows()
    kinds: dict[str, float] = {}
    for step in profile.steps:
        kinds[step.kind] = kinds.get(step.kind, 0.0) + step.milliseconds
    for kind, milliseconds in sorted(kinds.items(), key=lambda item: -item[1]):
        rows.append(
            (
                kind,
                "all of them",
                f"{milliseconds:.3f}",
                f"{100 * milliseconds / profile.milliseconds:.1f} %",
                "",
                "",
                "",
            )
        )
    print_table(f"{name}: {profile.title()}", COLUMNS, rows, right=COLUMNS[2:])
    if profile.peak_gflops:
        rates = ", ".join(
            f"{rate:.0f} at {size / 2**20:g} MiB" for size, rate in sorted(profile.peak_gigabytes.items())
        )
        print(f"peak: {profile.peak_gflops:.0f} GFLOP/s of {profile.peak_how}; a copy's GB/s: {rates}")
