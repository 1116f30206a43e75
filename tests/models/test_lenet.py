# SPDX-License-Identifier: Apache-2.0
"""The small nets: what the documents say of their sizes, their arguments."""

import pytest
import torch
from torch import nn

from fastcnn.models import create_model
from tests.models.plain import PLAIN


def test_the_documents_counts() -> None:
    with torch.device("meta"):
        mlp, vgg = create_model("mlp_cifar"), create_model("tiny_vgg")
    assert sum(p.numel() for p in mlp.parameters() if p.dim() == 2) == 29_401_088
    first = next(m for m in vgg.modules() if isinstance(m, nn.Conv2d))
    assert sum(p.numel() for p in first.parameters()) == 280


@pytest.mark.parametrize(
    ("name", "size", "arguments"),
    [
        ("mlp_cifar", 28, {"image_size": 28, "hidden": 64}),
        ("tiny_vgg", 32, {"image_size": 32, "width": 12}),
        ("lenet5", 28, {"padding": 2, "activation": "sigmoid"}),
        ("lenet5_cifar", 32, {}),
        ("lenet_bn", 28, {}),
    ],
)
def test_arguments(name: str, size: int, arguments: dict) -> None:
    net = create_model(name, num_classes=7, in_chans=2, **arguments).eval()
    assert net(torch.randn(3, 2, size, size)).shape == (3, 7)


def test_lenet5_takes_the_activation_it_is_given() -> None:
    torch.manual_seed(0)
    theirs = nn.Sequential(*(nn.Sigmoid() if isinstance(m, nn.Tanh) else m for m in PLAIN["lenet5"]()))
    ours = create_model("lenet5", weights=theirs.state_dict(), activation="sigmoid")
    x = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(ours(x), theirs(x))
