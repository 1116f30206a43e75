# SPDX-License-Identifier: Apache-2.0
"""AlexNet and ZFNet: the towers' parameters by hand, what pools that round up change, the response normalisation."""

import pytest
import torch
from torch import nn

from fastcnn.models import create_model
from fastcnn.models.weights import map_by_position


def test_two_towers_by_hand() -> None:
    with torch.device("meta"):
        net = create_model("alexnet_2gpu")
    convolutions = [(3 * 121 + 1) * 96, (48 * 25 + 1) * 256, (256 * 9 + 1) * 384]
    convolutions += [(192 * 9 + 1) * 384, (192 * 9 + 1) * 256]
    linear = [(9216 + 1) * 4096, (4096 + 1) * 4096, (4096 + 1) * 1000]
    assert sum(p.numel() for p in net.parameters()) == sum(convolutions) + sum(linear) == 60_965_224


def test_pools_that_round_up_are_another_net_except_at_224() -> None:
    torch.manual_seed(0)
    ours = create_model("alexnet", num_classes=10).eval()
    rounded = create_model("alexnet_b_cv", num_classes=10).eval()
    rounded.load_state_dict(map_by_position(ours.state_dict(), rounded.state_dict()))
    with torch.inference_mode():
        for size, same in ((224, True), (200, False)):
            x = torch.randn(1, 3, size, size)
            assert torch.allclose(ours(x), rounded(x), rtol=1e-4, atol=1e-5) is same


def test_response_normalisation_is_an_argument() -> None:
    with torch.device("meta"):
        nets = [create_model("alexnet_2gpu"), create_model("alexnet_2gpu", lrn_k=1.0), create_model("alexnet")]
    found = [
        [(m.size, m.alpha, m.beta, m.k) for m in net.modules() if isinstance(m, nn.LocalResponseNorm)] for net in nets
    ]
    assert found == [[(5, 1e-4, 0.75, 2.0)] * 2, [(5, 1e-4, 0.75, 1.0)] * 2, []]


@pytest.mark.parametrize("name", ["alexnet", "alexnet_2gpu", "alexnet_lrn", "alexnet_cifar", "zfnet"])
def test_classes_channels_and_dropout(name: str) -> None:
    net = create_model(name, num_classes=7, in_chans=1, dropout=0.3).eval()
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.3, 0.3]
    size = 32 if name == "alexnet_cifar" else 96
    assert net(torch.randn(2, 1, size, size)).shape == (2, 7)
