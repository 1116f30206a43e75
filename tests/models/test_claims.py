# SPDX-License-Identifier: Apache-2.0
"""What the documents behind the collection say in figures: those that hold to the digit, the others corrected.

docs/CLAIMS.md lists them. Whole nets are counted twice, ours and the reference that ours is held against.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fastcnn import ops
from fastcnn.models import create_model
from fastcnn.models.blocks import InvertedResidual
from fastcnn.nn import ChannelShuffle, ConvBNAct, SqueezeExcite
from tests.models.collection import COLLECTION
from tests.parity import build_reference

Nets = Callable[[str], nn.Module]


def _reference(name: str) -> nn.Module:
    facts = COLLECTION[name]
    return build_reference(facts["reference"], **facts.get("reference_kwargs", {}))


@pytest.fixture(params=["ours", "reference"])
def net(request: pytest.FixtureRequest) -> Nets:
    """The net of a name without values, in eval mode."""
    build = create_model if request.param == "ours" else _reference

    def without_values(name: str) -> nn.Module:
        with torch.device("meta"):
            return build(name).eval()

    return without_values


def parameters(module: nn.Module, biases: bool = True) -> int:
    """Of every layer, or of the weights alone, which are matrices and filters."""
    return sum(p.numel() for p in module.parameters() if biases or p.dim() > 1)


def macs(run: Callable[[Tensor], object], *size: int) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        run(torch.empty(size, device="meta"))
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


def convolution(in_channels: int, out_channels: int, kernel: int, groups: int = 1) -> Callable[[Tensor], Tensor]:
    """Of our op, at stride 1, into a map of the same size."""
    weight = torch.empty(out_channels, in_channels // groups, kernel, kernel, device="meta")
    if groups == in_channels > 1:
        return lambda x: ops.depthwise_conv2d(x, weight, padding=kernel // 2)
    return lambda x: ops.conv_bn_act(x, weight, padding=kernel // 2, groups=groups)


# Document 1


def test_a_convolution_of_ten_filters_has_280_parameters() -> None:
    assert parameters(ConvBNAct(3, 10, 3, bias=True)[0]) == 3 * 3 * 3 * 10 + 10 == 280


def test_mlp(net: Nets) -> None:
    """29,401,088 is without the biases."""
    mlp = net("mlp_cifar")
    assert parameters(mlp, biases=False) == 3072 * 4096 + 4096 * 4096 + 4096 * 10 == 29_401_088
    assert parameters(mlp) == 29_409_290


def test_alexnet_has_60_million_parameters(net: Nets) -> None:
    """The document says 600 million."""
    assert parameters(net("alexnet_2gpu")) == 60_965_224
    assert parameters(net("alexnet")) == 61_100_840


def test_the_formula_called_tanh_is_the_sigmoid() -> None:
    """The document says tanh(x) = 1 / (1 + e^-x)."""
    x = torch.linspace(-4, 4, 81, dtype=torch.float64)
    formula = 1 / (1 + torch.exp(-x))
    torch.testing.assert_close(formula, ops.activation(x, "sigmoid"))
    assert (formula - x.tanh()).abs().max() > 0.9
    torch.testing.assert_close(2 / (1 + torch.exp(-2 * x)) - 1, x.tanh())


def test_three_3x3_are_less_than_one_7x7() -> None:
    C = 16
    assert 3 * macs(convolution(C, C, 3), 1, C, 1, 1) == 27 * C**2 < 49 * C**2 == macs(convolution(C, C, 7), 1, C, 1, 1)


def test_vgg16_is_mostly_its_linear_layers(net: Nets) -> None:
    vgg = net("vgg16")
    linear = [parameters(m) for m in vgg.modules() if isinstance(m, nn.Linear)]
    assert round(100 * linear[0] / parameters(vgg), 1) == 74.3 and round(100 * sum(linear) / parameters(vgg), 1) == 89.4


@pytest.mark.parametrize("name", ["nin_cifar10", "nin_cifar10_seed"])
def test_network_in_network_gives_a_vector(net: Nets, name: str) -> None:
    """The document's code returns [N, 10, 1, 1]."""
    nin = net(name)
    assert parameters(nin) == 966_986 and nin(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)


def test_the_hand_written_batch_norm() -> None:
    """Forward is that of torch; its momentum 0.9 is torch's 0.1, its variance starts at 0 and is the biased one."""
    x, momentum, eps, C = torch.randn(8, 6, 5, 5, dtype=torch.float64), 0.9, 1e-5, 6
    mean, biased = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    written = (x - mean.view(1, C, 1, 1)) / (biased.view(1, C, 1, 1) + eps).sqrt()
    moving_mean, moving_var = (1 - momentum) * mean, (1 - momentum) * biased  # both from 0

    running_mean, running_var = torch.zeros(C, dtype=torch.float64), torch.ones(C, dtype=torch.float64)
    y = ops.batch_norm_act(x, running_mean, running_var, training=True, momentum=1 - momentum, eps=eps)
    torch.testing.assert_close(y, written)
    torch.testing.assert_close(running_mean, moving_mean)
    count = x.numel() // C
    torch.testing.assert_close(running_var, momentum * 1 + moving_var * count / (count - 1))
    assert (running_var - moving_var).abs().min() > 0.8


# Document 2


def test_two_3x3_against_one_5x5_and_one() -> None:
    """The document says 2.78 times fewer for two 3x3: that is one 3x3."""
    three, five = (macs(convolution(8, 8, k), 1, 8, 6, 6) for k in (3, 5))
    assert Fraction(five, 2 * three) == Fraction(25, 18) and round(five / three, 2) == 2.78


def test_a_bottleneck_of_256_channels() -> None:
    """The document says nearly 10 times fewer."""
    layers = (convolution(256, 64, 1), 256), (convolution(64, 64, 3), 64), (convolution(64, 256, 1), 64)
    narrow = sum(macs(run, 1, channels, 4, 4) for run, channels in layers)
    assert round(macs(convolution(256, 256, 3), 1, 256, 4, 4) / narrow, 2) == 8.47


def test_auxiliary_heads_of_googlenet(net: Nets) -> None:
    """The document says behind the 3rd and 5th block: 4a is the 3rd, 4d the 6th."""
    googlenet = net("googlenet_aux")
    names, state = [name for name, _ in googlenet.named_children()], googlenet.state_dict()
    blocks = [name for name in names if name.startswith("inception")]
    ends = ("branch1.conv", "branch2.1.conv", "branch3.1.conv", "branch4.1.conv")
    widths = [sum(state[f"{block}.{end}.weight"].shape[0] for end in ends) for block in blocks]
    heads = [state[f"aux{i}.conv.conv.weight"].shape[1] for i in (1, 2)]
    assert heads == [widths[blocks.index("inception4a")], widths[blocks.index("inception4d")]] == [512, 528]
    assert (blocks.index("inception4a"), blocks.index("inception4d")) == (2, 5) and widths[4] != 528


def test_the_block_of_document_2(net: Nets) -> None:
    assert parameters(net("senext_block_seed")) == 79_632


def test_the_squeeze_of_16_is_a_width() -> None:
    """The document's SEScale(channel, reduction=16) squeezes to 16 channels, not to a 16th."""
    from fastcnn.models.senext_seed import SENextBlock

    assert SENextBlock(256, 128, 512, 32).scale.fc1.weight.shape == (16, 512, 1, 1)


# Document 3


@pytest.mark.parametrize(("channels", "percent"), [(64, 12.7), (256, 11.5), (1024, 11.2)])
def test_a_depthwise_separable_convolution(channels: int, percent: float) -> None:
    """1/N + 1/k^2 of a dense one: between a 9th and an 8th for 3x3."""
    M, N, H, W = 32, channels, 7, 5
    separable = macs(convolution(M, M, 3, M), 1, M, H, W) + macs(convolution(M, N, 1), 1, M, H, W)
    ratio = Fraction(separable, macs(convolution(M, N, 3), 1, M, H, W))
    assert ratio == Fraction(1, N) + Fraction(1, 9) and round(100 * float(ratio), 1) == percent
    assert Fraction(1, 9) < ratio <= Fraction(1, 8) or N == 64


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 8])
def test_a_shufflenet_unit(groups: int) -> None:
    """hw (2cm/g + 9m)"""
    c, m, h, w = 384, 96, 6, 5
    with torch.device("meta"):
        body = nn.Sequential(
            ConvBNAct(c, m, 1, groups=groups),
            ChannelShuffle(groups),
            ConvBNAct(m, m, 3, groups=m, activation=None),
        ).eval()
        last = ConvBNAct(m, c, 1, groups=groups, activation="relu").eval()
    assert macs(lambda x: last(body(x), x), 1, c, h, w) == h * w * (Fraction(2 * c * m, groups) + 9 * m)


@pytest.mark.parametrize(("kernel", "t"), [(3, 6), (5, 4)])
def test_an_inverted_residual(kernel: int, t: int) -> None:
    """The document calls hwdt(d + k^2 + d) its parameters; those are without hw."""
    d, h, w = 24, 7, 6
    with torch.device("meta"):
        block = InvertedResidual(d, t * d, d, kernel, 1, "relu6").eval()
    assert macs(block, 1, d, h, w) == h * w * d * t * (d + kernel**2 + d)
    assert parameters(block, biases=False) == d * t * (d + kernel**2 + d)


@pytest.mark.parametrize(("C", "r"), [(64, 16), (256, 4)])
def test_squeeze_and_excite(C: int, r: int) -> None:
    """2C^2/r without the biases."""
    with torch.device("meta"):
        block = SqueezeExcite(C, C // r, gate="sigmoid")
    assert parameters(block, biases=False) == macs(block, 1, C, 5, 5) == 2 * C**2 // r
    assert parameters(block) == 2 * C**2 // r + C // r + C


def test_compound_scaling_nearly_doubles() -> None:
    """alpha beta^2 gamma^2 = 1.2 x 1.1^2 x 1.15^2 on 5 layers of 10 channels and 20 x 20 pixels."""
    sizes = (5, 10, 20), (6, 11, 23)
    small, large = (depth * macs(convolution(C, C, 3), 1, C, side, side) for depth, C, side in sizes)
    assert Fraction(large, small) == Fraction(12, 10) * Fraction(11, 10) ** 2 * Fraction(115, 100) ** 2
    assert round(large / small, 3) == 1.920


# Document 4


class Outputs:
    """Floats of the input and of what each convolution, max pool and linear layer writes; ReLU is in place."""

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        self.count = x.numel()
        for layer in module.modules():
            if isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.Linear)):
                layer.register_forward_hook(lambda layer, inputs, y: setattr(self, "count", self.count + y.numel()))
        with torch.no_grad():
            module(x)


def test_memory_of_vgg16(net: Nets) -> None:
    """In units of 2^20 and 2^30 bytes: 527.79 of weights, 58.127 of maps an image, 16.08 to train 128 with momentum."""
    vgg, mb, gb = net("vgg16"), 4 / 2**20, 4 / 2**30
    weights, maps = parameters(vgg), Outputs(vgg, torch.empty(1, 3, 224, 224, device="meta")).count
    assert weights == 138_357_544 and round(weights * mb, 2) == 527.79
    assert maps == 15_237_608 and round(maps * mb, 3) == 58.127
    assert round(2 * 128 * maps * gb, 2) == 14.53
    assert round(3 * weights * gb, 3) == 1.546 and round(4 * weights * gb, 2) == 2.06
    assert round((2 * 128 * maps + 3 * weights) * gb, 2) == 16.08


def test_multiply_adds_of_resnet50(net: Nets) -> None:
    """3.86 G is with the stride in the first 1x1; torchvision's has it in the 3x3."""
    found = {name: macs(net(name), 1, 3, 224, 224) for name in ("preact_resnet50", "resnet50")}
    assert {name: round(count / 1e9, 3) for name, count in found.items()} == {
        "preact_resnet50": 3.858, "resnet50": 4.089,
    }  # fmt: skip


def test_what_squeeze_and_excite_adds_to_resnet50(net: Nets) -> None:
    """2.53 M parameters, 9.90 %; 3.72 % without the last stage; 0.01 G with the pooling and the scaling."""
    plain, squeezed = net("resnet50"), net("se_resnet50")
    added = parameters(squeezed) - parameters(plain)
    assert added == 2_530_992 and round(100 * added / parameters(plain), 2) == 9.90
    layers = [m for name, m in squeezed.named_modules() if ".layer4" not in f".{name}" and name.endswith("se_module")]
    assert len(layers) == 13 and round(100 * sum(map(parameters, layers)) / parameters(plain), 2) == 3.72
    linear = macs(squeezed, 1, 3, 224, 224) - macs(net("preact_resnet50"), 1, 3, 224, 224)
    maps = sum(n * 4 * width * side**2 for n, width, side in ((3, 64, 56), (4, 128, 28), (6, 256, 14), (3, 512, 7)))
    assert linear == 2_514_944 and round((linear + 2 * maps) / 1e9, 2) == 0.01


def test_a_half_open_gate_is_the_mean() -> None:
    """T = 0.5 gives 0.5 H + 0.5 x: a highway layer is then half a residual one."""
    from fastcnn.models.highway import Highway

    layer, x = Highway(4, gate_bias=0.0).eval(), torch.randn(2, 4, 5, 5)
    nn.init.zeros_(layer.gate.weight)
    H = F.conv2d(x, layer.transform.weight, layer.transform.bias, padding=1).relu()
    torch.testing.assert_close(layer(x), 0.5 * H + 0.5 * x)
