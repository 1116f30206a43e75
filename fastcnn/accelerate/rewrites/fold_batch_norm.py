# SPDX-License-Identifier: Apache-2.0
"""Batch norm into the convolution or linear layer before it, or, where that is exact, behind it.

``w' = w * s`` and ``b' = b * s + t`` with ``s = gamma / sqrt(var + eps)`` and ``t = beta - mean * s``, in float64.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from ..program import (
    BATCH_NORM,
    CONV,
    Conv,
    Notes,
    add_tensor,
    arguments,
    aten,
    calls,
    emit,
    is_op,
    only_user,
    replace,
    tensor_of,
    value,
)


def fold_batch_norm(program: fx.GraphModule, notes: Notes) -> int:
    """Returns: the number of batch norms that are gone."""
    count = 0
    for node in calls(program, BATCH_NORM):
        count += _into_producer(program, notes, node) or _into_reader(program, notes, node)
    for node in calls(program, aten.batch_norm.default):
        count += _into_linear(program, notes, node)
    return count


def scale_and_shift(program: fx.GraphModule, norm: fx.Node) -> tuple[Tensor, Tensor] | None:
    """(s, t) in float64 of a batch norm on running statistics, None when a vector of it is no weight."""
    given = arguments(norm)
    nodes = [given[name] for name in ("weight", "bias", "running_mean", "running_var")]
    gamma, beta, mean, var = (tensor_of(program, node) for node in nodes)
    if (
        mean is None
        or var is None
        or any(n is not None and t is None for n, t in zip(nodes, (gamma, beta), strict=False))
    ):
        return None
    scale = torch.rsqrt(var.double() + given["eps"])
    scale = scale if gamma is None else scale * gamma.double()
    shift = -mean.double() * scale
    return scale, shift if beta is None else shift + beta.double()


def _into_producer(program: fx.GraphModule, notes: Notes, norm: fx.Node) -> int:
    conv_node, residual, activation = norm.args[0], norm.args[5], norm.args[7]
    if not is_op(conv_node, CONV):
        notes.leave(norm, f"its input is no convolution but {_name(conv_node)}")
        return 0
    conv = Conv.of(conv_node)
    weight, bias = tensor_of(program, conv.weight), tensor_of(program, conv.bias)
    found = scale_and_shift(program, norm)
    if conv.activation != "identity" or conv.residual is not None:
        notes.leave(norm, "an activation or a sum stands between the convolution and it")
    elif weight is None or (conv.bias is not None and bias is None) or found is None:
        notes.leave(norm, "a weight of the convolution or of the batch norm is computed from the input")
    elif not _may_fold(norm, conv_node):
        notes.leave(norm, "the convolution's result is read by others too, or is an output")
    else:
        scale, shift = found
        new_bias = shift if bias is None else shift + bias.double() * scale
        _rewrite(program, norm, conv_node, conv._replace(residual=residual, activation=activation),
                 weight.double() * scale.view(-1, 1, 1, 1), new_bias)  # fmt: skip
        return 1
    return 0


def _may_fold(norm: fx.Node, conv: fx.Node) -> bool:
    """Only it reads the convolution, or all who do are batch norms: then each gets a convolution of its own."""
    return all(is_op(user, BATCH_NORM) and user.args[0] is conv and user.args[5] is not conv for user in conv.users)


def _into_reader(program: fx.GraphModule, notes: Notes, norm: fx.Node) -> int:
    """Batch norm in front of an unpadded convolution: zeros of padding would have to become ``-t / s``."""
    x, residual, activation = norm.args[0], norm.args[5], norm.args[7]
    reader = only_user(norm)
    if residual is not None or activation != "identity" or not is_op(reader, CONV):
        return 0
    conv = Conv.of(reader)
    weight, bias = tensor_of(program, conv.weight), tensor_of(program, conv.bias)
    found = scale_and_shift(program, norm)
    if conv.x is not norm or weight is None or (conv.bias is not None and bias is None) or found is None:
        return 0
    if any(conv.padding):
        notes.leave(norm, "the convolution behind it pads with zeros, which the batch norm does not see")
        return 0
    out, per_group = weight.shape[:2]
    groups = torch.arange(out, device=weight.device) // (out // conv.groups)
    channels = groups[:, None] * per_group + torch.arange(per_group, device=weight.device)
    scale, shift = (vector[channels][:, :, None, None] for vector in found)
    new_bias = (weight.double() * shift).sum((1, 2, 3))
    _rewrite(program, reader, norm, conv._replace(x=x), weight.double() * scale,
             new_bias if bias is None else new_bias + bias.double())  # fmt: skip
    return 1


def _rewrite(program: fx.GraphModule, last: fx.Node, named: fx.Node, conv: Conv, weight: Tensor, bias: Tensor) -> None:
    dtype = value(conv.weight).dtype
    layer = named.meta.get("layer") or named.name
    new = [
        add_tensor(program, f"{layer}.{leaf}", each.to(dtype)) for leaf, each in (("weight", weight), ("bias", bias))
    ]
    conv = conv._replace(weight=new[0], bias=new[1])
    replace(program, last, emit(program, last, CONV, conv.args, like=named))


def _into_linear(program: fx.GraphModule, notes: Notes, norm: fx.Node) -> int:
    given = arguments(norm)
    linear = given["input"]
    if given["training"] or given["running_mean"] is None:
        notes.leave(norm, "it has no running statistics: the batch's own are used")
        return 0
    found = scale_and_shift(program, norm)
    fits = (
        is_op(linear, aten.linear.default)
        and only_user(linear) is norm
        and value(norm).dim() == 2
        and found is not None
    )
    x, weight_node, bias_node = (*linear.args, None)[:3] if fits else (None, None, None)
    weight, bias = tensor_of(program, weight_node), tensor_of(program, bias_node)
    if not fits or weight is None or (bias_node is not None and bias is None):
        notes.leave(norm, f"its input is no linear layer that it alone reads but {_name(linear)}")
        return 0
    scale, shift = found
    vectors = {
        "weight": weight.double() * scale[:, None],
        "bias": shift if bias is None else shift + bias.double() * scale,
    }
    layer = linear.meta.get("layer") or linear.name
    nodes = [add_tensor(program, f"{layer}.{leaf}", each.to(weight.dtype)) for leaf, each in vectors.items()]
    replace(program, norm, emit(program, norm, aten.linear.default, (x, *nodes), like=linear))
    return 1


def _name(node: Any) -> str:
    if not isinstance(node, fx.Node):
        return str(node)
    if node.target is operator.getitem:
        return _name(node.args[0])
    return "the model's input" if node.op == "placeholder" else str(node.target).removesuffix(".default")
