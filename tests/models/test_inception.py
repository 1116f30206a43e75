# SPDX-License-Identifier: Apache-2.0
"""Inception-v2 to v4 and Inception-ResNet: what the tests of the whole collection do not see."""

import pytest
import torch
from torch import nn

from fastcnn.models import create_model
from fastcnn.models.inception_blocks import scaled_residual
from fastcnn.models.inception_v3 import InceptionOutputs
from tests.parity import FORMATS, assert_train_parity, build_pair, build_reference, train_errors

# Channels behind the ten modules of BN-Inception, figure 5 of arXiv:1502.03167.
MODULES = (256, 320, 576, 576, 576, 608, 608, 1056, 1024, 1024)


@pytest.mark.parametrize("reduction", [4, 16])
def test_squeeze_excite_adds_two_layers_with_bias_behind_each_module(reduction: int) -> None:
    with torch.device("meta"):
        nets = create_model("bn_inception"), create_model("se_bn_inception", reduction=reduction)
    without, with_se = (sum(p.numel() for p in net.parameters()) for net in nets)
    widths = [(channels, channels // reduction) for channels in MODULES]
    assert without == 11_295_240
    assert with_se - without == sum(2 * c * s + s + c for c, s in widths)
    if reduction == 16:
        assert with_se - without == 8_464 + 13_140 + 3 * 42_084 + 2 * 46_854 + 140_514 + 2 * 132_160 == 646_398


@pytest.mark.parametrize("memory_format", FORMATS)
def test_training_step_of_the_squeeze_excite_net(memory_format: str) -> None:
    ours, theirs = build_pair("se_bn_inception", "plain:se_bn_inception")
    x = torch.randn(3, 3, 65, 97)
    errors = train_errors(ours, theirs, x, FORMATS[memory_format])
    # The gradient of a bias before a batch norm is exactly 0, and ours is; torch's is the rounding of its sum.
    biases = [key for key, _ in ours.named_parameters() if key.endswith(".conv.bias")]
    wrong = {key: error for key, error in errors.items() if not error <= 1.0}
    assert len(biases) == 69 and wrong.keys() <= {f"gradient of {key}" for key in biases}
    ours.train()(x.contiguous(memory_format=FORMATS[memory_format])).square().sum().backward()
    assert all(not ours.get_parameter(key).grad.any() for key in biases)
    assert all(ours.get_parameter(key.replace(".conv.bias", ".conv.weight")).grad.any() for key in biases)


def test_the_auxiliary_head_of_v3_is_the_references() -> None:
    theirs = build_reference("torchvision:inception_v3", aux_logits=True, init_weights=False, num_classes=6)
    ours = create_model("inception_v3_aux", theirs.state_dict(), num_classes=6)
    for memory_format in FORMATS.values():
        assert_train_parity(ours.AuxLogits, theirs.AuxLogits, torch.randn(3, 768, 17, 17), memory_format)


def test_v3_in_training_returns_torchvisions_order_and_in_eval_the_logits() -> None:
    theirs = build_reference("torchvision:inception_v3", aux_logits=True, init_weights=False, num_classes=6).train()
    ours = create_model("inception_v3_aux", theirs.state_dict(), num_classes=6)
    ours.dropout.p = theirs.dropout.p = 0.0
    x = torch.randn(2, 3, 299, 299)  # the head's 5x5 grid needs it
    with torch.no_grad():
        got, wanted = ours(x), theirs(x)
    assert isinstance(got, InceptionOutputs) and got._fields == wanted._fields
    assert ours.eval()(x[:1, :, :107, :107]).shape == (1, 6)


@pytest.mark.long
def test_training_step_of_v3_with_its_head() -> None:
    ours, theirs = build_pair(
        "inception_v3_aux", "torchvision:inception_v3", (107, 107), aux_logits=True, init_weights=False
    )
    assert_train_parity(ours, theirs, torch.randn(2, 3, 299, 299), torch.channels_last)


@pytest.mark.long
@pytest.mark.parametrize("memory_format", FORMATS)
def test_training_step_of_inception_resnet_v2(memory_format: str) -> None:
    ours, theirs = build_pair("inception_resnet_v2", "timm:inception_resnet_v2", (107, 107))
    assert_train_parity(ours, theirs, torch.randn(3, 3, 107, 107), FORMATS[memory_format])


@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_scaled_residual_in_fp64(activation: str) -> None:
    conv = nn.Conv2d(6, 10, 1).double()
    x, residual = (torch.randn(2, c, 5, 4, dtype=torch.float64, requires_grad=True) for c in (6, 10))
    inputs = (x, residual, conv.weight, conv.bias)
    got = scaled_residual(conv, x, residual, 0.17, activation)
    wanted = conv(x) * 0.17 + residual
    wanted = torch.relu(wanted) if activation == "relu" else wanted
    upstream = torch.randn_like(got)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(*(torch.autograd.grad(y, inputs, upstream) for y in (got, wanted)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    seen = []
    conv.register_forward_hook(lambda module, args, output: seen.append(output))
    torch.testing.assert_close(scaled_residual(conv, x, residual, 0.17, activation), wanted, rtol=1e-12, atol=1e-12)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("googlenet", 64),
        ("googlenet_5x5", 64),
        ("googlenet_cifar", 32),
        ("bn_inception", 64),
        ("inception_v3", 107),
        ("inception_v4", 107),
        ("inception_resnet_v1", 107),
        ("inception_resnet_v2", 107),
    ],
)
def test_constructor_arguments(name: str, size: int) -> None:
    with torch.device("meta"):
        net = create_model(name, num_classes=5, in_chans=1, dropout=0.3).eval()
        assert net(torch.empty(2, 1, size, size)).shape == (2, 5)
    assert [module.p for module in net.modules() if isinstance(module, nn.Dropout)] == [0.3]


def test_scaled_residual_scales_by_the_same_number_in_half_precision() -> None:
    conv = nn.Conv2d(8, 16, 1).bfloat16()
    x, residual = torch.randn(2, 8, 64, 64).bfloat16(), torch.zeros(2, 16, 64, 64).bfloat16()
    got = scaled_residual(conv, x, residual, 0.17, "identity")
    assert got.dtype is torch.bfloat16
    exact = conv.double()(x.double())
    scale = (got.double() * exact).sum() / exact.square().sum()  # the roundings of 131072 values cancel
    assert abs(scale.item() - 0.17) < 2e-5  # 0.17 in bfloat16 is 8e-5 off
