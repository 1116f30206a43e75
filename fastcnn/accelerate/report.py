# SPDX-License-Identifier: Apache-2.0
"""What accelerate() did, found and left."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from fastcnn.backends import explain

from .cost import is_launch
from .program import BATCH_NORM

if TYPE_CHECKING:
    from .packed import Form


@dataclass
class Left:
    """An operator of ATen that stays in the program."""

    operator: str
    count: int
    reason: str
    layers: list[str]

    def text(self) -> str:
        where = (
            f" at {self.layers[0]}{', ...' if len(self.layers) > 1 else ''}" if self.layers and self.layers[0] else ""
        )
        return f"{self.count:>4} {self.operator}{where}: {self.reason}"


@dataclass
class Plans:
    """What the CPU runs in plans (``fastcnn/accelerate/plan``), for one image size.

    Attributes:
        count, steps: plans, and steps of all of them.
        outside: operators that run by themselves, each with the reason.
        arena_bytes: memory for activations, an image, of the largest plan.
        packed_bytes: weights in the order of this machine's vectors, of all image sizes.
        reason: why there are no plans at all, or None.
    """

    count: int = 0
    steps: int = 0
    outside: list[Left] = field(default_factory=list)
    arena_bytes: int = 0
    packed_bytes: int = 0
    reason: str | None = None

    def outside_count(self) -> int:
        return sum(each.count for each in self.outside)

    def lines(self) -> list[str]:
        if self.reason is not None:
            return [f"  plans      none: {self.reason}"]
        text = f"  plans      {self.count} of {self.steps} steps, {self.outside_count()} operators outside"
        if self.count:
            text += f"; {self.arena_bytes / 1e6:.1f} MB of maps an image, {self.packed_bytes / 1e6:.1f} MB of packed weights"
        return [text, *(f"  outside    {each.text()}" for each in self.outside)]


@dataclass
class Report:
    """``print`` it, or take :meth:`to_dict`.

    Attributes:
        model: class of the original.
        accelerated: False when the original came back; ``refused`` says why.
        fused: how often each pattern was replaced.
        operators: the program's operators with their number and backend.
        left: operators that are not ours, each with the reason.
        plans: what the CPU runs in one call, and what not.
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
    plans: Plans | None = None
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
        plans = found.get("plans")
        if plans is not None:
            plans = Plans(**plans | {"outside": [Left(**each) for each in plans["outside"]]})
        return cls(**found | {"left": [Left(**each) for each in found["left"]], "plans": plans})

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
        lines += self.plans.lines() if self.plans else []
        lines += [f"  left       {each.text()}" for each in self.left]
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
    return _grouped(
        (node, node.meta.get("left") or _REASONS.get(str(node.target).rpartition(".")[0]) or "no fused form of it")
        for node in program.graph.nodes
        if is_launch(node) and (node.target.namespace != "fastcnn" or node.target is BATCH_NORM)
    )


def plans(form: Form, packed_bytes: int) -> Plans:
    """What ``form`` runs in plans."""
    if form.planned is None:
        return Plans(reason=form.reason)
    made = form.planned.plans
    reasons = form.planned.reasons
    outside = [
        (node, reasons[node.name]) for node in form.source.graph.nodes if node.name in reasons and is_launch(node)
    ]
    arena = 4 * max((plan.arena for plan in made), default=0)
    return Plans(len(made), sum(len(plan.notes) for plan in made), _grouped(outside), arena, packed_bytes)


def _grouped(nodes: Iterable[tuple[fx.Node, str]]) -> list[Left]:
    """One entry for the nodes of one operator and one reason, the most frequent first."""
    found: dict[tuple[str, str], Left] = {}
    for node, reason in nodes:
        operator = str(node.target).rpartition(".")[0]
        entry = found.setdefault((operator, reason), Left(operator, 0, reason, []))
        entry.count += 1
        entry.layers.append(node.meta.get("layer", ""))
    return sorted(found.values(), key=lambda each: -each.count)


_LIBRARY = {"mkldnn": "oneDNN, packed weights"}


def operators(form: Form) -> dict[str, dict[str, Any]]:
    """How often each operator runs on the CPU, and what serves it: a plan, or a backend; both where some calls are in none."""
    found: dict[str, Counter[str]] = {}
    for node in itertools.chain(*(form.planned.served if form.planned else ())):
        if hasattr(node.target, "namespace"):
            found.setdefault(_name(node.target), Counter())["plan"] += 1
    for node in form.program.graph.nodes:
        if hasattr(node.target, "namespace") and "plan" not in node.meta:
            found.setdefault(_name(node.target), Counter())[_backend(node.target, torch.empty(0))] += 1
    rows = sorted(found.items(), key=lambda item: -item[1].total())
    return {name: {"count": counts.total(), "backend": _shares(counts)} for name, counts in rows}


def _shares(counts: Counter[str]) -> str:
    return (
        next(iter(counts)) if len(counts) == 1 else ", ".join(f"{backend} {count}" for backend, count in counts.items())
    )


def _name(target: Any) -> str:
    return str(target).removesuffix(".default")


def _backend(target: Any, *args: Any) -> str:
    return explain(target, *args).backend if target.namespace == "fastcnn" else _LIBRARY.get(target.namespace, "torch")


def traced_operators(fast: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, dict[str, Any]]:
    """How often each operator runs, and which backend serves its first call: where that depends on the call."""
    found: dict[str, dict[str, Any]] = {}

    class Recorder(fx.Interpreter):
        def call_function(self, target: Any, args: tuple, kwargs: dict) -> Any:
            if hasattr(target, "namespace"):
                row = found.setdefault(_name(target), {"count": 0, "backend": None})
                row["count"] += 1
                row["backend"] = row["backend"] or _backend(target, *args)
            return super().call_function(target, args, kwargs)

    dtype = fast.dtype()
    with torch.inference_mode():
        Recorder(fast.program).run(*(x.to(dtype) if x.is_floating_point() and dtype else x for x in inputs))
    return dict(sorted(found.items(), key=lambda item: -item[1]["count"]))
