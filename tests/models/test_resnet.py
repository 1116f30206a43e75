# SPDX-License-Identifier: Apache-2.0
"""Residual nets: constructor parameters, formulas, and what the documents and papers say of them."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastcnn.models import create_model
from fastcnn.models.preact_resnet import PreActResNet
from fastcnn.models.preact_resnet_cifar import preact_resnet_cifar
from fastcnn.models.resnet import ResNet
from fastcnn.models.resnet_cifar import resnet_cifar
from fastcnn.models.resnet_seed import SeedCifarResNet, SeedResNet
from fastcnn.models.resnet_v2 import ResNetV2
from fastcnn.models.resnext import resnext_cifar
from tests.models.test_collection import Recorded


def narrow_resnext(**kwargs) -> nn.Module:
    return resnext_cifar(29, cardinality=4, width_per_group=8, **kwargs)


NETS = [ResNet, SeedResNet, SeedCifarResNet, resnet_cifar, narrow_resnext, PreActResNet, preact_resnet_cifar, ResNetV2]


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def macs(net: nn.Module, *size: int) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(torch.empty(1, *size, device="meta"))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("net", NETS, ids=[net.__name__ for net in NETS])
def test_classes_channels_dropout_copies_and_an_empty_batch(net) -> None:
    ours = net(num_classes=7, in_chans=1, dropout=0.4).eval()
    assert [module.p for module in ours.modules() if isinstance(module, nn.Dropout)] == [0.4]
    x = torch.randn(2, 1, 33, 50)
    wanted = ours(x)
    assert wanted.shape == (2, 7)
    assert ours(x[:0]).shape == (0, 7)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(twin(x), wanted)


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "preact_resnet50_timm", "resnext29_32x4d_cifar10"])
def test_a_block_is_its_fused_convolutions_and_nothing_else(name: str) -> None:
    """The sum and the ReLU are in the last convolution's call; what remains are pools, norms in front and the head."""
    with torch.device("meta"):
        net = create_model(name).eval()
    with torch.no_grad(), Recorded() as recorded:
        net(torch.empty(1, 3, 64, 64, device="meta"))
    compute = {op for op in recorded.names if op.startswith("fastcnn.") or op in ("aten.add", "aten.add_", "aten.mul")}
    allowed = {"fastcnn.conv_bn_act", "fastcnn.global_avg_pool"}
    allowed |= set() if name.endswith("cifar10") else {"fastcnn.max_pool2d"}
    assert compute == (allowed | {"fastcnn.batch_norm_act"} if name.startswith("preact") else allowed)


@pytest.mark.parametrize(
    "name", ["resnet50", "resnet50_seed002", "preact_resnet18", "preact_resnet50_timm", "resnet20_cifar10"]
)
def test_stages_are_modules_that_run(name: str) -> None:
    net = create_model(name).eval()
    found = {}
    for key, module in net.named_modules():
        if key.rpartition(".")[2].startswith(("layer", "stage")) and key != "stages" or key in ("stages.0", "stages.3"):
            module.register_forward_hook(lambda module, inputs, output, key=key: found.update({key: output.shape[1:]}))
    net(torch.randn(1, 3, 64, 64))
    side = 64 if "cifar" in name else 16
    shapes = list(found.values())
    assert len(shapes) == {"preact_resnet50_timm": 2, "resnet20_cifar10": 3}.get(name, 4)
    assert shapes[0][1:] == (side, side) and shapes[-1][0] in (64, 512, 2048)


@pytest.mark.parametrize("layers", [8, 20, 32])
def test_the_parameters_of_cifar_resnets_by_hand(layers: int) -> None:
    n = layers // 6
    weights = 9 * 3 * 16  # the first layer, then n blocks of two 3x3 in each stage
    weights += 2 * n * 9 * 16 * 16
    weights += 9 * 16 * 32 + (2 * n - 1) * 9 * 32 * 32 + 16 * 32  # and a projection
    weights += 9 * 32 * 64 + (2 * n - 1) * 9 * 64 * 64 + 32 * 64
    norms = 2 * (16 * (1 + 2 * n) + 32 * (2 * n + 1) + 64 * (2 * n + 1))
    assert parameters(resnet_cifar(layers)) == weights + norms + 64 * 10 + 10


@pytest.mark.parametrize(("repeats", "wanted"), [((2, 2, 2), 195_738), ((3, 3, 3), 292_954)])
def test_document_001_with_two_and_with_three_blocks(repeats: tuple[int, ...], wanted: int) -> None:
    assert parameters(SeedCifarResNet(repeats)) == wanted


def test_resnet50_has_3858_million_macs_with_the_stride_in_the_first_1x1() -> None:
    """Document 004's 3.86 G; torchvision's version strides in the 3x3."""
    with torch.device("meta"):
        paper, version_1_5 = ResNet(50, stride_in_3x3=False), ResNet(50)
    assert macs(paper, 3, 224, 224) == 3_857_973_248
    assert macs(version_1_5, 3, 224, 224) == 4_089_184_256
    assert parameters(paper) == parameters(version_1_5)


def test_a_bottleneck_saves_8_47_times() -> None:
    """Document 002 says nearly 10: two 3x3 of 256 channels against 256-64-64-256 are 16.9, one of them 8.47."""
    one, bottleneck = 9 * 256 * 256, 2 * 256 * 64 + 9 * 64 * 64
    assert round(one / bottleneck, 2) == 8.47


@pytest.mark.parametrize(("cardinality", "width"), [(1, 64), (2, 40), (4, 24), (8, 14), (32, 4)])
def test_resnext_cardinality_at_equal_cost(cardinality: int, width: int) -> None:
    """Table 2 of arXiv:1611.05431: about 70 k parameters in each 256-channel block."""
    with torch.device("meta"):
        net = ResNet(50, groups=cardinality, width_per_group=width)
    convolutions = sum(p.numel() for p in net.layer1[1].parameters() if p.ndim == 4)
    inner = cardinality * width
    assert convolutions == 256 * inner + 9 * inner * width + inner * 256
    assert 68_000 < convolutions < 72_000


@pytest.mark.parametrize(
    ("build", "layers"), [(resnet_cifar, 21), (resnet_cifar, 2), (resnext_cifar, 30), (preact_resnet_cifar, 165)]
)
def test_a_depth_that_does_not_divide_is_refused(build, layers: int) -> None:
    with pytest.raises(ValueError, match=rf"layers must be \dn \+ 2, got {layers}"):
        build(layers)


@pytest.mark.parametrize("net", NETS, ids=[net.__name__ for net in NETS])
def test_exports_with_a_dynamic_batch(net) -> None:
    ours = net(num_classes=5).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(ours, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(program.module()(x), ours(x))
