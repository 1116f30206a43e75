# SPDX-License-Identifier: Apache-2.0
"""DenseNet: the paper's net without compression, the constructors' parameters, dropout."""

import pytest
import torch

from fastcnn.models import create_model, metadata
from fastcnn.models.densenet import DenseNet
from fastcnn.models.densenet_cifar import CIFARDenseNet
from tests.parity import FORMATS, assert_eval_parity, assert_train_parity, build_pair, build_reference

PAPER = "densenet40_k12_paper_cifar10"


def _count(net: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def cifar_parameters(units: int, k: int, stem: int, theta: float, bottleneck: bool, classes: int) -> int:
    total, channels = 9 * 3 * stem, stem
    for stage in range(3):
        if stage > 0:
            kept = int(theta * channels)
            total, channels = total + 2 * channels + channels * kept, kept
        for _ in range(units):
            layer = 2 * channels + 9 * channels * k
            if bottleneck:
                layer = 2 * channels + channels * 4 * k + 2 * 4 * k + 9 * 4 * k * k
            total, channels = total + layer, channels + k
    return total + 2 * channels + channels * classes + classes


def test_the_papers_net_has_the_papers_parameters() -> None:
    assert cifar_parameters(12, 12, 16, 1.0, False, 10) == 1_019_722 == _count(create_model(PAPER))


@pytest.mark.parametrize(
    ("depth", "k", "bottleneck", "theta", "stem"),
    [(22, 8, True, 0.5, None), (16, 6, True, 1.0, 10), (13, 5, False, 0.7, 12), (7, 4, False, 1.0, None)],
)
def test_cifar_parameters(depth: int, k: int, bottleneck: bool, theta: float, stem: int | None) -> None:
    net = CIFARDenseNet(depth, k, bottleneck, theta, stem, num_classes=7)
    units = (depth - 4) // (6 if bottleneck else 3)
    assert _count(net) == cifar_parameters(units, k, stem or 2 * k, theta, bottleneck, 7)


def test_the_papers_net_has_the_layers_of_its_plain_statement() -> None:
    ours, theirs = create_model(PAPER).state_dict(), build_reference(metadata(PAPER)["reference"]).state_dict()
    assert [(key, value.shape) for key, value in ours.items()] == [(key, value.shape) for key, value in theirs.items()]


def test_the_papers_net_gives_the_logits_of_its_plain_statement() -> None:
    ours, theirs = build_pair(PAPER, size=(32, 32))
    assert_eval_parity(ours, theirs, torch.randn(3, 3, 32, 32))


@pytest.mark.parametrize("memory_format", FORMATS)
def test_the_papers_net_trains_as_its_plain_statement(memory_format: str) -> None:
    ours, theirs = build_pair(PAPER, size=(16, 24))
    assert_train_parity(ours, theirs, torch.randn(3, 3, 16, 24), FORMATS[memory_format])


@pytest.mark.parametrize("depth", [41, 4, 3])
def test_a_depth_without_whole_stages_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"depth must be 3n \+ 4, got {depth}"):
        CIFARDenseNet(depth, 12, bottleneck=False)


def test_growth_width_and_compression() -> None:
    net = DenseNet(8, (2, 3), 10, bn_size=2, compression=0.6, num_classes=5, in_chans=1)
    assert net.features.transition1.conv.weight.shape == (15, 26, 1, 1)
    assert net.features.denseblock2.denselayer3.conv1.weight.shape == (16, 15 + 2 * 8, 1, 1)
    assert net.classifier.weight.shape == (5, 15 + 3 * 8)
    assert net.eval()(torch.randn(2, 1, 64, 48)).shape == (2, 5)


@pytest.mark.parametrize("name", ["densenet121", "densenet100_k12_bc_cifar10", "densenet40_k12_cifar10"])
def test_dropout_is_torchs_and_only_in_training(name: str) -> None:
    net = create_model(name, dropout=0.3)
    x = torch.randn(2, 3, 32, 32)
    torch.manual_seed(1)
    first = net(x)
    assert not torch.equal(first, net(x))
    torch.manual_seed(1)
    torch.testing.assert_close(net(x), first)
    assert torch.equal(net.eval()(x), net(x))


def test_dropout_draws_as_torchvisions() -> None:
    arguments = {"growth_rate": 8, "block_config": (2, 2), "num_init_features": 8}
    theirs = build_reference("torchvision:densenet.DenseNet", drop_rate=0.4, **arguments).double().train()
    ours = DenseNet(dropout=0.4, **arguments).double()
    ours.load_state_dict(theirs.state_dict())
    x, outputs = torch.randn(3, 3, 64, 64, dtype=torch.float64), []
    for net in (ours, theirs):
        torch.manual_seed(5)
        outputs.append(net(x))
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9 * outputs[1].abs().max().item())
