# SPDX-License-Identifier: Apache-2.0
"""What the families share: width rounding, the inverted residual, chains of sibling conv and BN, the start."""

import math
from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fastcnn import ops
from fastcnn.nn import ConvBNAct, SqueezeExcite, activation_name, fused_bn_act, fused_conv_bn_act
from fastcnn.ops import conv_bn_act, global_avg_pool


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

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return fused_conv_bn_act(self.conv, self.bn, x, self.activation, residual)


class Chain(nn.Module):
    """Layers in a row under the running numbers of a torch Sequential; convolution, norm and activation run as one op.

    Args:
        layers: modules, and names of :func:`fastcnn.ops.activation`, which take a number but are no children: each joins
            the convolution, norm or other layer before it. A batch norm joins the convolution before it.
    Raises: ValueError for an activation without a kernel, or without a layer before it.

    >>> Chain(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), "relu", nn.MaxPool2d(2))(torch.zeros(1, 3, 8, 8)).shape
    torch.Size([1, 8, 3, 3])
    """

    def __init__(self, *layers: nn.Module | str) -> None:
        super().__init__()
        # (key of a convolution, of its norm or None, activation), or (key of another layer, None, activation)
        self.steps: list[tuple[str, str | None, str]] = []
        before: nn.Module | None = None
        for number, layer in enumerate(layers):
            if isinstance(layer, str):
                if before is None:
                    raise ValueError(f"Chain: {layer!r} at {number} must follow a module")
                self.steps[-1] = (*self.steps[-1][:2], activation_name(layer))
                before = None
                continue
            self.add_module(str(number), layer)
            if isinstance(before, nn.Conv2d) and isinstance(layer, nn.BatchNorm2d):
                self.steps[-1] = (self.steps[-1][0], str(number), "identity")
            else:
                self.steps.append((str(number), None, "identity"))
            before = layer

    def forward(self, x: Tensor) -> Tensor:
        children = self._modules
        for key, norm, activation in self.steps:
            layer = children[key]
            if isinstance(layer, nn.Conv2d):
                x = fused_conv_bn_act(layer, children[norm] if norm else None, x, activation)
            elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
                x = fused_bn_act(layer, x, activation)
            else:
                x = layer(x)
                if activation != "identity":
                    x = ops.activation(x, activation)
        return x

    def extra_repr(self) -> str:
        return f"activations={[activation for _, _, activation in self.steps]}"


class ConvBNChain(Chain):
    """A :class:`Chain` of convolutions, each with its BN and activation.

    Args:
        steps: ``(conv, activation)``; an "identity" takes no number, as it is no layer there.
    """

    def __init__(self, steps: Iterable[tuple[nn.Conv2d, str]]) -> None:
        layers: list[nn.Module | str] = []
        for conv, activation in steps:
            layers += [conv, nn.BatchNorm2d(conv.out_channels)]
            layers += [] if activation == "identity" else [activation]
        super().__init__(*layers)


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


def numbered(prefix: str, modules: Iterable[nn.Module]) -> nn.Sequential:
    """A Sequential whose children are called ``prefix1``, ``prefix2``... (pytorchcv's stages and units)."""
    return nn.Sequential(OrderedDict((f"{prefix}{i}", module) for i, module in enumerate(modules, start=1)))


def init_convolutions(model: nn.Module) -> None:
    """The residual nets' start: Kaiming fan-out convolutions; batch norm and linear layers as torch makes them."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")


def conv_bn(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A convolution that keeps the size but for its stride, and its batch norm."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(out_channels)


class LoneConv2d(nn.Conv2d):
    """:class:`torch.nn.Conv2d` with neither BN nor activation behind it; a ``residual`` is added in the same pass."""

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.convolve(x, self.weight, residual)

    def convolve(self, x: Tensor, weight: Tensor, residual: Tensor | None) -> Tensor:
        geometry = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        return conv_bn_act(x, weight, bias=self.bias, residual=residual, **geometry)
