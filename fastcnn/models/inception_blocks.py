# SPDX-License-Identifier: Apache-2.0
"""What the Inception nets share: convolutions of two sizes, branches side by side, the scaled residual."""

from typing import Any

import torch
from torch import Tensor, nn

from fastcnn import ops
from fastcnn.models.blocks import ConvBN
from fastcnn.nn.conv import is_plain


class InceptionConv(ConvBN):
    """:class:`ConvBN` with a kernel of two sizes, any padding, a bias, an eps; with ReLU.

    Args:
        padding: None for the one that keeps the size at stride 1.
        norm: False for a convolution with bias alone, as nets had them before batch norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | None = None,
        bias: bool = False,
        eps: float = 1e-3,
        norm: bool = True,
    ) -> None:
        nn.Module.__init__(self)
        height, width = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        around = (height // 2, width // 2) if padding is None else padding
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, around, bias=bias or not norm)
        self.bn = nn.BatchNorm2d(out_channels, eps) if norm else None
        self.activation = "relu"


def inception_branch(
    in_channels: int, *steps: tuple[Any, ...], pool: nn.Module | None = None, **options: Any
) -> nn.Module:
    """A row of :class:`InceptionConv` behind a pool or none; a convolution alone is no Sequential.

    Args:
        steps: what follows ``in_channels`` in the constructor: channels, kernel, perhaps stride and padding.
        options: of every convolution.
    """
    layers = [] if pool is None else [pool]
    for step in steps:
        layers.append(InceptionConv(in_channels, *step, **options))
        in_channels = step[0]
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


class Branches(nn.Module):
    """Modules that read the same input, their outputs concatenated in the order of the arguments."""

    def __init__(self, **branches: nn.Module) -> None:
        super().__init__()
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.children()], dim=1)


_CONVS = frozenset({nn.Conv2d})


def scaled_residual(conv: nn.Conv2d, x: Tensor, residual: Tensor, scale: float, activation: str = "relu") -> Tensor:
    """``activation(scale * conv(x) + residual)`` as one op: the scale is that of a batch norm which does nothing else.

    A ``conv`` of another type, or with a hook, runs as itself, composed with the rest.

    Source: arXiv:1602.07261, sec. 3.3.
    """
    if not is_plain(conv, _CONVS):
        y = conv(x) * scale + residual
        return y if activation == "identity" else ops.activation(y, activation)
    dtype = torch.promote_types(conv.weight.dtype, torch.float32)  # a scale in half precision would be another one
    ones = conv.weight.new_ones(conv.out_channels, dtype=dtype)
    zeros = torch.zeros_like(ones)
    return ops.conv_bn_act(
        x, conv.weight, ones * scale, zeros, zeros, ones, conv.bias, residual, conv.stride, conv.padding,
        eps=0.0, activation=activation,
    )  # fmt: skip
