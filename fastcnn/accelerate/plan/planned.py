# SPDX-License-Identifier: Apache-2.0
"""A program as the CPU runs it: every run of operators that a plan serves is one ``run_plan`` call."""

from __future__ import annotations

import operator
from typing import NamedTuple

import torch
from torch import Tensor, fx

from ..._library import ask, isa_active
from ..program import CONV, is_op
from . import concats, fuse, lower_blocks
from .builder import Builder, Plan
from .lowering import FREE, lower
from .segments import segments
from .state import PICTURE_CHANNELS, Lowering
from .supports import Shapes, image_shapes, reason_against
from .weights import Blob

LONELY = "too few steps beside it for a plan"


class Planned(NamedTuple):
    """A module that holds plans, and what the report says about it."""

    program: fx.GraphModule
    plans: list[Plan]
    served: list[list[fx.Node]]  # of the original program, by plan
    reasons: dict[str, str]  # name of each node that no plan serves: why


def lanes() -> int:
    """Floats of a vector of the CPU kernels in use."""
    return {"avx512": 16, "avx2": 8}.get(isa_active(), 4)


def can_bf16() -> bool:
    """Whether this processor multiplies matrices of bfloat16 for plans."""
    return ask("fastcnn_plan_bf16") == "yes"


def plan(program: fx.GraphModule, blob: Blob) -> Planned:
    """``program`` with plans in it, on weights packed into ``blob``; ``plans`` is empty where no part is worth one.

    Args:
        program: of known sizes: ``meta["val"]`` of each node is a tensor that may be fake, of which the batch may be a symbol.
    Raises: BlobFull.
    """
    shapes = image_shapes(program)
    reasons = {}
    served = set()
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        reason = reason_against(program, node, shapes)
        if reason is None:
            served.add(node)
        else:
            reasons[node.name] = reason
    parts = segments(program.graph, served)
    reasons |= {node.name: LONELY for node in served.difference(*parts) if node.target not in FREE}
    lowered = [_lower(program, nodes, shapes, blob) for nodes in parts]
    plans = [(builder.finish(), inputs, outputs) for builder, inputs, outputs in lowered]
    rebuilt = _rebuilt(program, parts, plans, shapes) if plans else program
    return Planned(rebuilt, [each for each, _, _ in plans], parts, reasons)


def _lower(
    program: fx.GraphModule, nodes: list[fx.Node], shapes: Shapes, blob: Blob
) -> tuple[Builder, list[fx.Node], list[fx.Node]]:
    """The steps of these nodes, the nodes that they take and those that they give."""
    inside = set(nodes)
    inputs: list[fx.Node] = []
    for node in nodes:
        inputs += [
            each for each in node.all_input_nodes if each not in inside and each.op != "get_attr" and each not in inputs
        ]
    outputs = [node for node in nodes if any(user not in inside for user in node.users)]
    builder = Builder(blob)
    bf16 = can_bf16() and any(getattr(node.meta["val"], "dtype", None) is torch.bfloat16 for node in nodes)
    low = Lowering(program, shapes, builder, bf16)
    for node in inputs:
        low.views[node] = builder.input(shapes[node], _is_picture(node, inside, shapes))
    concats.assign(nodes, low)
    fused = {} if bf16 else fuse.blocks(nodes, program, shapes)
    for node in nodes:
        if node not in fused:
            lower(node, low)
        elif node is fused[node].last:
            lower_blocks.block(low, fused[node])
    for node in outputs:
        builder.make_output(low.view(node), shapes[node])
    return builder, inputs, outputs


def _is_picture(node: fx.Node, inside: set[fx.Node], shapes: Shapes) -> bool:
    """Whether only k x k convolutions read ``node``, in whatever order its values lie."""
    if len(shapes[node]) != 3 or shapes[node][0] > PICTURE_CHANNELS:
        return False
    users = [user for user in node.users if user in inside]
    through = [user for user in users if is_op(user, torch.ops.aten.contiguous.default)]
    readers = [user for user in users if user not in through] + [each for user in through for each in user.users]
    return all(
        each in inside and is_op(each, CONV) and each.args[0] in (node, *through) and _has_window(each)
        for each in readers
    )


def _has_window(conv: fx.Node) -> bool:
    return conv.args[7] is None and tuple(conv.args[1].meta["val"].shape[2:]) != (1, 1)


def _rebuilt(program: fx.GraphModule, parts: list[list[fx.Node]], plans: list, shapes: Shapes) -> fx.GraphModule:
    graph = fx.Graph()
    root = torch.nn.Module()
    copied: dict[fx.Node, fx.Node] = {}

    def cast(node: fx.Node, has: torch.dtype, wants: torch.dtype) -> fx.Node:
        if has == wants:
            return node
        found = graph.call_function(torch.ops.aten.to.dtype, (node, wants))
        found.meta = dict(node.meta)
        return found

    def emit_plan(i: int) -> None:
        built, inputs, outputs = plans[i]
        for name, tensor in (("program", built.program), ("weights", built.weights)):
            object.__setattr__(root, f"{name}_{i}", tensor)
        constants = [graph.create_node("get_attr", f"{name}_{i}") for name in ("program", "weights")]
        taken = [cast(copied[each], each.meta["val"].dtype, torch.float32) for each in inputs]
        call = graph.call_function(torch.ops.fastcnn.run_plan.default, (taken, *constants, built.output_shapes))
        call.meta = {"val": [node.meta["val"] for node in outputs], "plan": built}
        for j, node in enumerate(outputs):
            result = graph.call_function(operator.getitem, (call, j))
            result.meta = dict(node.meta)
            copied[node] = cast(result, torch.float32, node.meta["val"].dtype)

    def emit(node: fx.Node) -> None:
        if node.op == "get_attr":
            object.__setattr__(root, f"tensor_{len(copied)}", _tensor(program, node.target))
            copied[node] = graph.create_node("get_attr", f"tensor_{len(copied)}")
        else:
            copied[node] = graph.node_copy(node, copied.__getitem__)
        copied[node].meta = dict(node.meta)

    inside = {node for nodes in parts for node in nodes}
    *others, output = (node for node in program.graph.nodes if node not in inside)
    # a plan may end behind a node that needs its first results: each goes where all that it takes is there
    waiting: list[fx.Node | int] = [*(node for node in others if node.op == "placeholder"), *range(len(parts))]
    waiting += [node for node in others if node.op != "placeholder"]
    while waiting:
        later = []
        for each in waiting:
            needs = plans[each][1] if isinstance(each, int) else each.all_input_nodes
            if any(need not in copied for need in needs):
                later.append(each)
            elif isinstance(each, int):
                emit_plan(each)
            else:
                emit(each)
        if len(later) == len(waiting):
            raise AssertionError("plan: the segments of a program depend on each other in a circle")
        waiting = later
    graph.output(fx.map_arg(output.args[0], copied.__getitem__))
    graph.eliminate_dead_code()
    return fx.GraphModule(root, graph)


def _tensor(program: fx.GraphModule, target: str) -> Tensor:
    found = program
    for part in target.split("."):
        found = getattr(found, part)
    return found.detach()
