# SPDX-License-Identifier: Apache-2.0
"""BiT, Big Transfer, arXiv:1912.11370: wide ResNet-v2 with group norm and standardised weights. Keys: timm's."""

from typing import Any

import torch
from torch import Tensor, nn

from fastcnn.models.blocks import LoneConv2d
from fastcnn.models.registry import register
from fastcnn.models.resnet_v2 import BatchNormLayers, ResNetV2
from fastcnn.ops import activation


class StdConv2d(LoneConv2d):
    """A convolution by the weights with mean 0 and variance 1 in each filter, computed anew in every call.

    Source: arXiv:1903.10520, sec. 3.
    """

    eps = 1e-8

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))  # float16 cannot hold eps
        variance, mean = torch.var_mean(weight, (1, 2, 3), correction=0, keepdim=True)
        standard = (weight - mean) * torch.rsqrt(variance + self.eps)
        return self.convolve(x, standard.to(self.weight.dtype), residual)


class GroupNormLayers(BatchNormLayers):
    """Standardised convolutions, and norms of 32 groups."""

    @staticmethod
    def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
        return StdConv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)

    @staticmethod
    def norm(channels: int) -> nn.Module:
        return nn.GroupNorm(32, channels)

    @staticmethod
    def stem_pool() -> nn.Module:
        # the zeros take part in the maximum: the stem's output has no ReLU
        return nn.Sequential(nn.ConstantPad2d(1, 0.0), nn.MaxPool2d(3, 2))

    @staticmethod
    def norm_act(norm: nn.Module, x: Tensor) -> Tensor:
        return activation(norm(x), "relu")

    @staticmethod
    def conv_norm_act(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
        return activation(norm(conv(x)), "relu")

    @staticmethod
    def conv_add(conv: nn.Conv2d, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return conv(x, residual)


class BiT(ResNetV2):
    """ResNet-v2 of ``layers``, ``width`` times as wide, with group norm and standardised weights."""

    made_of = GroupNormLayers


@register("bit_r50x1", "resnetv2_50x1_bit")
def bit_r50x1(**kwargs: Any) -> BiT:
    """BiT-R50x1."""
    return BiT(50, 1, **kwargs)


@register("bit_r50x3", "resnetv2_50x3_bit")
def bit_r50x3(**kwargs: Any) -> BiT:
    """BiT-R50x3."""
    return BiT(50, 3, **kwargs)


@register("bit_r101x1", "resnetv2_101x1_bit")
def bit_r101x1(**kwargs: Any) -> BiT:
    """BiT-R101x1."""
    return BiT(101, 1, **kwargs)


@register("bit_r101x3", "resnetv2_101x3_bit")
def bit_r101x3(**kwargs: Any) -> BiT:
    """BiT-R101x3."""
    return BiT(101, 3, **kwargs)


@register("bit_r152x2", "resnetv2_152x2_bit")
def bit_r152x2(**kwargs: Any) -> BiT:
    """BiT-R152x2."""
    return BiT(152, 2, **kwargs)


@register("bit_r152x4", "resnetv2_152x4_bit")
def bit_r152x4(**kwargs: Any) -> BiT:
    """BiT-R152x4."""
    return BiT(152, 4, **kwargs)
