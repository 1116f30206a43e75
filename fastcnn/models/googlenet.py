# SPDX-License-Identifier: Apache-2.0
"""GoogLeNet, arXiv:1409.4842: nine Inception modules, torchvision's with batch norm and the paper's. Keys: torchvision's.

Where the paper has 5x5 convolutions torchvision has 3x3, a slip of its TensorFlow original which its weights keep.
"""

from typing import Any, NamedTuple

from torch import Tensor, nn

from fastcnn.models.blocks import init_weights, pool_flatten
from fastcnn.models.inception_blocks import Branches, InceptionConv, inception_branch
from fastcnn.models.registry import register
from fastcnn.ops import activation


class Row(NamedTuple):
    """One module of table 1: 1x1, 3x3 with its reduction, 5x5 with its reduction, projection of the pool."""

    c1: int
    r3: int
    c3: int
    r5: int
    c5: int
    cp: int


#               c1   r3   c3  r5   c5   cp
ROWS = {
    "3a": Row( 64,  96, 128, 16,  32,  32),
    "3b": Row(128, 128, 192, 32,  96,  64),
    "4a": Row(192,  96, 208, 16,  48,  64),
    "4b": Row(160, 112, 224, 24,  64,  64),
    "4c": Row(128, 128, 256, 24,  64,  64),
    "4d": Row(112, 144, 288, 32,  64,  64),
    "4e": Row(256, 160, 320, 32, 128, 128),
    "5a": Row(256, 160, 320, 32, 128, 128),
    "5b": Row(384, 192, 384, 48, 128, 128),
}  # fmt: skip


class GoogLeNetOutputs(NamedTuple):
    """What training with auxiliary heads returns, in torchvision's order."""

    logits: Tensor
    aux_logits2: Tensor
    aux_logits1: Tensor


def inception(in_channels: int, row: Row, kernel: int, norm: bool) -> Branches:
    """Figure 2 (b); ``kernel`` is that of the third branch."""
    return Branches(
        branch1=inception_branch(in_channels, (row.c1, 1), norm=norm),
        branch2=inception_branch(in_channels, (row.r3, 1), (row.c3, 3), norm=norm),
        branch3=inception_branch(in_channels, (row.r5, 1), (row.c5, kernel), norm=norm),
        branch4=inception_branch(in_channels, (row.cp, 1), pool=nn.MaxPool2d(3, 1, 1), norm=norm),
    )


class AuxiliaryHead(nn.Module):
    """Section 5: a classifier on a module in the middle, for training only."""

    def __init__(self, in_channels: int, num_classes: int, dropout: float, pool: nn.Module, norm: bool) -> None:
        super().__init__()
        self.pool = pool
        self.conv = InceptionConv(in_channels, 128, 1, norm=norm)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.fc2 = nn.Linear(1024, num_classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.pool(x)).flatten(1)
        return self.fc2(self.dropout(activation(self.fc1(x), "relu")))


class GoogLeNet(nn.Module):
    """Table 1, and with ``aux_logits`` the two heads of section 5: in training it returns :class:`GoogLeNetOutputs`.

    Args:
        dropout_aux: of the auxiliary heads.
        published: the net of the paper, with true 5x5 convolutions, no batch norm, local response norms, every pool
            between the stages 3x3, and heads that pool 5x5 at stride 3; else torchvision's.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        dropout: float = 0.2,
        dropout_aux: float = 0.7,
        aux_logits: bool = False,
        published: bool = False,
    ) -> None:
        super().__init__()
        norm = not published
        self.conv1 = InceptionConv(in_chans, 64, 7, 2, norm=norm)
        self.maxpool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.norm1 = nn.LocalResponseNorm(5) if published else nn.Identity()
        self.conv2 = InceptionConv(64, 64, 1, norm=norm)
        self.conv3 = InceptionConv(64, 192, 3, norm=norm)
        self.norm2 = nn.LocalResponseNorm(5) if published else nn.Identity()
        self.maxpool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        channels, taps = 192, {}
        for name, row in ROWS.items():
            self.add_module(f"inception{name}", inception(channels, row, 5 if published else 3, norm))
            taps[name] = channels = row.c1 + row.c3 + row.c5 + row.cp
        self.maxpool3 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.maxpool4 = nn.MaxPool2d(3 if published else 2, 2, ceil_mode=True)
        self.aux_logits = aux_logits
        if aux_logits:
            for key, name in (("aux1", "4a"), ("aux2", "4d")):
                pool = nn.AvgPool2d(5, 3) if published else nn.AdaptiveAvgPool2d(4)
                self.add_module(key, AuxiliaryHead(taps[name], num_classes, dropout_aux, pool, norm))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor | GoogLeNetOutputs:
        with_aux = self.aux_logits and self.training
        x = self.norm1(self.maxpool1(self.conv1(x)))
        x = self.maxpool2(self.norm2(self.conv3(self.conv2(x))))
        x = self.maxpool3(self.inception3b(self.inception3a(x)))
        x = self.inception4a(x)
        aux1 = self.aux1(x) if with_aux else None
        x = self.inception4d(self.inception4c(self.inception4b(x)))
        aux2 = self.aux2(x) if with_aux else None
        x = self.inception5b(self.inception5a(self.maxpool4(self.inception4e(x))))
        x = self.fc(self.dropout(pool_flatten(x)))
        return GoogLeNetOutputs(x, aux2, aux1) if with_aux else x


@register("googlenet")
def googlenet(**kwargs: Any) -> GoogLeNet:
    """torchvision's GoogLeNet without auxiliary heads."""
    return GoogLeNet(**kwargs)


@register("googlenet_aux")
def googlenet_aux(**kwargs: Any) -> GoogLeNet:
    """torchvision's GoogLeNet with its two auxiliary heads."""
    return GoogLeNet(aux_logits=True, **kwargs)


@register("googlenet_5x5")
def googlenet_5x5(dropout: float = 0.4, **kwargs: Any) -> GoogLeNet:
    """The GoogLeNet of the paper."""
    return GoogLeNet(dropout=dropout, published=True, **kwargs)
