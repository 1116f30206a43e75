# SPDX-License-Identifier: Apache-2.0
"""The functional API: each function checks its arguments once and calls its op ``torch.ops.fastcnn.<name>``."""

from .activation import activation, hardsigmoid, relu, relu6, sigmoid, silu
from .batch_norm_act import batch_norm_act
from .channel_shuffle import channel_shuffle, channel_shuffle_concat
from .conv_bn_act import conv_bn_act
from .depthwise_conv2d import depthwise_conv2d
from .depthwise_se_gate import depthwise_se_gate
from .global_avg_pool import global_avg_pool
from .hardswish import hardswish
from .max_pool2d import max_pool2d
from .pointwise_conv2d import pointwise_conv2d
from .se_gate import se_gate
from .se_scale import se_scale

__all__ = ["activation", "batch_norm_act", "channel_shuffle", "channel_shuffle_concat", "conv_bn_act", "depthwise_conv2d", "depthwise_se_gate",
           "global_avg_pool", "hardsigmoid", "hardswish", "max_pool2d", "pointwise_conv2d", "relu", "relu6", "se_gate", "se_scale", "sigmoid", "silu"]
