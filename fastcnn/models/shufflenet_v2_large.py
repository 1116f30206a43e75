# SPDX-License-Identifier: Apache-2.0
"""The large ShuffleNetV2 of table 6, arXiv:1807.11164: 50 layers, and 164 with squeeze-excite and a residual.

Four stages as ResNet's, the first without a stride. The paper has no code for them; here the squeeze-excite stands
behind the last batch norm of a branch, and the branch's input is added before the last ReLU, as in SE-ResNet.
"""

from typing import Any

from torch import Tensor, nn

from fastcnn import ops
from fastcnn.models.blocks import ConvBNChain, init_weights, pool_flatten
from fastcnn.models.registry import register
from fastcnn.nn import ConvBNAct, SqueezeExcite, fused_conv_bn_act

V50 = ([3, 4, 6, 3], [244, 488, 976, 1952], [64])  # repeats, channels, stem
V164 = ([10, 10, 23, 10], [340, 680, 1360, 2720], [64, 64, 128])
LAST = 2048


def _conv(in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1) -> nn.Conv2d:
    groups = in_channels if kernel > 1 else 1
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)


class LargeUnit(nn.Module):
    """Figure 3's units; a stage's first sees all channels in both branches, whatever its stride.

    Args:
        first: whether the unit is its stage's first.
        residual: whether a branch over half of the channels adds its input.
        reduction: of the squeeze-excite; 0 for none.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, first: bool, residual: bool, reduction: int
    ) -> None:
        super().__init__()
        half = out_channels // 2
        self.first, self.residual = first, residual and not first
        if first:
            steps = [(_conv(in_channels, in_channels, 3, stride), "identity"), (_conv(in_channels, half), "relu")]
            self.branch1 = ConvBNChain(steps)
        cin = in_channels if first else half
        self.branch2 = ConvBNChain([(_conv(cin, half), "relu"), (_conv(half, half, 3, stride), "identity")])
        self.expand, self.bn = _conv(half, half), nn.BatchNorm2d(half)
        if reduction:
            self.se = SqueezeExcite(half, half // reduction, gate="sigmoid")

    def forward(self, x: Tensor) -> Tensor:
        by, kept = (self.branch1(x), x) if self.first else x.chunk(2, dim=1)
        y = self.branch2(kept)
        residual = kept if self.residual else None
        if "se" in self._modules:
            y = self.se(fused_conv_bn_act(self.expand, self.bn, y))
            y = ops.activation(y if residual is None else y + residual, "relu")
        else:
            y = fused_conv_bn_act(self.expand, self.bn, y, "relu", residual)
        return ops.channel_shuffle_concat(by, y)


class ShuffleNetV2Large(nn.Module):
    """A stem of 3x3 convolutions, a pool, four stages, a 1x1 convolution of 2048 channels."""

    def __init__(
        self,
        repeats: list[int],
        channels: list[int],
        stem: list[int],
        num_classes: int = 1000,
        in_chans: int = 3,
        residual: bool = False,
        reduction: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [in_chans, *stem]
        convs = [ConvBNAct(a, b, 3, 2 if i == 0 else 1) for i, (a, b) in enumerate(zip(widths, stem, strict=False))]
        self.conv1 = nn.Sequential(*convs)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        width = stem[-1]
        for i, (count, out_channels) in enumerate(zip(repeats, channels, strict=True), start=2):
            stage = nn.Sequential()
            for j in range(count):
                stride = 2 if j == 0 and i > 2 else 1
                stage.append(LargeUnit(width, out_channels, stride, j == 0, residual, reduction))
                width = out_channels
            self.add_module(f"stage{i}", stage)
        self.conv6 = ConvBNAct(width, LAST, 1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(LAST, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        x = self.stage5(self.stage4(self.stage3(self.stage2(x))))
        return self.fc(self.dropout(pool_flatten(self.conv6(x))))


@register("shufflenet_v2_50")
def shufflenet_v2_50(**kwargs: Any) -> ShuffleNetV2Large:
    """ShuffleNetV2-50, table 6."""
    return ShuffleNetV2Large(*V50, **kwargs)


@register("se_shufflenet_v2_164")
def se_shufflenet_v2_164(**kwargs: Any) -> ShuffleNetV2Large:
    """SE-ShuffleNetV2-164 with residual, table 6."""
    return ShuffleNetV2Large(*V164, **{"residual": True, "reduction": 16, **kwargs})
