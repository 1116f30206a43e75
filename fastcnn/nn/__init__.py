# SPDX-License-Identifier: Apache-2.0
"""Drop-in modules over ``fastcnn.ops``: constructors, attributes and state_dict keys of what they replace."""

from fastcnn.nn.activation import HardSwish, activation_name
from fastcnn.nn.conv import Conv2dSame, ConvBNAct, DepthwiseConv2d, fused_conv_bn_act
from fastcnn.nn.norm import BatchNormAct2d, fused_bn_act
from fastcnn.nn.pooling import GlobalAvgPool2d, MaxPool2d
from fastcnn.nn.shuffle import ChannelShuffle
from fastcnn.nn.squeeze_excite import SqueezeExcite

__all__ = [
    "BatchNormAct2d",
    "ChannelShuffle",
    "Conv2dSame",
    "ConvBNAct",
    "DepthwiseConv2d",
    "GlobalAvgPool2d",
    "HardSwish",
    "MaxPool2d",
    "SqueezeExcite",
    "activation_name",
    "fused_bn_act",
    "fused_conv_bn_act",
]
