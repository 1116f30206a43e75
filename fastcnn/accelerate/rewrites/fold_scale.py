# SPDX-License-Identifier: Apache-2.0
"""A constant factor of a map, one or one a channel, goes into the weights of a convolution: layer scale, NFNet's alpha."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from ..program import (
    CONV,
    Conv,
    Notes,
    add_tensor,
    aten,
    calls,
    emit,
    is_map,
    is_op,
    only_user,
    replace,
    shape,
    tensor_of,
    value,
)


def fold_scale(program: fx.GraphModule, notes: Notes) -> int:
    """Runs after batch norms are folded and before activations are fused. Returns: the number of factors that are gone."""
    count = 0
    for node in calls(program, aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar):
        found = _factor(program, node)
        if found is not None:
            count += _into_producer(program, node, *found) or _into_readers(program, node, *found)
    return count


def _factor(program: fx.GraphModule, node: fx.Node) -> tuple[fx.Node, Tensor] | None:
    """The map that is multiplied, and by what, in float64: one element, or one a channel."""
    if len(node.args) != 2 or node.kwargs:
        return None
    for x, by in (node.args, node.args[::-1]):
        if not is_map(x) or value(x).shape != value(node).shape or value(x).dtype != value(node).dtype:
            continue
        if is_op(node, aten.div) and x is not node.args[0]:
            continue
        factor = (
            torch.tensor(float(by), dtype=torch.float64) if isinstance(by, (int, float)) else tensor_of(program, by)
        )
        if factor is None or (factor.numel() > 1 and list(factor.shape)[-3:] != [shape(x)[1], 1, 1]):
            continue
        factor = factor.detach().double().flatten()
        factor = 1 / factor if is_op(node, aten.div) else factor
        if factor.numel() in (1, shape(x)[1]) and torch.isfinite(factor).all():
            return x, factor
    return None


def _into_producer(program: fx.GraphModule, node: fx.Node, x: fx.Node, factor: Tensor) -> int:
    if not is_op(x, CONV) or only_user(x) is not node:
        return 0
    conv = Conv.of(x)
    weight, bias = tensor_of(program, conv.weight), tensor_of(program, conv.bias)
    if (
        conv.activation != "identity"
        or conv.residual is not None
        or weight is None
        or (conv.bias is not None and bias is None)
    ):
        return 0
    conv = conv._replace(weight=_weight(program, conv.weight, weight.double() * factor.view(-1, 1, 1, 1)),
                         bias=bias if bias is None else _weight(program, conv.bias, bias.double() * factor))  # fmt: skip
    replace(program, node, emit(program, node, CONV, conv.args, like=x))
    return 1


def _into_readers(program: fx.GraphModule, node: fx.Node, x: fx.Node, factor: Tensor) -> int:
    """Zeros of padding stay zeros under a factor, so padded convolutions take it too."""
    readers = list(node.users)
    for reader in readers:
        if not is_op(reader, CONV) or reader.args[0] is not node or reader.args[7] is node:
            return 0
        if tensor_of(program, reader.args[1]) is None:
            return 0
    for reader in readers:
        conv = Conv.of(reader)
        weight = tensor_of(program, conv.weight)
        out, per_group = weight.shape[:2]
        groups = torch.arange(out, device=weight.device) // (out // conv.groups)
        channels = groups[:, None] * per_group + torch.arange(per_group, device=weight.device)
        scale = factor.expand(shape(x)[1])[channels][:, :, None, None]
        conv = conv._replace(x=x, weight=_weight(program, conv.weight, weight.double() * scale))
        replace(program, reader, emit(program, reader, CONV, conv.args))
    return 1 if readers else 0


def _weight(program: fx.GraphModule, old: fx.Node, new: Tensor) -> fx.Node:
    return add_tensor(program, old.target, new.to(value(old).dtype))
