# SPDX-License-Identifier: Apache-2.0
"""What the families share: width rounding, the inverted residual, chains of sibling conv and BN, the start."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fastcnn import ops
from fastcnn.nn import ConvBNAct, SqueezeExcite, fused_conv_bn_act
from fastcnn.nn.conv import is_plain
from fastcnn.ops import global_avg_pool


def make_divisible(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of ``divisor`` that is not more than 10 % below ``channels``.

    >>> make_divisible(24 * 1.4), make_divisible(11.2)
    (32, 16)
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def drop_path(x: Tensor, p: float) -> Tensor:
    """Zero whole samples with probability ``p`` and scale the others by ``1 / (1 - p)``. Source: arXiv:1603.09382."""
    keep = torch.empty([x.shape[0], 1, 1, 1], dtype=x.dtype, device=x.device).bernoulli_(1.0 - p)
    return x * (keep.div_(1.0 - p) if p < 1.0 else keep)


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise k x k, squeeze-excite, project 1x1; a residual where the shape allows. Keys: ``block.*``.

    Args:
        expanded: channels of the depthwise convolution; equal to ``in_channels`` for none to expand.
        squeeze: channels inside the squeeze-excite; 0 for none.
        gate, squeeze_activation: activations of the squeeze-excite.
        drop: probability of :func:`drop_path` in training.
        norm: eps and momentum of the batch norms.
    Source: arXiv:1801.04381, arXiv:1905.02244, arXiv:1905.11946.
    """

    def __init__(
        self,
        in_channels: int,
        expanded: int,
        out_channels: int,
        kernel: int,
        stride: int,
        activation: str,
        squeeze: int = 0,
        gate: str = "hardsigmoid",
        squeeze_activation: str = "relu",
        drop: float = 0.0,
        **norm: float,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if expanded != in_channels:
            layers.append(ConvBNAct(in_channels, expanded, 1, activation=activation, **norm))
        layers.append(ConvBNAct(expanded, expanded, kernel, stride, groups=expanded, activation=activation, **norm))
        if squeeze:
            layers.append(SqueezeExcite(expanded, squeeze, squeeze_activation, gate))
        layers.append(ConvBNAct(expanded, out_channels, 1, activation=None, **norm))
        self.block = nn.Sequential(*layers)
        self.has_residual = stride == 1 and in_channels == out_channels
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        *body, project = self.block
        y = x
        for layer in body:
            y = layer(y)
        if not self.has_residual:
            return project(y)
        if self.training and self.drop > 0.0:
            return drop_path(project(y), self.drop) + x
        return project(y, x)


class ConvBN(nn.Module):
    """Convolution, batch norm, activation under the keys ``conv`` and ``bn`` (pytorchcv's)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return fused_conv_bn_act(self.conv, self.bn, x, self.activation)


class ConvBNChain(nn.Module):
    """Convolutions, each with its BN and activation, under the running numbers of a torch Sequential of all three.

    Args:
        steps: ``(conv, activation)``; an "identity" takes no number, as it is no layer there.
    """

    def __init__(self, steps: Iterable[tuple[nn.Conv2d, str]]) -> None:
        super().__init__()
        self.steps: list[tuple[str, str, str]] = []
        index = 0
        for conv, activation in steps:
            keys = str(index), str(index + 1)
            self.add_module(keys[0], conv)
            self.add_module(keys[1], nn.BatchNorm2d(conv.out_channels))
            self.steps.append((*keys, activation))
            index += 2 if activation == "identity" else 3

    def forward(self, x: Tensor) -> Tensor:
        children = self._modules
        for conv, bn, activation in self.steps:
            x = fused_conv_bn_act(children[conv], children[bn], x, activation)
        return x

    def extra_repr(self) -> str:
        return f"activations={[activation for _, _, activation in self.steps]}"


def pool_flatten(x: Tensor) -> Tensor:
    """``[N, C, H, W] -> [N, C]``, the mean of each plane."""
    return global_avg_pool(x).flatten(1)


def init_weights(model: nn.Module, uniform_head: bool = False) -> None:
    """The references' start for training: Kaiming fan-out convolutions, unit BN, small linear layers, zero biases."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            bound = 1.0 / math.sqrt(module.out_features)
            if uniform_head:
                nn.init.uniform_(module.weight, -bound, bound)
            else:
                nn.init.normal_(module.weight, 0.0, 0.01)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


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
