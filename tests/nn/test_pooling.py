# SPDX-License-Identifier: Apache-2.0
"""GlobalAvgPool2d and MaxPool2d."""

import pytest
import torch
from torch import nn

from fastcnn.nn import GlobalAvgPool2d, MaxPool2d
from tests.parity import assert_same_module, assert_survives_copies


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (3, 11)])
def test_it_is_torchs_adaptive_pool(size: tuple[int, int]) -> None:
    x = torch.randn(3, 5, *size)
    assert_same_module(GlobalAvgPool2d(), nn.AdaptiveAvgPool2d(1), x)
    assert_survives_copies(GlobalAvgPool2d(), x)


def test_from_torch() -> None:
    for size in (1, (1, 1)):
        assert isinstance(GlobalAvgPool2d.from_torch(nn.AdaptiveAvgPool2d(size)), GlobalAvgPool2d)
    with pytest.raises(ValueError, match=r"output_size must be 1, got \(2, 1\)"):
        GlobalAvgPool2d.from_torch(nn.AdaptiveAvgPool2d((2, 1)))


WINDOWS = {
    "stem": (3, 2, 1),
    "vgg": (2,),
    "ceil": (3, 2, 0, 1, False, True),
    "oblong": ((3, 2), (1, 2), (1, 0)),
    "dilation-spelt-out": (2, 2, 0, (1, 1)),
}


@pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
def test_it_is_torchs_max_pool(window: tuple) -> None:
    x, mine, theirs = torch.randn(3, 5, 9, 11), MaxPool2d(*window), nn.MaxPool2d(*window)
    assert_same_module(mine, theirs, x)
    assert_survives_copies(mine, x)
    assert repr(mine) == repr(theirs) and mine.state_dict() == {}


def test_max_pool_from_torch_keeps_every_argument() -> None:
    theirs = nn.MaxPool2d(3, 2, 1, ceil_mode=True).eval()
    mine = MaxPool2d.from_torch(theirs)
    assert repr(mine) == repr(theirs) and not mine.training
    x = torch.randn(1, 2, 8, 8)
    assert torch.equal(mine(x), theirs(x))


@pytest.mark.parametrize(("given", "words"), [
    ({"return_indices": True}, "return_indices must be False, no index is stored"),
    ({"dilation": 2}, "dilation must be 1, got 2"),
])  # fmt: skip
def test_what_max_pool_refuses(given: dict, words: str) -> None:
    with pytest.raises(ValueError, match=f"^MaxPool2d: {words}"):
        MaxPool2d(3, **given)
    with pytest.raises(ValueError, match=f"^MaxPool2d: {words}"):
        MaxPool2d.from_torch(nn.MaxPool2d(3, **given))
