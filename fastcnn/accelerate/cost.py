# SPDX-License-Identifier: Apache-2.0
"""Bytes and launches of a program, counted from its graph: a model, nothing is timed.

Every tensor that an operator, or a step of a plan, reads or writes counts once; weights do not, a batch reads them once. What only changes
the view of a tensor costs nothing.
"""

from __future__ import annotations

import operator
from typing import NamedTuple

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from .program import DEPTHWISE_SE_GATE, aten, fixed

_VIEWS = {aten.reshape, aten.view, aten._unsafe_view, aten.flatten, aten.squeeze, aten.unsqueeze, aten.permute, aten.transpose,
          aten.slice, aten.narrow, aten.chunk, aten.split, aten.split_with_sizes, aten.select, aten.expand, aten.expand_as,
          aten.detach, aten.alias, aten.dropout, aten.sym_size, aten.contiguous, aten.unbind, aten.unflatten, aten.t, aten.to,
          aten.lift_fresh_copy, aten.new_empty_strided}  # fmt: skip
_LAUNCHES = {DEPTHWISE_SE_GATE: 2}  # the convolution and the gate; the sums between them, small, are not counted


class Cost(NamedTuple):
    """Of one image at ``element_size`` bytes an element."""

    bytes: int
    launches: int


def cost(program: fx.GraphModule, element_size: int = 2) -> Cost:
    """Bytes and launches per image of a program whose batch is the first dimension of its inputs."""
    elements = launches = 0
    for node in program.graph.nodes:
        if "plan" in node.meta:
            launches += 1
            elements += sum(note.bytes - note.weights for note in node.meta["plan"].notes) // 4
        elif is_launch(node):
            launches += _LAUNCHES.get(node.target, 1)
            overwritten = node.args[0] if node.target is aten.copy_.default else None
            read = {each for each in node.all_input_nodes if each.op != "get_attr" and each is not overwritten}
            elements += sum(_elements(each) for each in (*read, node))
    return Cost(elements * element_size, launches)


def is_launch(node: fx.Node) -> bool:
    """Whether ``node`` does work on a tensor."""
    if node.op != "call_function" or node.target is operator.getitem:
        return False
    packet = getattr(node.target, "overloadpacket", None)
    return (
        packet is not None
        and packet not in _VIEWS
        and any(isinstance(v, Tensor) for v in tree_leaves(node.meta.get("val")))
    )


def _elements(node: fx.Node) -> int:
    """Per image: a symbol is the batch."""
    found = 0
    for each in tree_leaves(node.meta.get("val")):
        if isinstance(each, Tensor):
            size = 1
            for i, extent in enumerate(map(fixed, each.shape)):
                size *= 1 if i == 0 else extent if isinstance(extent, int) else _hint(extent)
            found += size
    return found


def _hint(extent: torch.SymInt) -> int:
    return extent.node.hint if extent.node.hint is not None else 1
