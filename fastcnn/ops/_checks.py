# SPDX-License-Identifier: Apache-2.0
"""The checks of the op pages. Each error names the op, the argument, what it wants and what it got."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

ACTIVATIONS = ("identity", "relu", "relu6", "hardswish", "hardsigmoid", "silu", "sigmoid")
FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SAME = (-1, -1, -1, -1)
_INT_LIMIT = 2**31


def shape_text(x: Tensor) -> str:
    return str(list(x.shape))


def check_input(op: str, name: str, x: Tensor, ndim: int | None = None) -> None:
    """A dense (strided) floating tensor, of ``ndim`` dimensions when given."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name} must be a Tensor, got {type(x).__name__}")
    if x.layout is not torch.strided or x.is_nested:
        kind = "nested" if x.is_nested else str(x.layout).removeprefix("torch.")
        raise TypeError(f"{op}: {name} must be a dense (strided) tensor, got a {kind} one")
    if x.dtype not in FLOATING:
        raise TypeError(f"{op}: {name} must be float32, float64, float16 or bfloat16, got {str(x.dtype).removeprefix('torch.')}")
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
        raise NotImplementedError(f"{op}: {name} carries a forward-mode tangent, which the ops do not propagate; use reverse mode")
    if ndim is not None and x.dim() != ndim:
        raise ValueError(f"{op}: {name} must have {ndim} dimensions{' [N, C, H, W]' if ndim == 4 else ''}, got {shape_text(x)}")


def autocast_active(x: Tensor) -> bool:
    """Whether autocast will choose the dtypes of this call (meta and other devices have no autocast)."""
    kind = x.device.type
    return kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind)


def check_like(op: str, name: str, tensor: Tensor | None, x: Tensor, shape: Sequence[int] | None = None, wanted: str = "",
               float32_allowed: bool = False, any_dtype: bool = False) -> None:
    """An optional companion of x: its device, its dtype (or float32 beside a half type when allowed) and, when given, exactly ``shape``."""
    if tensor is None:
        return
    check_input(op, name, tensor)
    if tensor.device != x.device:
        raise ValueError(f"{op}: {name} must be on the device of x, {x.device}, got {tensor.device}")
    if tensor.dtype != x.dtype and not any_dtype and not (float32_allowed and tensor.dtype is torch.float32 and x.dtype is not torch.float64):
        dtype, got = (str(t.dtype).removeprefix("torch.") for t in (x, tensor))
        raise TypeError(f"{op}: {name} must have the dtype of x, {dtype}{' or float32' if float32_allowed else ''}, got {got}")
    if shape is not None and tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{op}: {name} must be {wanted or list(shape)}, got {shape_text(tensor)}")


def check_activation(op: str, name: str, activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: {name} must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")


def pair(op: str, name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    """``v`` or ``(v_h, v_w)`` -> ``(v_h, v_w)``, each at least ``least`` and below 2^31."""
    values = (value, value) if isinstance(value, int) else tuple(value)
    if len(values) != 2 or not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        raise ValueError(f"{op}: {name} must be an int or two ints (h, w), got {value!r}")
    if min(values) < least or max(values) >= _INT_LIMIT:
        raise ValueError(f"{op}: {name} must be at least {least} and below 2^31, got {value!r}")
    return values


def four_paddings(op: str, padding: int | str | Sequence[int]) -> tuple[int, int, int, int]:
    """Any spelling of padding -> (left, right, top, bottom), or SAME."""
    if isinstance(padding, str):
        if padding == "same":
            return SAME
        if padding == "valid":
            return (0, 0, 0, 0)
        raise ValueError(f"{op}: padding must be numbers, 'same' or 'valid', got {padding!r}")
    if not isinstance(padding, int) and len(padding) == 4:
        values = tuple(padding)
        left_right, top_bottom = pair(op, "padding", values[:2], 0), pair(op, "padding", values[2:], 0)
        return (*left_right, *top_bottom)
    h, w = pair(op, "padding", padding, 0)
    return (w, w, h, h)


def resolve_padding(padding: Sequence[int], size: Sequence[int], kernel: Sequence[int], stride: Sequence[int],
                    dilation: Sequence[int]) -> tuple[int, int, int, int]:
    """SAME -> the four numbers for an input of ``size`` (H, W); the odd pixel goes to the right and the bottom, as in TensorFlow."""
    if tuple(padding) != SAME:
        return tuple(padding)
    found = []
    for i in (1, 0):
        total = max((-(-size[i] // stride[i]) - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1 - size[i], 0)
        found += [total // 2, total - total // 2]
    return tuple(found)


def conv_output_size(size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
                     dilation: Sequence[int]) -> tuple[int, int]:
    """(Ho, Wo); ``padding`` as resolved."""
    ends = (padding[2] + padding[3], padding[0] + padding[1])
    return tuple((size[i] + ends[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1))


def check_window(op: str, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> tuple[int, int]:
    """The kernel fits the padded input; returns (Ho, Wo)."""
    kernel = weight.shape[2:]
    if kernel[0] < 1 or kernel[1] < 1:
        raise ValueError(f"{op}: weight must have a kernel of at least 1x1, got {shape_text(weight)}")
    size = x.shape[2:]
    if size[0] < 1 or size[1] < 1:
        raise ValueError(f"{op}: x must have at least one row and one column, got {shape_text(x)}")
    four = resolve_padding(padding, size, kernel, stride, dilation)
    out = conv_output_size(size, kernel, stride, four, dilation)
    if out[0] < 1 or out[1] < 1:
        window = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
        padded = [size[0] + four[2] + four[3], size[1] + four[0] + four[1]]
        raise ValueError(f"{op}: weight must fit the padded input: the dilated kernel is {window[0]}x{window[1]}, the padded x {padded[0]}x{padded[1]}")
    return out


def is_channels_last(x: Tensor) -> bool:
    """PyTorch's own rule for the memory format of a convolution's output."""
    return x.dim() == 4 and torch._prims_common.suggest_memory_format(x) is torch.channels_last


def empty_like_format(x: Tensor, shape: Sequence[int]) -> Tensor:
    """A new tensor of x's dtype and device, channels_last when x is: what the fakes return."""
    memory_format = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
