# SPDX-License-Identifier: Apache-2.0
"""ShuffleNetV1: the parameters of the rows that no package has, the tables' multiply-adds, the unit's formula."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastcnn.models import create_model
from fastcnn.models.shufflenet_v1 import ShuffleNetV1, ShuffleUnit


def _parameters(groups: int, stem: int, widths: list[int], mids: list[int], squeeze: int = 0) -> int:
    total, channels = 27 * stem + 2 * stem, stem
    for stage, (repeats, width, mid) in enumerate(zip([4, 8, 4], widths, mids, strict=True)):
        for unit in range(repeats):
            out = width - channels if unit == 0 else width
            compress = channels * mid // (1 if stage == unit == 0 else groups)
            total += compress + 2 * mid + 9 * mid + 2 * mid + mid * out // groups + 2 * out
            total += 2 * out * (out // squeeze) + out // squeeze + out if squeeze else 0
            channels = width
    return total + 1000 * channels + 1000


def _macs(net: torch.nn.Module, *size: int) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(torch.empty(1, *size, device="meta"))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    ("name", "shape", "parameters"),
    [
        ("shufflenet_v1_x0_5_g2", (2, 12, [100, 200, 400], [26, 50, 100]), 643_932),
        ("shufflenet_v1_x0_5_g4", (4, 12, [136, 272, 544], [36, 68, 136]), 778_040),
        ("shufflenet_v1_x0_25_g2", (2, 12, [50, 100, 200], [12, 26, 50]), 267_224),
        ("shufflenet_v1_x0_25_g4", (4, 12, [68, 136, 272], [16, 36, 68]), 338_700),
        ("shufflenet_v1_x0_25_g8", (8, 8, [96, 192, 384], [24, 48, 96]), 454_504),
        ("se_shufflenet_v1_x1_0_g3", (3, 24, [240, 480, 960], [60, 120, 240], 16), 2_484_533),
    ],
)
def test_parameters_by_hand(name: str, shape: tuple, parameters: int) -> None:
    with torch.device("meta"):
        net = create_model(name)
    assert sum(p.numel() for p in net.parameters()) == _parameters(*shape) == parameters


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("shufflenet_v1_x1_0_g3", 137),
        ("shufflenet_v1_x0_5_g2", 38),
        ("shufflenet_v1_x0_5_g4", 38),
        ("shufflenet_v1_x0_25_g2", 13),
        ("shufflenet_v1_x0_25_g4", 13),
        ("shufflenet_v1_x0_25_g8", 13),
        ("shufflenet_v1_x1_5_g3", 292),
        ("shufflenet_v1_x2_0_g3", 524),
    ],
)
def test_the_tables_multiply_adds(name: str, published: int) -> None:
    with torch.device("meta"):
        net = create_model(name)
    assert _macs(net, 3, 224, 224) / 1e6 == pytest.approx(published, abs=0.6)


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 8])
def test_the_units_multiply_adds(groups: int) -> None:
    """Section 3.2: h w (2 c m / g + 9 m)."""
    c, h, w = 240, 14, 10
    with torch.device("meta"):
        unit = ShuffleUnit(c, c, 1, groups, groups, 0)
    m = unit.dw_conv2.out_channels
    assert _macs(unit, c, h, w) == h * w * (2 * c * m // groups + 9 * m)


def test_groups_scale_and_reduction_are_parameters() -> None:
    net = ShuffleNetV1(4, num_classes=10, in_chans=1, scale=0.5, stem=16, reduction=8).eval()
    assert net.features[0].conv.weight.shape == (16, 1, 3, 3)
    assert net.features[1][0].se.fc1.weight.shape == (15, 120, 1, 1)
    assert net(torch.randn(2, 1, 64, 64)).shape == (2, 10)
