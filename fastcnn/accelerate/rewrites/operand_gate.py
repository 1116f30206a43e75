# SPDX-License-Identifier: Apache-2.0
"""The scale of a squeeze-and-excitation into the 1x1 convolution behind it: the scaled map is never stored."""

from __future__ import annotations

import operator

from torch import fx

from ..program import CONV, POINTWISE, SE_GATE, SE_SCALE, Conv, Notes, calls, emit, is_op, replace, shape


def operand_gate(program: fx.GraphModule, notes: Notes) -> int:
    """Returns: the number of ``fastcnn.se_scale`` that became ``fastcnn.se_gate`` and an operand of their readers."""
    count = 0
    for node in calls(program, SE_SCALE):
        scaled = [user for user in node.users if is_op(user, operator.getitem) and user.args[1] == 0 and user.users]
        readers = pointwise_readers(scaled[0]) if len(scaled) == 1 else []
        if not readers or any(user.users for user in node.users if user is not scaled[0]):
            continue
        gate = emit(program, node, SE_GATE, node.args)
        for reader in readers:
            conv = Conv.of(reader)
            args = (node.args[0], conv.weight, conv.bias, conv.residual, gate, None, None, "identity", conv.activation)
            replace(program, reader, emit(program, reader, POINTWISE, args))
        count += 1
    return count


def pointwise_readers(node: fx.Node) -> list[fx.Node]:
    """The convolutions that read ``node``, when all who read it are 1x1 of one group and stride 1, and it is their x."""
    readers = list(node.users)
    return readers if all(is_op(user, CONV) and _is_pointwise(Conv.of(user), node) for user in readers) else []


def _is_pointwise(conv: Conv, x: fx.Node) -> bool:
    fits = shape(conv.weight)[2:] == (1, 1) and conv.stride == (1, 1) and conv.groups == 1
    unpadded = conv.padding in ((0,) * 4, (-1,) * 4)  # SAME pads a 1x1 window of stride 1 by nothing
    return fits and unpadded and conv.x is x and x not in (conv.weight, conv.bias, conv.residual)
