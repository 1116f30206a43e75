# SPDX-License-Identifier: Apache-2.0
"""ChannelShuffle."""

import pytest
import torch
from torch import nn

from fastcnn.nn import ChannelShuffle
from tests.parity import assert_same_module, assert_survives_copies


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 12])
def test_it_is_torchs(groups: int) -> None:
    x = torch.randn(2, 12, 3, 5)
    assert_same_module(ChannelShuffle(groups), nn.ChannelShuffle(groups), x)
    assert torch.equal(ChannelShuffle.from_torch(nn.ChannelShuffle(groups))(x), nn.ChannelShuffle(groups)(x))
    assert_survives_copies(ChannelShuffle(groups), x)
    assert repr(ChannelShuffle(groups)) == f"ChannelShuffle(groups={groups})"
