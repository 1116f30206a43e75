# SPDX-License-Identifier: Apache-2.0
"""Network in Network: one net under two sets of keys, the ImageNet form's parameters by hand."""

import pytest
import torch
from torch import nn

from fastcnn.models import create_model
from fastcnn.models.weights import map_by_position


def test_imagenet_by_hand() -> None:
    with torch.device("meta"):
        net = create_model("nin_imagenet")
    stages = [(3, 11, 96), (96, 5, 256), (256, 3, 384), (384, 3, 1024)]
    first = sum((before * kernel**2 + 1) * width for before, kernel, width in stages)
    others = 2 * sum((width + 1) * width for width in (96, 256, 384)) + 1025 * 1024 + 1025 * 1000
    assert sum(p.numel() for p in net.parameters()) == first + others == 7_595_176


def test_both_layouts_are_the_same_net() -> None:
    torch.manual_seed(0)
    staged, flat = create_model("nin_cifar10").eval(), create_model("nin_cifar10_seed").eval()
    flat.load_state_dict(map_by_position(staged.state_dict(), flat.state_dict()))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(flat(x), staged(x))


@pytest.mark.parametrize(("name", "dropouts"), [("nin_cifar10", 2), ("nin_cifar10_seed", 2), ("nin_imagenet", 1)])
def test_classes_channels_sizes_and_dropout(name: str, dropouts: int) -> None:
    net = create_model(name, num_classes=7, in_chans=1, dropout=0.3).eval()
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.3] * dropouts
    for size in ((64, 64), (65, 97)):
        assert net(torch.randn(2, 1, *size)).shape == (2, 7)
