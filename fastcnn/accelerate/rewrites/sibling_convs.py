# SPDX-License-Identifier: Apache-2.0
"""Convolutions of one input as one (the branches of an Inception block): the input is read once, the results are slices."""

from __future__ import annotations

import torch
from torch import fx

from ..channels import channels, emit_slice
from ..program import (
    CONV,
    SHUFFLE_CONCAT,
    Conv,
    Notes,
    add_tensor,
    aten,
    calls,
    emit,
    is_map,
    is_op,
    replace,
    tensor_of,
)

MOST_CHANNELS = 2048  # of the merged result: wider ones are bound by arithmetic, not by reading their input
READ_SLICES = (SHUFFLE_CONCAT, aten.cat.default, aten.slice.Tensor, aten.add.Tensor, aten.mul.Tensor)


def sibling_convs(program: fx.GraphModule, notes: Notes) -> int:
    """Merge convolutions of one input that have kernel, stride, padding, dilation and activation in common.

    Left alone: grouped ones, those with a residual, those whose result is returned, and those whose slices would have to
    be copied for more than the input that is read once.
    Returns: how many convolutions became part of another.
    """
    count = 0
    seen: set[fx.Node] = set()
    for node in calls(program, CONV):
        x = node.args[0]
        if x in seen:
            continue
        seen.add(x)
        alike: dict[tuple, dict[str, list[fx.Node]]] = {}
        for reader in sorted(x.users):
            if is_op(reader, CONV) and _fits(program, reader, x):
                conv = Conv.of(reader)
                size = tuple(tensor_of(program, conv.weight).shape[2:])
                with_others = alike.setdefault((size, conv.stride, conv.padding, conv.dilation), {})
                with_others.setdefault(conv.activation, []).append(reader)
        for by_activation in alike.values():
            if len(by_activation) > 1:
                _leave_different(by_activation, notes)
            for nodes in by_activation.values():
                count += _merge(program, nodes, notes)
    return count


def _fits(program: fx.GraphModule, node: fx.Node, x: fx.Node) -> bool:
    conv = Conv.of(node)
    constant = tensor_of(program, conv.weight) is not None and (
        conv.bias is None or tensor_of(program, conv.bias) is not None
    )
    returned = any(user.op == "output" for user in node.users)
    return conv.x is x and is_map(node) and conv.groups == 1 and conv.residual is None and constant and not returned


def _leave_different(by_activation: dict[str, list[fx.Node]], notes: Notes) -> None:
    for activation, nodes in by_activation.items():
        others = ", ".join(other for other in by_activation if other != activation)
        for node in nodes:
            notes.leave(
                node, f"not merged with convolutions of its input that end in {others}: it ends in {activation}"
            )


def _merge(program: fx.GraphModule, nodes: list[fx.Node], notes: Notes) -> int:
    group: list[fx.Node] = []
    total = 0
    for node in nodes:
        distinct = all(node.args[1] is not other.args[1] for other in group)
        if distinct and total + channels(node) <= MOST_CHANNELS:
            group.append(node)
            total += channels(node)
    if len(group) < 2:
        return 0
    if not _saves(program, group):
        for node in group:
            notes.leave(node, "merged with others of its input, more would be copied for its readers than is read once")
        return 0
    first = group[0]
    convs = [Conv.of(node) for node in group]
    weights = [tensor_of(program, conv.weight) for conv in convs]
    biases = [tensor_of(program, conv.bias) for conv in convs]
    name = convs[0].weight.target.rpartition(".")[0] or "merged"
    weight = add_tensor(program, f"{name}.merged_weight", torch.cat(weights))
    bias = None
    if any(each is not None for each in biases):
        filled = [w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases, strict=True)]
        bias = add_tensor(program, f"{name}.merged_bias", torch.cat(filled))
    merged = emit(program, first, CONV, convs[0]._replace(weight=weight, bias=bias).args, like=first)
    start = 0
    for node in group:
        stop = start + channels(node)
        replace(program, node, emit_slice(program, node, merged, start, stop))
        start = stop
    return len(group) - 1


def _saves(program: fx.GraphModule, group: list[fx.Node]) -> bool:
    """Whether the input's channels that are read once only outnumber those of slices, written and read, that are copied.

    1x1 convolutions and concats read a slice in place; whatever else reads one may copy it first.
    """
    conv = Conv.of(group[0])
    kernel = tensor_of(program, conv.weight).shape[2] * tensor_of(program, conv.weight).shape[3]
    pixels = 1 if kernel == 1 else conv.stride[0] * conv.stride[1]  # of the input, to one of the result
    copied = sum(channels(node) for node in group if not all(_reads_slices(program, user, node) for user in node.users))
    return (len(group) - 1) * channels(conv.x) * pixels > 2 * copied


def _reads_slices(program: fx.GraphModule, user: fx.Node, node: fx.Node) -> bool:
    if not is_op(user, CONV):
        return is_op(user, *READ_SLICES)
    conv = Conv.of(user)
    weight = tensor_of(program, conv.weight)
    pointwise = weight is not None and tuple(weight.shape[2:]) == (1, 1) and conv.groups == 1
    return conv.x is node and pointwise and not any(conv.padding)
