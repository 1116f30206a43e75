# SPDX-License-Identifier: Apache-2.0
"""The weights of plans, packed into one vector of float32 for the vector width of this machine."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .words import ALIGNMENT

_SPARE = 2  # times what the first image size needs: room for what other sizes pack otherwise


class BlobFull(Exception):
    """What was asked for does not fit into the memory that earlier plans read from: begin another blob."""


class Blob:
    """Collects packed weights; ``offset`` of each in floats.

    It serves all plans of a module. A weight that was asked for before, whole or as the same view, keeps its place; memory
    is taken at the first :meth:`tensor` and never moves, so that plans may run while others are made.

    Args:
        lanes: floats of a vector.
        weights: tensors that stay alive and unchanged as long as the blob; others may be temporary.
        grows: plans for further image sizes may come.
    """

    def __init__(self, lanes: int, weights: Iterable[Tensor] = (), grows: bool = False) -> None:
        self.lanes = lanes
        self.size = 0
        self._lasting = {weight.untyped_storage().data_ptr() for weight in weights}
        self._room = _SPARE if grows else 1
        self._places: dict[tuple, int] = {}
        self._waiting: list[tuple[int, Tensor, bool]] = []
        self._memory: Tensor | None = None

    def tensor(self) -> Tensor:
        """All that was asked for so far: plans made until now take exactly this.

        Raises: BlobFull.
        """
        with torch.inference_mode(False), torch.no_grad():
            if self._memory is None:
                self._memory = torch.empty(self._room * self.size, dtype=torch.float32)
            if self.size > self._memory.numel():
                raise BlobFull
            for offset, source, bf16 in self._waiting:
                to = self._memory[offset : offset + self._extent(source, bf16)]
                if bf16:
                    _write_bf16(to, source)
                else:
                    _write(to, source, self.lanes)
            self._waiting.clear()
            return self._memory[: self.size]

    def matrix(self, weight: Tensor) -> int:
        """``[O, K...]`` -> ``[ceil(O / lanes)][K...][lanes]``."""
        return self._add(weight.unsqueeze(0))

    def groups(self, weight: Tensor) -> int:
        """``[G, O, K...]`` -> ``[G][ceil(O / lanes)][K...][lanes]``."""
        return self._add(weight)

    def bf16(self, weight: Tensor) -> int:
        """``[O, taps, C]`` -> bfloat16 ``[ceil(O / 16)][taps ceil(C / 32)][16][16][2]``: pairs of input channels together."""
        return self._add(weight, bf16=True)

    def vector(self, values: Tensor, groups: int = 1) -> int:
        """``[G * O]`` -> ``[G][ceil(O / lanes)][lanes]``."""
        return self._add(values.reshape(groups, -1))

    def _add(self, source: Tensor, bf16: bool = False) -> int:
        source = source.detach()
        lasting = source.untyped_storage().data_ptr() in self._lasting
        key = (source.data_ptr(), source.shape, source.stride(), source.dtype, bf16)
        if lasting and key in self._places:
            return self._places[key]
        offset = self.size
        self.size += self._extent(source, bf16)
        self._waiting.append((offset, source, bf16))
        if lasting:
            self._places[key] = offset
        return offset

    def _extent(self, source: Tensor, bf16: bool) -> int:
        if bf16:
            outputs, taps, channels = source.shape
            return -(-outputs // 16) * taps * -(-channels // 32) * 256
        groups, rows = source.shape[:2]
        columns = source[0, 0].numel()
        return -(-groups * -(-rows // self.lanes) * self.lanes * columns // ALIGNMENT) * ALIGNMENT


def _write(to: Tensor, source: Tensor, lanes: int) -> None:
    """``[G, O, K...]`` in vectors of rows; what is left of the last one is zero, and of ``to`` too."""
    groups, rows, *columns = source.shape
    vectors, whole, left = -(-rows // lanes), rows // lanes, rows % lanes
    count = groups * vectors * source[0, 0].numel() * lanes
    to[count:].zero_()
    packed = to[:count].view(groups, vectors, *columns, lanes)
    packed[:, :whole].copy_(source[:, : whole * lanes].unflatten(1, (whole, lanes)).movedim(2, -1))
    if left:
        packed[:, whole, ..., :left].copy_(source[:, whole * lanes :].movedim(1, -1))
        packed[:, whole, ..., left:].zero_()


def _write_bf16(to: Tensor, source: Tensor) -> None:
    """``[O, taps, C]`` in tiles of 16 outputs and 32 channels, padded with zeros."""
    outputs, taps, channels = source.shape
    padded = torch.nn.functional.pad(source, (0, -channels % 32, 0, 0, 0, -outputs % 16))
    tiles = padded.reshape(-1, 16, taps * padded.shape[2] // 32, 16, 2).permute(0, 2, 3, 1, 4)
    to.view(torch.bfloat16).copy_(tiles.reshape(-1))
