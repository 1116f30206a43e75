# SPDX-License-Identifier: Apache-2.0
"""Convolutions with one filter bank a channel to the depthwise op: the last of the rewrites."""

from torch import fx

from ..program import CONV, DEPTHWISE, Conv, Notes, calls, emit, replace, shape


def depthwise(program: fx.GraphModule, notes: Notes) -> int:
    """Returns: the number of depthwise convolutions."""
    count = 0
    for node in calls(program, CONV):
        conv = Conv.of(node)
        if conv.groups > 1 and conv.groups == shape(conv.x)[1] and shape(conv.weight)[1] == 1:
            args = (
                conv.x,
                conv.weight,
                conv.bias,
                conv.residual,
                conv.stride,
                conv.padding,
                conv.dilation,
                conv.activation,
            )
            replace(program, node, emit(program, node, DEPTHWISE, args, like=node))
            count += 1
    return count
