# SPDX-License-Identifier: Apache-2.0
"""VGG: what the documents say of its size, the squeeze-excite form, batch norm on CIFAR's."""

import pytest
import torch

from fastcnn.models import create_model, metadata
from fastcnn.models.weights import to_own_layout
from tests.parity import assert_eval_parity, build_pair, build_reference

WIDTHS = [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6  # of VGG-16's convolutions


def _parameters(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_vgg16_by_hand() -> None:
    with torch.device("meta"):
        net = create_model("vgg16")
    convolutions = sum((9 * c_in + 1) * c for c_in, c in zip([3, *WIDTHS], WIDTHS, strict=False))
    linear = [(25088 + 1) * 4096, (4096 + 1) * 4096, (4096 + 1) * 1000]
    assert _parameters(net) == convolutions + sum(linear) == 138_357_544
    assert round(4 * _parameters(net) / 2**20, 2) == 527.79
    assert round(linear[0] / _parameters(net), 3) == 0.743
    assert round(sum(linear) / _parameters(net), 3) == 0.894


def test_squeeze_excite_adds_two_products_of_widths_a_convolution() -> None:
    with torch.device("meta"):
        plain, ours, less = create_model("vgg16_bn"), create_model("se_vgg16"), create_model("se_vgg16", reduction=32)
    for net, reduction in ((ours, 16), (less, 32)):
        added = sum(2 * c * c // reduction + c // reduction + c for c in WIDTHS)
        assert _parameters(net) == _parameters(plain) + added
    assert _parameters(ours) == 138_596_784


def test_cifar_nets_take_batch_norm_other_classes_and_dropout() -> None:
    net = create_model("vgg13_cifar", batch_norm=True, num_classes=7, in_chans=1, dropout=0.3).eval()
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules()) == 10
    assert [m.p for m in net.modules() if isinstance(m, torch.nn.Dropout)] == [0.3, 0.3]
    assert net(torch.randn(2, 1, 32, 32)).shape == (2, 7)


def test_other_sizes_than_224() -> None:
    net = create_model("vgg11_bn", num_classes=3).eval()
    for size in ((32, 32), (65, 97)):
        assert net(torch.randn(1, 3, *size)).shape == (1, 3)


@pytest.mark.long
@pytest.mark.parametrize(("name", "reference"), [("vgg11", "vgg11"), ("vgg11_bn", "bn_vgg11b")])
def test_pytorchcvs_checkpoints_are_of_the_same_net(name: str, reference: str) -> None:
    ours, theirs = build_pair(name, f"pytorchcv:{reference}", (224, 224))
    assert_eval_parity(ours, theirs, torch.randn(1, 3, 224, 224))


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_pytorchcvs_keys_are_understood(depth: int) -> None:
    for name, reference in ((f"vgg{depth}", f"vgg{depth}"), (f"vgg{depth}_bn", f"bn_vgg{depth}b")):
        with torch.device("meta"):
            own, theirs = create_model(name).state_dict(), build_reference(f"pytorchcv:{reference}").state_dict()
        mapped = to_own_layout(theirs, own, metadata(name)["also_loads"])
        assert {key: value.shape for key, value in own.items()} == {key: value.shape for key, value in mapped.items()}
