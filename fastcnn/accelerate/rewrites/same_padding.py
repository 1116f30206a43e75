# SPDX-License-Identifier: Apache-2.0
"""Zero padding in front of a convolution becomes the convolution's own: TensorFlow's SAME as timm writes it out."""

from torch import fx

from ..program import CONV, Conv, Notes, arguments, aten, calls, emit, is_map, is_op, only_user, replace


def same_padding(program: fx.GraphModule, notes: Notes) -> int:
    """Returns: the number of paddings that are gone."""
    count = 0
    for node in calls(program, aten.pad.default, aten.constant_pad_nd.default):
        given = arguments(node)
        zero = given.get("mode", "constant") == "constant" and not given["value"]
        pads = list(given["pad"])
        readers = list(node.users)
        fits = (
            zero and is_map(given["self"]) and len(pads) in (2, 4) and all(isinstance(p, int) and p >= 0 for p in pads)
        )
        if not (fits and readers and all(is_op(user, CONV) and _reads_as_x(user, node) for user in readers)):
            notes.leave(node, "a padding that is no constant zero frame in front of convolutions alone")
            continue
        pads += [0] * (4 - len(pads))
        for user in readers:
            conv = Conv.of(user)
            if conv.padding[0] < 0:  # SAME depends on the size, which the padding changes
                break
            together = tuple(a + b for a, b in zip(conv.padding, pads, strict=True))
            replace(program, user, emit(program, user, CONV, conv._replace(x=given["self"], padding=together).args))
        else:
            count += 1
    return count


def _reads_as_x(conv: fx.Node, node: fx.Node) -> bool:
    return Conv.of(conv).x is node and (only_user(node) is conv or sum(a is node for a in conv.args) == 1)
