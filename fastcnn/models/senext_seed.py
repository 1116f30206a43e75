# SPDX-License-Identifier: Apache-2.0
"""The one SE-ResNeXt block of document 002, without a net around it, arXiv:1709.01507. Keys: the document's."""

from torch import Tensor, nn

from fastcnn.models.blocks import ConvBN
from fastcnn.models.registry import register
from fastcnn.nn import SqueezeExcite
from fastcnn.ops import activation


class SENextBlock(nn.Module):
    """``relu(squeeze_excite(conv_bn1..3(x)) + shortcut(x))``.

    Args:
        width: channels of the grouped 3x3 convolution.
        squeeze: channels inside the squeeze-excite; the document's ``reduction`` is this number, not a ratio.
    """

    def __init__(
        self, in_channels: int, width: int, out_channels: int, groups: int, squeeze: int = 16, stride: int = 1
    ) -> None:
        super().__init__()
        self.conv_bn1 = ConvBN(in_channels, width, 1)
        self.conv_bn2 = ConvBN(width, width, 3, stride, groups)
        self.conv_bn3 = ConvBN(width, out_channels, 1, activation="identity")
        self.scale = SqueezeExcite(out_channels, squeeze, gate="sigmoid")
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = ConvBN(in_channels, out_channels, 1, stride, activation="identity")

    def forward(self, x: Tensor) -> Tensor:
        y = self.scale(self.conv_bn3(self.conv_bn2(self.conv_bn1(x))))
        return activation(y + (x if self.downsample is None else self.downsample(x)), "relu")


@register("senext_block_seed")
def senext_block_seed(num_classes: int = 0, in_chans: int = 256) -> SENextBlock:
    """The document's example: 128 channels in 32 groups between 256 and 256; it has no classes."""
    if num_classes:
        raise ValueError(f"senext_block_seed: a block has no classes, got num_classes = {num_classes}")
    return SENextBlock(in_chans, 128, 256, 32)
