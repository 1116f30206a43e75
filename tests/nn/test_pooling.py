# SPDX-License-Identifier: Apache-2.0
"""GlobalAvgPool2d."""

import pytest
import torch
from torch import nn

from fastcnn.nn import GlobalAvgPool2d
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
