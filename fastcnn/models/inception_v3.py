# SPDX-License-Identifier: Apache-2.0
"""Inception-v3, arXiv:1512.00567: convolutions factorised into smaller and one-sided ones. Keys: torchvision's."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.models.blocks import init_weights, pool_flatten
from fastcnn.models.inception_blocks import InceptionConv
from fastcnn.models.registry import register

Branch = list[tuple[Any, ...]]  # (channels, kernel[, stride, padding]) of each step; two in a tuple stand side by side


class InceptionOutputs(NamedTuple):
    """What training with the auxiliary head returns, in torchvision's order."""

    logits: Tensor
    aux_logits: Tensor


def module_a(pool: int) -> dict[str, Branch]:
    """Figure 5, at 35x35; ``pool`` channels of the pooled branch."""
    return {
        "branch1x1": [(64, 1)],
        "branch5x5": [(48, 1), (64, 5)],
        "branch3x3dbl": [(64, 1), (96, 3), (96, 3)],
        "branch_pool": [(pool, 1)],
    }


def module_b(c: int) -> dict[str, Branch]:
    """Figure 6, at 17x17; ``c`` channels between the one-sided convolutions."""
    return {
        "branch1x1": [(192, 1)],
        "branch7x7": [(c, 1), (c, (1, 7)), (192, (7, 1))],
        "branch7x7dbl": [(c, 1), (c, (7, 1)), (c, (1, 7)), (c, (7, 1)), (192, (1, 7))],
        "branch_pool": [(192, 1)],
    }


SIDES = (384, (1, 3)), (384, (3, 1))
MODULE_C: dict[str, Branch] = {  # figure 7, at 8x8
    "branch1x1": [(320, 1)],
    "branch3x3": [(384, 1), SIDES],
    "branch3x3dbl": [(448, 1), (384, 3), SIDES],
    "branch_pool": [(192, 1)],
}
# Reductions, figure 10: a pool without a convolution is the max pool.
TO_17 = {"branch3x3": [(384, 3, 2, 0)], "branch3x3dbl": [(64, 1), (96, 3), (96, 3, 2, 0)], "branch_pool": []}
TO_8: dict[str, Branch] = {
    "branch3x3": [(192, 1), (320, 3, 2, 0)],
    "branch7x7x3": [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2, 0)],
    "branch_pool": [],
}
MODULES = {
    "5b": module_a(32), "5c": module_a(64), "5d": module_a(64), "6a": TO_17,
    "6b": module_b(128), "6c": module_b(160), "6d": module_b(160), "6e": module_b(192), "7a": TO_8,
    "7b": MODULE_C, "7c": MODULE_C,
}  # fmt: skip


class Mixed(nn.Module):
    """The branches of one table above, concatenated."""

    def __init__(self, in_channels: int, branches: dict[str, Branch]) -> None:
        super().__init__()
        self.out_channels = 0
        self.chains: dict[str, list[list[str]]] = {}
        for name, steps in branches.items():
            channels, self.chains[name] = in_channels, []
            for i, step in enumerate(steps, start=1):
                key = name if len(steps) == 1 else f"{name}_{i}"
                sides = {key: step} if isinstance(step[0], int) else {f"{key}a": step[0], f"{key}b": step[1]}
                for side, arguments in sides.items():
                    self.add_module(side, InceptionConv(channels, *arguments))
                channels = sum(arguments[0] for arguments in sides.values())
                self.chains[name].append(list(sides))
            self.out_channels += channels

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for name, chain in self.chains.items():
            y = x if name != "branch_pool" else F.avg_pool2d(x, 3, 1, 1) if chain else F.max_pool2d(x, 3, 2)
            for sides in chain:
                parts = [self._modules[side](y) for side in sides]
                y = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
            outputs.append(y)
        return torch.cat(outputs, dim=1)


class AuxiliaryHead(nn.Module):
    """Figure 8: a classifier on the last 17x17 grid, for training only."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv0 = InceptionConv(in_channels, 128, 1)
        self.conv1 = InceptionConv(128, 768, 5, padding=0)
        self.fc = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(pool_flatten(self.conv1(self.conv0(F.avg_pool2d(x, 5, 3)))))


class InceptionV3(nn.Module):
    """Table 1. With ``aux_logits`` it returns :class:`InceptionOutputs` in training, of inputs of at least 299x299."""

    def __init__(
        self, num_classes: int = 1000, in_chans: int = 3, dropout: float = 0.5, aux_logits: bool = False
    ) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = InceptionConv(in_chans, 32, 3, 2, padding=0)
        self.Conv2d_2a_3x3 = InceptionConv(32, 32, 3, padding=0)
        self.Conv2d_2b_3x3 = InceptionConv(32, 64, 3)
        self.Conv2d_3b_1x1 = InceptionConv(64, 80, 1)
        self.Conv2d_4a_3x3 = InceptionConv(80, 192, 3, padding=0)
        self.maxpool = nn.MaxPool2d(3, 2)
        channels = 192
        for name, branches in MODULES.items():
            self.add_module(f"Mixed_{name}", mixed := Mixed(channels, branches))
            channels = mixed.out_channels
            if aux_logits and name == "6e":
                self.AuxLogits = AuxiliaryHead(channels, num_classes)
        self.aux_logits = aux_logits
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor | InceptionOutputs:
        x = self.maxpool(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = self.maxpool(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        for name in MODULES:
            x = self._modules[f"Mixed_{name}"](x)
            if name == "6e":
                aux = self.AuxLogits(x) if self.aux_logits and self.training else None
        logits = self.fc(self.dropout(pool_flatten(x)))
        return logits if aux is None else InceptionOutputs(logits, aux)


@register("inception_v3", "inceptionv3")
def inception_v3(**kwargs: Any) -> InceptionV3:
    """Inception-v3 without the auxiliary head."""
    return InceptionV3(**kwargs)


@register("inception_v3_aux")
def inception_v3_aux(**kwargs: Any) -> InceptionV3:
    """Inception-v3 with the auxiliary head."""
    return InceptionV3(aux_logits=True, **kwargs)
