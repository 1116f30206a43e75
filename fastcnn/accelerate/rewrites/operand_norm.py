# SPDX-License-Identifier: Apache-2.0
"""Batch norm and activation into the 1x1 convolution behind them, as DenseNet and pre-activation nets have them.

``activation(x * s + t)`` is computed as the convolution reads x, with ``s = gamma / sqrt(var + eps)`` and
``t = beta - mean * s`` in float64. An activation stands between, so the weights cannot take s and t up (``fold_batch_norm``).
"""

from __future__ import annotations

import torch
from torch import fx

from ..program import BATCH_NORM, POINTWISE, Conv, Notes, add_tensor, calls, emit, replace, value
from .fold_batch_norm import scale_and_shift
from .operand_gate import pointwise_readers


def operand_norm(program: fx.GraphModule, notes: Notes) -> int:
    """Returns: the number of batch norms that became the operand of their readers."""
    count = 0
    for node in calls(program, BATCH_NORM):
        x, residual, activation = node.args[0], node.args[5], node.args[7]
        readers, found = pointwise_readers(node), scale_and_shift(program, node)
        if not readers:
            notes.also(node, "its result is read by others than 1x1 convolutions of stride 1")
        elif residual is not None:
            notes.also(
                node, "a residual is added to its result, which the convolution behind it cannot do as it reads"
            )
        elif found is None:
            notes.also(node, "a vector of it is computed from the input")
        else:
            dtype = torch.promote_types(value(x).dtype, torch.float32)
            layer = node.meta.get("layer") or node.name
            vectors = [
                add_tensor(program, f"{layer}.{leaf}", each.to(dtype))
                for leaf, each in zip(("scale", "shift"), found, strict=True)
            ]
            for reader in readers:
                conv = Conv.of(reader)
                args = (x, conv.weight, conv.bias, conv.residual, None, *vectors, activation, conv.activation)
                replace(program, reader, emit(program, reader, POINTWISE, args))
            count += 1
    return count
