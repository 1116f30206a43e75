# SPDX-License-Identifier: Apache-2.0
"""Bytes and launches of accelerate()'s programs beside the op lists: `python -m benchmarks.models.graph_bytes [--write]`.

A model, nothing is timed. torchvision's nets are captured and rewritten, on a GPU's terms and on a CPU's; fp16, MB an
image, every tensor that an operator reads or writes counted once (fastcnn/accelerate/cost.py). What an op list says is
what the kernels could do; a program says what the ops do together.
"""

from __future__ import annotations

import torch
from torch import nn

import fastcnn
from benchmarks.models.op_lists import ALLOWED, NETS, megabytes, op_list
from benchmarks.report import section_main
from fastcnn.accelerate.capture import capture
from fastcnn.accelerate.cost import Cost, cost
from fastcnn.accelerate.packed import Packed
from fastcnn.accelerate.rewrites import rewrite
from fastcnn.reference import reference_model


def net(name: str) -> nn.Module:
    """torchvision's, or ours where it has none."""
    model = (
        fastcnn.create_model("mobilenet_v1_x1_0") if name == "mobilenet_v1" else reference_model(f"torchvision:{name}")
    )
    return model.eval()


def costs(name: str) -> tuple[Cost, Cost, Cost]:
    """Captured; rewritten for a GPU; as a CPU runs it."""
    image = torch.zeros(1, 3, 224, 224)
    found = []
    for device in ("cuda", "cpu"):
        program = capture(net(name), (image,)).program
        before = cost(program)
        rewrite(program, None, device)
        found.append(cost(program if device == "cuda" else Packed(program, [torch.float32]).at(((None, 3, 224, 224),)).program))
    return before, *found


def table() -> str:
    lines = ["| network | captured MB | op list | on a GPU | over the list | as a CPU runs it | launches captured | op list | on a GPU | CPU |",
             "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name in NETS:
        before, gpu, cpu = costs(name)
        ops = op_list(name)
        over = gpu.bytes / 1e6 / megabytes(ops)
        lines.append(
            f"| {name} | {before.bytes / 1e6:.1f} | {megabytes(ops):.1f} | {gpu.bytes / 1e6:.1f} | {100 * over - 100:+.1f} %"
            f"{'' if over <= ALLOWED else ' (missed)'} | {cpu.bytes / 1e6:.1f} | {before.launches} | {len(ops)} | {gpu.launches} | "
            f"{cpu.launches} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    section_main("graph bytes", table, __doc__)
