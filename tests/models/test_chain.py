# SPDX-License-Identifier: Apache-2.0
"""The chain of layers under torch's numbers: what it computes, how many ops it takes, what a hook sees."""

import pytest
import torch
from torch import nn

from fastcnn.models.blocks import Chain
from fastcnn.nn import MaxPool2d
from tests.models.test_collection import OURS, Recorded
from tests.parity import assert_same_module, assert_survives_copies, randomise


def _layers() -> list[nn.Module | str]:
    return [
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), "relu", MaxPool2d(2),
        nn.Conv2d(8, 8, 3, groups=8), "silu", nn.Conv2d(8, 4, 1), nn.Dropout(0.0), nn.BatchNorm2d(4),
        nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), "sigmoid", nn.Linear(6, 5), "relu",
    ]  # fmt: skip


_TORCH = {"relu": nn.ReLU, "silu": nn.SiLU, "sigmoid": nn.Sigmoid}


def _pair() -> tuple[Chain, nn.Sequential]:
    torch.manual_seed(0)
    theirs = nn.Sequential(*(_TORCH[layer]() if isinstance(layer, str) else layer for layer in _layers()))
    randomise(theirs, torch.randn(4, 3, 12, 12))
    return Chain(*_layers()).eval(), theirs


def test_it_computes_what_torchs_sequential_does() -> None:
    ours, theirs = _pair()
    assert_same_module(ours, theirs, torch.randn(3, 3, 12, 12))
    assert_survives_copies(ours, torch.randn(3, 3, 12, 12))


def test_a_convolution_takes_its_norm_and_activation_with_it() -> None:
    ours, _ = _pair()
    with torch.no_grad(), Recorded() as recorded:
        ours(torch.randn(1, 3, 12, 12))
    assert {"fastcnn.conv_bn_act", "fastcnn.batch_norm_act", "fastcnn.activation"} <= recorded.names
    assert not recorded.names & OURS
    kinds = [activation for *_, activation in ours.steps]
    assert kinds == ["relu", "identity", "silu", *["identity"] * 5, "sigmoid", "relu"]


def test_every_layer_is_called_and_may_be_hooked() -> None:
    ours, theirs = _pair()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 12, 12)
    wanted = dict.fromkeys(map(int, ours._modules))
    got = dict(wanted)
    for seen, net in ((wanted, theirs), (got, ours)):
        for number in seen:
            net._modules[str(number)].register_forward_hook(
                lambda _module, _args, y, seen=seen, number=number: seen.update({number: y.clone()})
            )
        net(x)
    for number, output in wanted.items():
        torch.testing.assert_close(got[number], output, msg=f"layer {number}")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (("relu", nn.Conv2d(3, 4, 1)), "'relu' at 0 must follow a module"),
        ((nn.Conv2d(3, 4, 1), "relu", "relu"), "'relu' at 2 must follow a module"),
        ((nn.Conv2d(3, 4, 1), "tanh"), "tanh"),
    ],
)
def test_wrong_rows(layers: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Chain(*layers)
