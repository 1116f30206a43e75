# SPDX-License-Identifier: Apache-2.0
"""Squeeze-and-excitation nets: parameters of the constructors and the counts of the paper and the documents."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastcnn.models import create_model
from fastcnn.models.resnet import REPEATS, ResNet
from fastcnn.models.se_resnet import se_resnet
from fastcnn.models.senet import SENet
from fastcnn.models.senext_seed import SENextBlock
from fastcnn.nn import SqueezeExcite
from tests.parity import assert_eval_parity, build_pair


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("kind", "deep"), [("basic", False), ("bottleneck", False), ("resnext", False), ("senet", True)]
)
def test_classes_channels_dropout_copies_and_an_empty_batch(kind: str, deep: bool) -> None:
    groups = {"resnext": 32, "senet": 64}.get(kind, 1)
    net = SENet(kind, (1, 1, 1, 1), groups, deep=deep, num_classes=7, in_chans=1, dropout=0.4).eval()
    assert [module.p for module in net.modules() if isinstance(module, nn.Dropout)] == [0.4]
    x = torch.randn(2, 1, 33, 50)
    wanted = net(x)
    assert wanted.shape == (2, 7)
    assert net(x[:0]).shape == (0, 7)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(x), wanted)


def test_squeeze_excite_costs_two_c_squared_over_r() -> None:
    """And no bias in the paper; ours have one, as the references do."""
    for channels, reduction in ((256, 16), (512, 8), (2048, 16)):
        squeeze = SqueezeExcite(channels, channels // reduction)
        weights = sum(p.numel() for p in squeeze.parameters() if p.ndim == 4)
        assert weights == 2 * channels**2 // reduction


def test_se_resnet50_is_a_tenth_larger_than_resnet50() -> None:
    """Document 004: 2.5 M parameters, 10 %; 4 % without the squeezes of the last stage; 0.01 G with pools and scales."""
    with torch.device("meta"):
        plain, squeezed = ResNet(50, stride_in_3x3=False), create_model("se_resnet50")
    added = parameters(squeezed) - parameters(plain)
    assert added == 2_530_992
    last = sum(parameters(block.se_module) for block in squeezed.layer4)
    assert round(100 * added / parameters(plain), 2) == 9.90
    assert round(100 * (added - last) / parameters(plain), 2) == 3.72
    counts = []
    for net in (plain, squeezed):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            net.eval()(torch.empty(1, 3, 224, 224, device="meta"))
        counts.append(counter.get_total_flops() // 2)
    linear = counts[1] - counts[0]
    assert linear == sum(2 * (4 * w) * (4 * w // 16) * n for w, n in zip((64, 128, 256, 512), REPEATS[50], strict=True))
    # each squeeze reads and each scale multiplies the block's whole output; ceil_mode keeps the sizes at 224
    outputs = sum(4 * w * s * s * n for w, s, n in zip((64, 128, 256, 512), (56, 28, 14, 7), REPEATS[50], strict=True))
    assert round((linear + 2 * outputs) / 1e6, 1) == 13.6


@pytest.mark.parametrize("reduction", [4, 8, 16, 32])
def test_reduction_is_a_parameter(reduction: int) -> None:
    """The paper compares several."""
    with torch.device("meta"):
        ours, torchvision_like = SENet(repeats=(1, 1, 1, 1), reduction=reduction), se_resnet(18, reduction)
    assert [block.se_module.fc1.out_channels for block in (ours.layer1[0], ours.layer4[0])] == [
        256 // reduction,
        2048 // reduction,
    ]
    assert torchvision_like.layer4[0].se.fc1.out_channels == 512 // reduction


def test_document_002_squeezes_to_16_whatever_the_width() -> None:
    """Its ``reduction`` is the hidden width, not C/16; ours is called what it is."""
    for channels in (256, 512):
        block = SENextBlock(channels, 128, channels, 32)
        assert block.scale.fc1.out_channels == 16
    strided = SENextBlock(64, 32, 128, 4, squeeze=8, stride=2).eval()
    assert strided(torch.randn(2, 64, 9, 9)).shape == (2, 128, 5, 5)


def test_a_block_has_no_classes() -> None:
    assert create_model("senext_block_seed").eval()(torch.randn(1, 256, 7, 7)).shape == (1, 256, 7, 7)
    with pytest.raises(ValueError, match="a block has no classes, got num_classes = 10"):
        create_model("senext_block_seed", num_classes=10)


def test_dropout_is_active_in_training() -> None:
    net = create_model("se_resnet18", dropout=0.5).train()
    x = torch.randn(2, 3, 64, 64)
    assert not torch.equal(net(x), net(x))
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert torch.equal(net(x), net(x))


@pytest.mark.long
def test_cadenes_checkpoints_load_unchanged() -> None:
    ours, theirs = build_pair("se_resnet50", "pretrainedmodels:se_resnet50", (224, 224))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert_eval_parity(ours, theirs, torch.randn(1, 3, 224, 224))


@pytest.mark.parametrize("name", ["se_resnet18", "se_resnet18_tv"])
def test_exports_with_a_dynamic_batch(name: str) -> None:
    net = create_model(name, num_classes=5).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(net, (torch.randn(2, 3, 64, 64),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 3, 64, 64)
    torch.testing.assert_close(program.module()(x), net(x))
