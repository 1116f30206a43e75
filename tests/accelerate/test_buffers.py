# SPDX-License-Identifier: Apache-2.0
"""Growing concatenations share a buffer."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastcnn.accelerate.buffers import grow
from tests.accelerate.captured import Function, rewritten

X = torch.randn(2, 4, 5, 6)


def nested(x: Tensor) -> Tensor:
    for _ in range(3):
        x = torch.cat([x, (x * 2)[:, :3]], 1)
    return x + 1


def flat(x: Tensor) -> Tensor:
    parts = [x]
    for i in range(3):
        parts.append((torch.cat(parts, 1) * (i + 2))[:, :3])
    return torch.cat(parts, 1) + 1


def two_blocks(x: Tensor) -> Tensor:
    return nested(flat(x)[:, ::2])


def longest_first(x: Tensor) -> Tensor:
    a, b = x * 2, x * 3
    return torch.cat([x, a, b], 1)[:, :8] * torch.cat([x, a], 1)


def an_operand_twice(x: Tensor) -> Tensor:
    y = torch.cat([x, x], 1) * 2
    return torch.cat([x, x, y], 1) * 3


@pytest.mark.parametrize(
    ("function", "cats"), [(nested, 3), (flat, 4), (two_blocks, 4 + 3), (longest_first, 2), (an_operand_twice, 2)]
)
def test_shared(function: Callable[[Tensor], Tensor], cats: int) -> None:
    _, counts, stands = rewritten(Function(function), X, lambda program, notes: grow(program))
    assert counts == [cats]
    assert stands["cat"] == 0
    assert stands["new_empty_strided"] == (2 if function is two_blocks else 1)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.cat([x, x * 2], 1),
        lambda x: torch.cat([x, x * 2], 1) * torch.cat([x * 2, x], 1),
        lambda x: torch.cat([torch.cat([x, x * 2], 2), x.repeat(1, 1, 2, 1)], 1),
    ],
    ids=["one alone", "no prefix", "another dimension"],
)
def test_left(function: Callable[[Tensor], Tensor]) -> None:
    assert rewritten(Function(function), X, lambda program, notes: grow(program))[1] == [0]
