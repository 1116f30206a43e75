# SPDX-License-Identifier: Apache-2.0
"""A depthwise convolution and the squeeze-and-excitation scales of its result, which nothing reads for its means."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks
from ._register import inference_only, register, register_autocast
from .depthwise_conv2d import check as check_convolution
from .depthwise_conv2d import depthwise_conv2d_reference
from .depthwise_conv2d import fake as fake_convolution
from .depthwise_conv2d import flops as flops_of_convolution
from .se_gate import check_layers, se_gate_reference
from .se_gate import flops as flops_of_gate

_OP = "depthwise_se_gate"


def depthwise_se_gate_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], activation: str, squeeze: str, gate: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    y = depthwise_conv2d_reference(x, weight, bias, None, stride, padding, dilation, activation)
    return y, se_gate_reference(y, w1, b1, w2, b2, squeeze, gate)


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], activation: str, squeeze: str, gate: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    y = fake_convolution(x, weight, bias, None, stride, padding, dilation, activation)
    return y, x.new_empty(y.shape[:2], dtype=torch.promote_types(x.dtype, torch.float32))


def _flops(x: tuple, weight: tuple, bias: object, w1: tuple, *arguments: object, out_shape: tuple) -> int:
    return flops_of_convolution(x, weight, out_shape=out_shape[0]) + flops_of_gate(x, w1)


_op = register(_OP, depthwise_se_gate_reference, _fake, _flops)
inference_only(_op, "depthwise_conv2d and se_scale")
register_autocast(_op, cast=(0, 1))


def depthwise_se_gate(
    x: Tensor, weight: Tensor, bias: Tensor | None, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor,
    stride: int | Sequence[int] = 1, padding: int | str | Sequence[int] = 0, dilation: int | Sequence[int] = 1,
    activation: str = "identity", squeeze: str = "relu", gate: str = "hardsigmoid",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """:func:`depthwise_conv2d`, and :func:`se_gate` of its result, for inference: ``(y, scale)``.

    The compiled CUDA kernel leaves the sums of ``y`` as it computes it (channels_last; 3x3, 5x5 or 7x7 at stride 1 or
    2): ``y`` is not read for its means. :func:`pointwise_conv2d` takes ``scale`` as its ``gate``.

    Args:
        x, weight, bias, stride, padding, dilation, activation: of :func:`depthwise_conv2d`, with ``x`` ``[N, C, H, W]``.
        w1, b1: ``[R, C * m]`` or ``[R, C * m, 1, 1]``, and ``[R]``: the squeeze layer.
        w2, b2: ``[C * m, R]`` or ``[C * m, R, 1, 1]``, and ``[C * m]``: the excite layer.
        squeeze, gate: names of :func:`activation`, after the first and the second layer.
    Returns: ``y`` ``[N, C * m, Ho, Wo]`` in the dtype and memory format of ``x``, and ``scale`` ``[N, C * m]`` in
        float32 (float64 for float64).
    Memory format: contiguous and channels_last. Dtypes: float32, float64, float16, bfloat16; bias, w1, b1, w2 and b2 in
        x's dtype or float32. Under autocast x and weight are cast. The means are of ``y`` before or after it is
        rounded to its dtype, as the kernel has it. Determinism: bitwise.
    Raises: TypeError or ValueError naming the argument that does not fit; RuntimeError when a gradient is asked for.
    Source: arXiv:1905.02244, sec. 5; arXiv:1709.01507, eq. 2-3.

    >>> layers = torch.ones(1, 1), torch.zeros(1), torch.ones(1, 1), torch.zeros(1)
    >>> y, scale = fastcnn.ops.depthwise_se_gate(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), None, *layers, gate="relu")
    >>> y.item(), scale.tolist()
    (4.0, [[4.0]])
    """
    geometry = check_convolution(_OP, x, weight, bias, None, stride, padding, dilation, activation)
    check_layers(_OP, x, weight.shape[0], w1, b1, w2, b2)
    _checks.check_activation(_OP, "squeeze", squeeze)
    _checks.check_activation(_OP, "gate", gate)
    return _op(x, weight, bias, w1, b1, w2, b2, *geometry, activation, squeeze, gate)
