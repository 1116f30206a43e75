# SPDX-License-Identifier: Apache-2.0
"""What accelerate() did, found and left."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastcnn.backends import explain

from .cost import is_launch
from .program import BATCH_NORM


@dataclass
class Left:
    """An operator of ATen that stays in the program."""

    operator: str
    count: int
    reason: str
    layers: list[str]


@dataclass
class Report:
    """``print`` it, or take :meth:`to_dict`.

    Attributes:
        model: class of the original.
        accelerated: False when the original came back; ``refused`` says why.
        fused: how often each pattern was replaced.
        operators: the program's operators with their number and backend.
        left: operators that are not ours, each with the reason.
        errors: on the example and on random inputs: largest absolute and relative difference to the original, share of
            equal top-1, relative errors of both against the original in fp64, the largest that is allowed.
        milliseconds: median of a forward on the example, "before" and "after", in turn.
        bytes, launches: an image in the dtype of the program, weights not counted, "before" and "after".
        dtype, tf32, threads: the state all this was found in.
        notes: what else there is to know.
    """

    model: str
    accelerated: bool = True
    refused: str | None = None
    fused: dict[str, int] = field(default_factory=dict)
    operators: dict[str, dict[str, Any]] = field(default_factory=dict)
    left: list[Left] = field(default_factory=list)
    errors: dict[str, dict[str, float | None]] = field(default_factory=dict)
    milliseconds: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    launches: dict[str, int] = field(default_factory=dict)
    dtype: str = ""
    tf32: bool = False
    threads: int = 1
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Report:
        """The inverse of :meth:`to_dict`."""
        return cls(**found | {"left": [Left(**each) for each in found["left"]]})

    @property
    def speedup(self) -> float | None:
        """Time before over time after."""
        times = self.milliseconds
        return times["before"] / times["after"] if times.get("after") else None

    def __str__(self) -> str:
        lines = [f"{self.model}: {'accelerated' if self.accelerated else f'returned as it is: {self.refused}'}"]
        applied = ", ".join(f"{name} {count}" for name, count in self.fused.items() if count)
        lines.append(f"  fused      {applied or 'nothing'}")
        lines += [f"  runs       {row['count']:>4} {name}  ({row['backend']})" for name, row in self.operators.items()]
        for each in self.left:
            where = (
                f" at {each.layers[0]}{', ...' if len(each.layers) > 1 else ''}"
                if each.layers and each.layers[0]
                else ""
            )
            lines.append(f"  left       {each.count:>4} {each.operator}{where}: {each.reason}")
        for name, row in self.errors.items():
            lines.append(f"  error      {name}: {_errors(row)}")
        if self.milliseconds:
            times = self.milliseconds
            lines.append(
                f"  time       {times['before']:.2f} ms before, {times['after']:.2f} ms after: {self.speedup:.2f}x"
            )
        if self.bytes:
            before, after = (
                f"{self.bytes[k] / 1e6:.1f} MB in {self.launches[k]} launches" for k in ("before", "after")
            )
            lines.append(f"  an image   {before} before, {after} after (counted from the graph)")
        lines.append(f"  state      {self.dtype}, TF32 {'on' if self.tf32 else 'off'}, {self.threads} threads")
        lines += [f"  note       {note}" for note in self.notes]
        return "\n".join(lines)


def _errors(row: dict[str, float | None]) -> str:
    text = f"largest difference {row['absolute']:.1e}, relative {row['relative']:.1e}, same top-1 {100 * row['top1']:.0f} %"
    if row.get("fp64") is not None:
        text += (
            f"; against fp64 {row['fp64']:.1e} (the original {row['original_fp64']:.1e}, allowed {row['allowed']:.1e})"
        )
    return text


# Why an operator of ATen stays where no rewrite has said more.
_REASONS = {
    "aten.linear": "a matrix product that the library does well",
    "aten.cat": "a copy that puts maps beside each other",
    "aten.slice": "a view",
    "aten.add": "a sum that no convolution in front of it could take",
    "aten.mul": "a product that is no squeeze-and-excitation",
    "aten.avg_pool2d": "an average over windows: no kernel of ours",
    "aten.adaptive_avg_pool2d": "an average over windows: no kernel of ours",
    "aten.softmax": "no kernel of ours",
    "aten.layer_norm": "no kernel of ours: not of the CNNs this package is for",
    "aten.gelu": "no kernel of ours",
    "aten._native_batch_norm_legit": "it has no running statistics: those of the batch or the image are used",
    "aten.conv1d": "a convolution that is not 2-D",
    "aten.convolution": "a convolution that is not 2-D, or transposed",
    "aten.conv2d": "its weight or its input is no floating map [N, C, H, W]",
}


def left(program: fx.GraphModule) -> list[Left]:
    """The launches that are no ops of ours, batch norms that still stand, each with its reason."""
    found: dict[tuple[str, str], Left] = {}
    for node in program.graph.nodes:
        if not is_launch(node) or (node.target.namespace == "fastcnn" and node.target is not BATCH_NORM):
            continue
        operator = str(node.target).rpartition(".")[0]
        reason = node.meta.get("left") or _REASONS.get(operator) or "no fused form of it"
        entry = found.setdefault((operator, reason), Left(operator, 0, reason, []))
        entry.count += 1
        entry.layers.append(node.meta.get("layer", ""))
    return sorted(found.values(), key=lambda each: -each.count)


_LIBRARY = {"mkldnn": "oneDNN, packed weights", "fastcnn.run_plan": "cpu, many operators in one call"}


def operators(fast: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, dict[str, Any]]:
    """How often each operator runs, and which backend serves its first call."""
    found: dict[str, dict[str, Any]] = {}

    class Recorder(fx.Interpreter):
        def call_function(self, target: Any, args: tuple, kwargs: dict) -> Any:
            namespace = getattr(target, "namespace", None)
            if namespace is not None:
                name = str(target).removesuffix(".default")
                if name not in found:
                    ours = namespace == "fastcnn" and name not in _LIBRARY
                    backend = (
                        explain(target, *args).backend if ours else _LIBRARY.get(name, _LIBRARY.get(namespace, "torch"))
                    )
                    found[name] = {"count": 0, "backend": backend}
                found[name]["count"] += 1
            return super().call_function(target, args, kwargs)

    dtype = fast.dtype()
    with torch.inference_mode():
        Recorder(fast.runs(inputs[0].device)).run(
            *(x.to(dtype) if x.is_floating_point() and dtype else x for x in inputs)
        )
    return dict(sorted(found.items(), key=lambda item: -item[1]["count"]))
