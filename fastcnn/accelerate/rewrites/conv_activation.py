# SPDX-License-Identifier: Apache-2.0
"""What follows a convolution or a batch norm goes into it: a channel's bias, the sum of a residual, the activation."""

from __future__ import annotations

from torch import fx

from ..program import (
    ACTIVATION,
    BATCH_NORM,
    CONV,
    Conv,
    Notes,
    add_tensor,
    aten,
    calls,
    emit,
    is_op,
    only_user,
    replace,
    shape,
    tensor_of,
    value,
)

_RESIDUAL, _KIND = {CONV: 7, BATCH_NORM: 5}, -1


def conv_activation(program: fx.GraphModule, notes: Notes) -> int:
    """Returns: the number of operators that went into the one before them."""
    count = sum(_add(program, notes, node) for node in calls(program, aten.add.Tensor))
    return count + sum(_activation(program, notes, node) for node in calls(program, ACTIVATION))


def _open(node: fx.Node) -> bool:
    """A convolution or batch norm with nothing behind it yet, or with a sum alone."""
    return is_op(node, CONV, BATCH_NORM) and node.args[_KIND] == "identity"


def _add(program: fx.GraphModule, notes: Notes, node: fx.Node) -> int:
    operands = node.args[:2]
    if len(node.args) != 2 or node.kwargs or not all(isinstance(each, fx.Node) for each in operands):
        return 0
    for producer, other in (operands[::-1], operands):
        if (
            not _open(producer)
            or only_user(producer) is not node
            or producer.args[_RESIDUAL[producer.target]] is not None
        ):
            continue
        if is_op(producer, CONV) and _is_channel_vector(program, other, producer):
            return _bias(program, node, producer, other)
        if _same_shape(producer, other) and _same_shape(producer, node):
            args = list(producer.args)
            args[_RESIDUAL[producer.target]] = other
            replace(program, node, emit(program, node, producer.target, args, like=producer))
            return 1
    if any(is_op(each, CONV, BATCH_NORM) for each in operands):
        notes.leave(node, "the convolution before it has another reader, an activation, or another shape")
    return 0


def _same_shape(a: fx.Node, b: fx.Node) -> bool:
    before, after = value(a), value(b)
    equal = len(before.shape) == len(after.shape) and all(
        bool(p == q) for p, q in zip(before.shape, after.shape, strict=True)
    )
    return equal and before.dtype == after.dtype


def _is_channel_vector(program: fx.GraphModule, node: fx.Node, conv: fx.Node) -> bool:
    found = tensor_of(program, node)
    channels = shape(conv)[1]
    return found is not None and found.numel() == channels and list(found.shape)[-3:] == [channels, 1, 1]


def _bias(program: fx.GraphModule, node: fx.Node, producer: fx.Node, vector: fx.Node) -> int:
    conv = Conv.of(producer)
    bias = tensor_of(program, conv.bias)
    if conv.bias is not None and bias is None:
        return 0
    added = tensor_of(program, vector).flatten()
    layer = producer.meta.get("layer") or producer.name
    new = add_tensor(program, f"{layer}.bias", added.clone() if bias is None else added + bias)
    replace(program, node, emit(program, node, CONV, conv._replace(bias=new).args, like=producer))
    return 1


def _activation(program: fx.GraphModule, notes: Notes, node: fx.Node) -> int:
    producer, kind = node.args
    if not is_op(producer, CONV, BATCH_NORM):
        return 0
    if not _open(producer):
        notes.leave(node, "the convolution before it has an activation already")
    elif only_user(producer) is not node:
        notes.leave(node, "the convolution before it has another reader")
    else:
        replace(program, node, emit(program, node, producer.target, (*producer.args[:_KIND], kind), like=producer))
        return 1
    return 0
