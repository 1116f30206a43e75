# SPDX-License-Identifier: Apache-2.0
"""The calls that nearly every layer makes, recognised in a few comparisons.

The checks of ``_checks`` take several times as long as a small op, and word the errors. A page asks here first; what is
not certainly right goes there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._checks import ACTIVATIONS, FLOATING, SAME

_ONE = {1: (1, 1), (1, 1): (1, 1)}
_STRIDES = {**_ONE, 2: (2, 2), (2, 2): (2, 2)}
_SPELLINGS = (int, tuple)  # True and 1.0 equal 1, as keys too
_PADDINGS = {"same": SAME, "valid": (0, 0, 0, 0)}
for _p in range(6):
    _PADDINGS |= {_p: (_p,) * 4, (_p, _p): (_p,) * 4, (_p, _p, _p, _p): (_p,) * 4}
_ACTIVATIONS = frozenset(ACTIVATIONS)
_FLOATING = frozenset(FLOATING)


def convolution(
    x: Tensor, weight: Tensor, vectors: Sequence[Tensor | None], residual: Tensor | None, stride: object,
    padding: object, dilation: object, groups: int | None, activation: str,
) -> tuple | None:  # fmt: skip
    """``(stride, four paddings, dilation)`` as the ops take them when the arguments are certainly right, else None.

    Certain are CPU tensors of one dtype, dense, with vectors of one value per output channel. ``groups`` None: as many
    as channels.
    """
    try:
        if type(stride) not in _SPELLINGS or type(dilation) not in _SPELLINGS:
            return None
        if type(padding) not in _SPELLINGS and type(padding) is not str:
            return None
        stride, four, dilation = _STRIDES.get(stride), _PADDINGS.get(padding), _ONE.get(dilation)
        if stride is None or four is None or dilation is None or activation not in _ACTIVATIONS:
            return None
        dtype = x.dtype
        if dtype not in _FLOATING or weight.dtype is not dtype or forward_ad._current_level >= 0:
            return None
        if x.layout is not torch.strided or x.is_nested or weight.layout is not torch.strided or not x.is_cpu or not weight.is_cpu:
            return None
        n, channels, height, width = x.shape
        out, per_group, kernel_h, kernel_w = weight.shape
        groups = channels if groups is None else groups
        if type(groups) is not int or groups < 1 or per_group * groups != channels or out % groups:
            return None
        if channels < 1 or out < 1 or kernel_h < 1 or kernel_w < 1 or height < 1 or width < 1:
            return None
        if four is SAME:
            size = -(-height // stride[0]), -(-width // stride[1])
        else:
            rows, columns = height + 2 * four[2] - kernel_h, width + 2 * four[0] - kernel_w
            if rows < 0 or columns < 0:
                return None
            size = rows // stride[0] + 1, columns // stride[1] + 1
        for vector in vectors:
            if vector is not None and (vector.shape != (out,) or vector.dtype is not dtype or not vector.is_cpu):
                return None
        if residual is not None and (
            residual.shape != (n, out, *size) or residual.dtype is not dtype or not residual.is_cpu
        ):
            return None
    except (AttributeError, TypeError, ValueError):  # not a tensor, not hashable, not 4-D: _checks says which
        return None
    return stride, four, dilation


def batch_norm(x: Tensor, vectors: Sequence[Tensor | None], residual: Tensor | None, eps: float, activation: str) -> bool:
    """Whether the arguments of an eval call are certainly right: dense 4-D CPU tensors of one dtype, [C] vectors."""
    try:
        if activation not in _ACTIVATIONS or type(eps) is not float or not 0.0 <= eps < math.inf:
            return False
        dtype = x.dtype
        if dtype not in _FLOATING or x.layout is not torch.strided or x.is_nested or not x.is_cpu or x.dim() != 4:
            return False
        channels = x.shape[1:2]
        for vector in vectors:
            if vector is not None and (vector.shape != channels or vector.dtype is not dtype or not vector.is_cpu):
                return False
        if residual is not None and (residual.shape != x.shape or residual.dtype is not dtype or not residual.is_cpu):
            return False
        return forward_ad._current_level < 0
    except (AttributeError, TypeError):  # not a tensor, not hashable: _checks says which
        return False
