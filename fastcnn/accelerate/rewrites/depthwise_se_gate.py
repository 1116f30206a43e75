# SPDX-License-Identifier: Apache-2.0
"""A squeeze-and-excitation's gate with the depthwise convolution that it pools: nothing reads the map for its means.

Off on a CPU, whose convolution leaves no sums: the map is read again there, within one operator as within two.
"""

from __future__ import annotations

import operator

from torch import fx

from ..program import DEPTHWISE, DEPTHWISE_SE_GATE, SE_GATE, Notes, calls, emit, is_op, replace


def depthwise_se_gate(program: fx.GraphModule, notes: Notes) -> int:
    """Returns: the number of gates that go with a depthwise convolution now."""
    place = {node: i for i, node in enumerate(program.graph.nodes)}
    count = 0
    for gate in calls(program, SE_GATE):
        conv, w1, b1, w2, b2, squeeze, excite = gate.args
        if not is_op(conv, DEPTHWISE) or max(place.get(each, len(place)) for each in (w1, b1, w2, b2)) > place[conv]:
            continue
        x, weight, bias, residual, *window = conv.args
        if residual is not None:
            continue
        args = (x, weight, bias, w1, b1, w2, b2, *window, squeeze, excite)
        both = emit(program, conv, DEPTHWISE_SE_GATE, args, like=conv)
        y, scale = (emit(program, conv, operator.getitem, (both, i)) for i in (0, 1))
        replace(program, gate, scale)
        replace(program, conv, y)
        count += 1
    return count
