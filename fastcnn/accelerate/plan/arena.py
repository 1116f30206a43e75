# SPDX-License-Identifier: Apache-2.0
"""Where every buffer of a plan lies in the arena: buffers that live at the same time do not overlap."""

from __future__ import annotations

from typing import NamedTuple

from .words import ALIGNMENT


class Lifetime(NamedTuple):
    """A buffer of ``size`` floats, written first in step ``first`` and read last in step ``last``."""

    size: int
    first: int
    last: int


def place(lifetimes: list[Lifetime]) -> tuple[list[int], int]:
    """Offsets in floats, largest buffers first, each at the lowest free place; and the size of the arena."""
    offsets = [0] * len(lifetimes)
    placed: list[int] = []
    total = 0
    for i in sorted(range(len(lifetimes)), key=lambda i: -lifetimes[i].size):
        mine = lifetimes[i]
        size = -(-mine.size // ALIGNMENT) * ALIGNMENT
        offset = 0
        for other in sorted(placed, key=offsets.__getitem__):
            theirs = lifetimes[other]
            if theirs.last < mine.first or mine.last < theirs.first:
                continue
            if offset + size <= offsets[other]:
                break
            offset = max(offset, offsets[other] + -(-theirs.size // ALIGNMENT) * ALIGNMENT)
        offsets[i] = offset
        placed.append(i)
        total = max(total, offset + size)
    return offsets, total
