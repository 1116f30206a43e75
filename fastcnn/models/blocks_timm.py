# SPDX-License-Identifier: Apache-2.0
"""Inverted residuals and the net around them, under timm's keys."""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.functional import pad

from fastcnn import ops
from fastcnn.models.blocks import drop_path, init_weights, pool_flatten
from fastcnn.models.rows import Row
from fastcnn.nn import Conv2dSame, SqueezeExcite, fused_conv_bn_act
from fastcnn.nn.conv import is_plain


class Style(NamedTuple):
    """What all blocks of a net have in common.

    ``padding`` is that of a stride: "symmetric", TensorFlow's "same", or "static", that of "same" and an even input.
    """

    activation: str = "relu"
    gate: str = "sigmoid"
    padding: str = "symmetric"
    eps: float = 1e-5
    momentum: float = 0.1

    def conv(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
        if stride > 1 and self.padding == "same":  # without a stride it is symmetric, and known before the input is
            return Conv2dSame(in_channels, out_channels, kernel, stride, groups=groups, bias=False)
        padding = 0 if stride > 1 and self.padding == "static" else kernel // 2
        return nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)

    def norm(self, channels: int) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(channels, self.eps, self.momentum)


def strided(conv: nn.Conv2d, bn: nn.BatchNorm2d, x: Tensor, activation: str) -> Tensor:
    """A convolution that may have a stride and the style's "static" padding."""
    missing = conv.kernel_size[0] - conv.stride[0]
    if conv.padding == (0, 0) and missing > 0:
        x = pad(x, (missing // 2, missing - missing // 2) * 2)
    return fused_conv_bn_act(conv, bn, x, activation)


class ReduceExpand(SqueezeExcite):
    """The squeeze-excite of :mod:`fastcnn.nn` under the keys ``conv_reduce`` and ``conv_expand``."""

    def __init__(self, channels: int, squeeze: int, activation: str, gate: str) -> None:
        super().__init__(channels, squeeze, activation, gate)
        self._modules = {"conv_reduce": self.fc1, "conv_expand": self.fc2}

    def forward(self, x: Tensor) -> Tensor:
        fc1, fc2 = self._modules.values()
        if is_plain(fc1, frozenset({nn.Conv2d})) and is_plain(fc2, frozenset({nn.Conv2d})):
            return ops.se_scale(x, fc1.weight, fc1.bias, fc2.weight, fc2.bias, self.activation, self.gate)
        squeezed = ops.activation(fc1(ops.global_avg_pool(x)), self.activation)
        return x * ops.activation(fc2(squeezed), self.gate)


class Block(nn.Module):
    """Expand 1x1 (``expanded`` of None: no such layer), depthwise k x k, squeeze-excite, project 1x1; a residual."""

    def __init__(
        self,
        in_channels: int,
        expanded: int | None,
        out_channels: int,
        kernel: int,
        stride: int,
        style: Style,
        squeeze: int = 0,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        channels, steps = expanded or in_channels, iter(("bn1", "bn2", "bn3"))
        if expanded:
            self.conv_pw = style.conv(in_channels, channels, 1)
            self.add_module(next(steps), style.norm(channels))
        self.conv_dw = style.conv(channels, channels, kernel, stride, channels)
        self.add_module(next(steps), style.norm(channels))
        if squeeze:
            inner = "silu" if style.activation == "silu" else "relu"
            self.se = ReduceExpand(channels, squeeze, inner, style.gate)
        self.add_module("conv_pwl" if expanded else "conv_pw", style.conv(channels, out_channels, 1))
        self.add_module(next(steps), style.norm(out_channels))
        self.activation = style.activation
        self.has_residual = stride == 1 and in_channels == out_channels
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        y, layers = x, self._modules
        if "conv_pwl" in layers:
            y = fused_conv_bn_act(self.conv_pw, self.bn1, y, self.activation)
            y = strided(self.conv_dw, self.bn2, y, self.activation)
            project, bn = self.conv_pwl, self.bn3
        else:
            y = strided(self.conv_dw, self.bn1, y, self.activation)
            project, bn = self.conv_pw, self.bn2
        if "se" in layers:
            y = layers["se"](y)
        if self.has_residual and self.training and self.drop > 0.0:
            return drop_path(fused_conv_bn_act(project, bn, y), self.drop) + x
        return fused_conv_bn_act(project, bn, y, residual=x if self.has_residual else None)


class TimmNet(nn.Module):
    """A stem, the rows, a 1x1 convolution, the classifier; the squeeze is a quarter of a block's input."""

    def __init__(
        self,
        rows: list[Row],
        stem: int,
        head: int,
        style: Style,
        num_classes: int = 1000,
        in_chans: int = 3,
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
    ) -> None:
        super().__init__()
        self.activation = style.activation
        self.conv_stem, self.bn1 = style.conv(in_chans, stem, 3, 2), style.norm(stem)
        self.blocks = nn.Sequential()
        channels, done, total = stem, 0, sum(row.n for row in rows)
        for t, k, c, n, s, se in rows:
            stage = nn.Sequential()
            for i in range(n):
                expanded, squeeze = channels * t if t > 1 else None, max(1, channels // 4) if se else 0
                stride, drop = s if i == 0 else 1, stochastic_depth * done / total
                stage.append(Block(channels, expanded, c, k, stride, style, squeeze, drop))
                channels, done = c, done + 1
            self.blocks.append(stage)
        self.conv_head, self.bn2 = style.conv(channels, head, 1), style.norm(head)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(head, num_classes)
        init_weights(self, uniform_head=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(strided(self.conv_stem, self.bn1, x, self.activation))
        x = fused_conv_bn_act(self.conv_head, self.bn2, x, self.activation)
        return self.classifier(self.dropout(pool_flatten(x)))
