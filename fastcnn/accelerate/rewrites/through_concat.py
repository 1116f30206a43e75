# SPDX-License-Identifier: Apache-2.0
"""Batch norm and activation of concatenated convolutions go to each of them, where they fold (MixNet)."""

from __future__ import annotations

from itertools import accumulate

from torch import fx

from ..program import (
    ACTIVATION,
    BATCH_NORM,
    CONV,
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
)


def through_concat(program: fx.GraphModule, notes: Notes) -> int:
    """Runs before batch norms are folded. Returns: the number of batch norms and activations that were split."""
    return sum(_split(program, node) for node in calls(program, BATCH_NORM, ACTIVATION))


def _split(program: fx.GraphModule, node: fx.Node) -> int:
    concat = node.args[0]
    if not is_op(concat, aten.cat.default) or only_user(concat) is not node or concat.args[1] != 1:
        return 0
    pieces = concat.args[0]
    if not all(_takes_more(piece, concat) for piece in pieces):
        return 0
    if is_op(node, ACTIVATION):
        new = [emit(program, node, ACTIVATION, (piece, node.args[1])) for piece in pieces]
    else:
        vectors = node.args[1:5]
        if node.args[5] is not None or any(v is not None and tensor_of(program, v) is None for v in vectors):
            return 0
        ends = list(accumulate(shape(piece)[1] for piece in pieces))
        new = []
        for piece, start, end in zip(pieces, [0, *ends], ends):
            parts = [None if v is None else add_tensor(program, v.target, tensor_of(program, v)[start:end].clone())
                     for v in vectors]  # fmt: skip
            new.append(emit(program, node, BATCH_NORM, (piece, *parts, *node.args[5:])))
    replace(program, node, emit(program, node, aten.cat.default, (new, 1), like=concat))
    return 1


def _takes_more(piece: fx.Node, concat: fx.Node) -> bool:
    """A convolution, or the batch norm of one, that nothing follows yet but the concatenation."""
    if not is_op(piece, CONV, BATCH_NORM) or only_user(piece) is not concat or piece.args[-1] != "identity":
        return False
    return piece.args[7] is None if is_op(piece, CONV) else piece.args[5] is None and _takes_more(piece.args[0], piece)
