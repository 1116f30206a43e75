# SPDX-License-Identifier: Apache-2.0
"""Cuts a graph into plans and what runs between them."""

from __future__ import annotations

from torch import fx

from .lowering import FREE

LEAST_STEPS = 2  # a plan of a single step saves nothing


def levels(graph: fx.Graph, served: set[fx.Node]) -> dict[fx.Node, int]:
    """Which plan each served node belongs to: nodes of one level need nothing from outside but earlier levels' results.

    A served node is on the level of its inputs, one further where an input is not served; so every other node of a level
    can run when the plan of that level has.
    """
    found: dict[fx.Node, int] = {}
    for node in graph.nodes:
        level = 0
        for each in node.all_input_nodes:
            outside = each.op == "call_function" and each not in served
            level = max(level, found.get(each, 0) + (outside and node in served))
        found[node] = level
    return {node: level for node, level in found.items() if node in served}


def segments(graph: fx.Graph, served: set[fx.Node]) -> list[list[fx.Node]]:
    """The nodes of each plan in order; levels with hardly a step stay as they are."""
    by_level: dict[int, list[fx.Node]] = {}
    for node, level in levels(graph, served).items():
        by_level.setdefault(level, []).append(node)
    return [
        nodes for _, nodes in sorted(by_level.items()) if sum(node.target not in FREE for node in nodes) >= LEAST_STEPS
    ]
