# SPDX-License-Identifier: Apache-2.0
"""MobileNetV1, arXiv:1704.04861: depthwise separable convolutions, a width multiplier. Keys: pytorchcv's.

The pool is global, so that the paper's 192, 160 and 128 inputs work too (pytorchcv's is 7x7): its resolution multiplier.
"""

from typing import Any

from torch import Tensor, nn

from fastcnn.models.blocks import ConvBN, init_weights, pool_flatten
from fastcnn.models.registry import register
from fastcnn.nn import SqueezeExcite

# Output channels of table 1's depthwise separable units; each stage but the first halves the size in its first unit.
STAGES = [[64], [128, 128], [256, 256], [512] * 6, [1024, 1024]]


class DepthwiseSeparable(nn.Module):
    """3x3 depthwise, 1x1, each with BN and activation (figure 3, right); a squeeze-excite if ``reduction`` is not 0."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, activation: str, reduction: int) -> None:
        super().__init__()
        self.dw_conv = ConvBN(in_channels, in_channels, 3, stride, in_channels, activation)
        self.pw_conv = ConvBN(in_channels, out_channels, 1, activation=activation)
        if reduction:
            self.se = SqueezeExcite(out_channels, max(1, out_channels // reduction), gate="sigmoid")

    def forward(self, x: Tensor) -> Tensor:
        y = self.pw_conv(self.dw_conv(x))
        return self.se(y) if "se" in self._modules else y


class MobileNetV1(nn.Module):
    """Table 1.

    Args:
        activation: ReLU in the paper, ReLU6 in TensorFlow's and timm's trained nets.
        reduction: of a squeeze-excite behind each unit; 0 for none.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        width_mult: float = 1.0,
        dropout: float = 0.0,
        activation: str = "relu",
        reduction: int = 0,
    ) -> None:
        super().__init__()
        channels = int(32 * width_mult)
        self.features = nn.Sequential()
        self.features.add_module("init_block", ConvBN(in_chans, channels, 3, 2, activation=activation))
        for i, widths in enumerate(STAGES, start=1):
            stage = nn.Sequential()
            for j, width in enumerate(widths, start=1):
                out_channels = int(width * width_mult)
                stride = 2 if j == 1 and i > 1 else 1
                unit = DepthwiseSeparable(channels, out_channels, stride, activation, reduction)
                stage.add_module(f"unit{j}", unit)
                channels = out_channels
            self.features.add_module(f"stage{i}", stage)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.dropout(pool_flatten(self.features(x))))


@register("mobilenet_v1_x1_0", "mobilenet_w1")
def mobilenet_v1_x1_0(**kwargs: Any) -> MobileNetV1:
    """MobileNetV1, full width."""
    return MobileNetV1(**kwargs)


@register("mobilenet_v1_x0_75", "mobilenet_w3d4")
def mobilenet_v1_x0_75(**kwargs: Any) -> MobileNetV1:
    """MobileNetV1, three quarters of the width."""
    return MobileNetV1(width_mult=0.75, **kwargs)


@register("mobilenet_v1_x0_5", "mobilenet_wd2")
def mobilenet_v1_x0_5(**kwargs: Any) -> MobileNetV1:
    """MobileNetV1, half the width."""
    return MobileNetV1(width_mult=0.5, **kwargs)


@register("mobilenet_v1_x0_25", "mobilenet_wd4")
def mobilenet_v1_x0_25(**kwargs: Any) -> MobileNetV1:
    """MobileNetV1, a quarter of the width."""
    return MobileNetV1(width_mult=0.25, **kwargs)


@register("mobilenet_v1_timm", "mobilenetv1_100")
def mobilenet_v1_timm(**kwargs: Any) -> MobileNetV1:
    """MobileNetV1 with ReLU6, for the weights of timm's ``mobilenetv1_100``."""
    return MobileNetV1(activation="relu6", **kwargs)


@register("mobilenet_v1_x1_0_192")
def mobilenet_v1_x1_0_192(**kwargs: Any) -> MobileNetV1:
    """MobileNetV1 for 192 pixels: table 7, with the weights' layout and ReLU6 of timm's ``mobilenetv1_100``."""
    return MobileNetV1(activation="relu6", **kwargs)


@register("mobilenet_v1_x1_0_160")
def mobilenet_v1_x1_0_160(**kwargs: Any) -> MobileNetV1:
    """MobileNetV1 for 160 pixels: table 7, with the weights' layout and ReLU6 of timm's ``mobilenetv1_100``."""
    return MobileNetV1(activation="relu6", **kwargs)


@register("mobilenet_v1_x1_0_128")
def mobilenet_v1_x1_0_128(**kwargs: Any) -> MobileNetV1:
    """MobileNetV1 for 128 pixels: table 7, with the weights' layout and ReLU6 of timm's ``mobilenetv1_100``."""
    return MobileNetV1(activation="relu6", **kwargs)


@register("se_mobilenet_v1")
def se_mobilenet_v1(**kwargs: Any) -> MobileNetV1:
    """SE-MobileNet, arXiv:1709.01507, table 3."""
    return MobileNetV1(**{"reduction": 16, **kwargs})
