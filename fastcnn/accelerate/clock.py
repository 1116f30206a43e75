# SPDX-License-Identifier: Apache-2.0
"""The time of every operator of a program, and of every step of the plans in it.

A round runs the operators in their order with the clock read around each, on CUDA with a synchronisation, so what
overlaps in a real run does not here, and the sums are larger than a forward. A plan reads the clock behind each step by
itself and loses nothing by that. Medians of the rounds.
"""

from __future__ import annotations

import statistics
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .plan import Plan


class Timed(NamedTuple):
    """An operator, or a step of the plan of this number; multiply-adds and bytes (maps and weights) of the whole batch.

    ``layer`` is the node's name where the program does not know the module.
    """

    kind: str
    layer: str
    milliseconds: float
    macs: int
    bytes: int
    plan: int | None


def measure(program: fx.GraphModule, inputs: tuple[Tensor, ...], rounds: int) -> list[Timed]:
    """The calls of ``program`` in order, steps of plans in the place of the plan; a first round is not counted."""
    runs = []
    with torch.inference_mode():
        for _ in range(rounds + 1):
            clock = Clock(program)
            clock.run(*inputs)
            runs.append(clock.timed)
    return [
        first._replace(milliseconds=statistics.median(run[i].milliseconds for run in runs[1:]))
        for i, first in enumerate(runs[0])
    ]


class Clock(fx.Interpreter):
    """One round: ``timed`` after ``run``."""

    def __init__(self, program: fx.GraphModule) -> None:
        super().__init__(program)
        self.timed: list[Timed] = []
        self._plans = 0
        self._devices = {p.device for p in program.parameters() if p.is_cuda}

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_function":
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if "plan" in n.meta:
            return self._run_plan(n.meta["plan"], args)
        start = time.perf_counter()
        result = n.target(*args, **kwargs)
        for device in self._devices:
            torch.cuda.synchronize(device)
        milliseconds = 1e3 * (time.perf_counter() - start)
        if not hasattr(n.target, "namespace"):  # Python's own: sizes, the parts of a tuple
            return result
        kind, layer = str(n.target).removesuffix(".default"), n.meta.get("layer") or n.name
        self.timed.append(Timed(kind, layer, milliseconds, _macs(n.target, args, kwargs, result),
                                _bytes(args, kwargs, result), None))  # fmt: skip
        return result

    def _run_plan(self, plan: Plan, args: tuple) -> list[Tensor]:
        outputs, seconds = torch.ops.fastcnn.run_plan_profile(*args)
        images = outputs[0].shape[0]
        for note, each in zip(plan.notes, seconds.tolist(), strict=True):
            moved = images * (note.bytes - note.weights) + note.weights
            self.timed.append(Timed(note.name, note.layer, 1e3 * each, images * note.macs, moved, self._plans))
        self._plans += 1
        return outputs


def _macs(target: Any, args: tuple, kwargs: dict, result: Any) -> int:
    """0 where nobody has said how many."""
    packed = next((each for each in args if isinstance(each, Tensor) and each.is_mkldnn), None)
    weight = args[1] if target is torch.ops.aten.linear.default else packed
    if weight is not None:
        return result.numel() * (weight.numel() // weight.shape[0])
    count = flop_registry.get(getattr(target, "overloadpacket", None))
    return count(*args, **kwargs, out_val=result) // 2 if count else 0


def _bytes(*values: Any) -> int:
    return sum(each.numel() * each.element_size() for each in tree_leaves(values) if isinstance(each, Tensor))
