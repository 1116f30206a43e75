# SPDX-License-Identifier: Apache-2.0
"""The functional API: each function checks its arguments once and calls its op ``torch.ops.fastcnn.<name>``."""

from .activation import activation, hardsigmoid, relu, relu6, sigmoid, silu
from .conv_bn_act import conv_bn_act
from .hardswish import hardswish

__all__ = ["activation", "conv_bn_act", "hardsigmoid", "hardswish", "relu", "relu6", "sigmoid", "silu"]
