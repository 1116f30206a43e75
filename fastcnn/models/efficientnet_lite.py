# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-Lite (tensorflow/tpu, 2020): no squeeze-excite, ReLU6 for SiLU, TensorFlow's SAME padding.

Keys of timm's ``tf_efficientnet_lite*``. The stem, the head and the repeats of the first and last stage are not scaled.
"""

import math
from typing import Any

from torch import Tensor, nn

from fastcnn.models.blocks import init_weights, make_divisible, pool_flatten
from fastcnn.models.efficientnet import ROWS
from fastcnn.models.registry import register
from fastcnn.nn import Conv2dSame, fused_conv_bn_act


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    if stride == 1:  # SAME is symmetric there, and known before the input is
        return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, groups=groups, bias=False)
    return Conv2dSame(in_channels, out_channels, kernel, stride, groups=groups, bias=False)


def _bn(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class DepthwiseSeparable(nn.Module):
    """The row without expansion: depthwise, then 1x1 without activation."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv_dw, self.bn1 = _conv(in_channels, in_channels, kernel, stride, in_channels), _bn(in_channels)
        self.conv_pw, self.bn2 = _conv(in_channels, out_channels, 1), _bn(out_channels)
        self.has_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = fused_conv_bn_act(self.conv_dw, self.bn1, x, "relu6")
        return fused_conv_bn_act(self.conv_pw, self.bn2, y, residual=x if self.has_residual else None)


class LinearBottleneck(nn.Module):
    """Expand with ReLU6, depthwise with ReLU6, project without activation."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.conv_pw, self.bn1 = _conv(in_channels, hidden, 1), _bn(hidden)
        self.conv_dw, self.bn2 = _conv(hidden, hidden, kernel, stride, hidden), _bn(hidden)
        self.conv_pwl, self.bn3 = _conv(hidden, out_channels, 1), _bn(out_channels)
        self.has_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = fused_conv_bn_act(self.conv_pw, self.bn1, x, "relu6")
        y = fused_conv_bn_act(self.conv_dw, self.bn2, y, "relu6")
        return fused_conv_bn_act(self.conv_pwl, self.bn3, y, residual=x if self.has_residual else None)


class EfficientNetLite(nn.Module):
    """The rows of EfficientNet-B0, scaled in width and depth."""

    def __init__(
        self, width: float, depth: float, num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.0
    ) -> None:
        super().__init__()
        channels = 32
        self.conv_stem, self.bn1 = _conv(in_chans, channels, 3, 2), _bn(channels)
        stages = []
        for t, k, c, n, s in ROWS:
            repeats = n if c in (ROWS[0].c, ROWS[-1].c) else math.ceil(n * depth)
            out_channels = make_divisible(c * width)
            blocks: list[nn.Module] = []
            for i in range(repeats):
                stride = s if i == 0 else 1
                if t == 1:
                    blocks.append(DepthwiseSeparable(channels, out_channels, k, stride))
                else:
                    blocks.append(LinearBottleneck(channels, out_channels, k, stride, t))
                channels = out_channels
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head, self.bn2 = _conv(channels, 1280, 1), _bn(1280)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(1280, num_classes)
        init_weights(self, uniform_head=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(fused_conv_bn_act(self.conv_stem, self.bn1, x, "relu6"))
        x = fused_conv_bn_act(self.conv_head, self.bn2, x, "relu6")
        return self.classifier(self.dropout(pool_flatten(x)))


@register("efficientnet_lite0", "tf_efficientnet_lite0")
def efficientnet_lite0(**kwargs: Any) -> EfficientNetLite:
    """EfficientNet-Lite0, 224 pixels."""
    return EfficientNetLite(1.0, 1.0, **kwargs)


@register("efficientnet_lite1", "tf_efficientnet_lite1")
def efficientnet_lite1(**kwargs: Any) -> EfficientNetLite:
    """EfficientNet-Lite1, 240 pixels."""
    return EfficientNetLite(1.0, 1.1, **kwargs)


@register("efficientnet_lite2", "tf_efficientnet_lite2")
def efficientnet_lite2(**kwargs: Any) -> EfficientNetLite:
    """EfficientNet-Lite2, 260 pixels."""
    return EfficientNetLite(1.1, 1.2, **kwargs)


@register("efficientnet_lite3", "tf_efficientnet_lite3")
def efficientnet_lite3(**kwargs: Any) -> EfficientNetLite:
    """EfficientNet-Lite3, 280 pixels."""
    return EfficientNetLite(1.2, 1.4, **kwargs)


@register("efficientnet_lite4", "tf_efficientnet_lite4")
def efficientnet_lite4(**kwargs: Any) -> EfficientNetLite:
    """EfficientNet-Lite4, 300 pixels."""
    return EfficientNetLite(1.4, 1.8, **kwargs)
