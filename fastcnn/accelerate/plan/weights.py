# SPDX-License-Identifier: Apache-2.0
"""The weights of a plan, packed into one vector of float32 for the vector width of this machine."""

from __future__ import annotations

import torch
from torch import Tensor

from .words import ALIGNMENT


class Blob:
    """Collects packed weights; ``offset`` of each in floats. Equal requests for one tensor share their place."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.size = 0
        self._parts: list[tuple[int, Tensor]] = []

    def add(self, packed: Tensor) -> int:
        offset = self.size
        self._parts.append((offset, packed.reshape(-1)))
        self.size += -(-packed.numel() // ALIGNMENT) * ALIGNMENT
        return offset

    def tensor(self) -> Tensor:
        blob = torch.zeros(self.size, dtype=torch.float32)
        for offset, part in self._parts:
            blob[offset : offset + part.numel()] = part
        return blob

    def matrix(self, weight: Tensor) -> int:
        """``[O, K]`` -> ``[ceil(O / lanes)][K][lanes]``."""
        return self.add(_by_vectors(weight, self.lanes))

    def groups(self, weight: Tensor) -> int:
        """``[G, O, K]`` -> ``[G][ceil(O / lanes)][K][lanes]``."""
        return self.add(torch.stack([_by_vectors(each, self.lanes) for each in weight]))

    def bf16(self, weight: Tensor) -> int:
        """``[O, taps, C]`` -> bfloat16 ``[ceil(O / 16)][taps ceil(C / 32)][16][16][2]``: pairs of input channels together."""
        outputs, taps, channels = weight.shape
        padded = torch.nn.functional.pad(weight.detach(), (0, -channels % 32, 0, 0, 0, -outputs % 16))
        tiles = padded.reshape(-1, 16, taps * padded.shape[2] // 32, 16, 2).permute(0, 2, 3, 1, 4)
        return self.add(tiles.to(torch.bfloat16).contiguous().reshape(-1).view(torch.float32))

    def vector(self, values: Tensor, groups: int = 1) -> int:
        """``[G * O]`` -> ``[G][ceil(O / lanes)][lanes]``."""
        rows = values.detach().float().reshape(groups, -1)
        return self.add(torch.nn.functional.pad(rows, (0, -rows.shape[1] % self.lanes)))


def _by_vectors(weight: Tensor, lanes: int) -> Tensor:
    rows = weight.detach().float()
    rows = torch.nn.functional.pad(rows, (0, 0, 0, -rows.shape[0] % lanes))
    return rows.reshape(-1, lanes, rows.shape[1]).transpose(1, 2).contiguous()
