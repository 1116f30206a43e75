# SPDX-License-Identifier: Apache-2.0
"""The large ShuffleNetV2: parameters by hand, table 6's multiply-adds, depth, a training step."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastcnn.models import create_model
from fastcnn.models.shufflenet_v2_large import V50, V164, ShuffleNetV2Large
from tests.models.plain.shufflenet_v2 import ShuffleNetV2
from tests.parity import FORMATS, assert_eval_parity, assert_train_parity, build_pair, randomise


def _parameters(repeats: list[int], widths: list[int], stem: list[int], squeeze: int = 0) -> int:
    total, channels = 0, 3
    for width in stem:
        total += 9 * channels * width + 2 * width
        channels = width
    for count, width in zip(repeats, widths, strict=True):
        half = width // 2
        main = (2 * half) + (9 * half + 2 * half) + (half * half + 2 * half)  # but for the first convolution
        excite = 2 * half * (half // squeeze) + half // squeeze + half if squeeze else 0
        shortcut = 9 * channels + 2 * channels + channels * half + 2 * half
        total += count * (main + excite) + shortcut + channels * half + (count - 1) * half * half
        channels = width
    return total + 2048 * channels + 2 * 2048 + 1000 * 2048 + 1000


@pytest.mark.parametrize(
    ("name", "shape", "gigamacs", "depth"),
    [("shufflenet_v2_50", V50, 2.3, 50), ("se_shufflenet_v2_164", (*V164, 16), 12.7, 164)],
)
def test_parameters_by_hand_and_table_6(name: str, shape: tuple, gigamacs: float, depth: int) -> None:
    with torch.device("meta"):
        net = create_model(name).eval()
    assert sum(p.numel() for p in net.parameters()) == _parameters(*shape)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(gigamacs, rel=0.02)
    # Three layers a unit, the stem, the classifier; the paper counts the last 1x1 convolution in 164, not in 50.
    units = sum(shape[0])
    assert 3 * units + len(shape[2]) + 1 + (depth == 164) == depth


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("large", [False, True])
def test_training_step(large: bool, memory_format: str) -> None:
    torch.manual_seed(0)
    shape = [2, 1, 2, 1], [32, 64, 96, 128], [8, 12]
    theirs = ShuffleNetV2(*shape, large, num_classes=7)
    randomise(theirs, torch.randn(4, 3, 65, 97))
    with torch.no_grad():
        for module in theirs.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                module.bias.normal_()
    ours = ShuffleNetV2Large(*shape, num_classes=7, residual=large, reduction=16 if large else 0)
    ours.load_state_dict(theirs.state_dict())
    assert_train_parity(ours, theirs, torch.randn(3, 3, 65, 97), FORMATS[memory_format])


@pytest.mark.parametrize("size", [(66, 64), (97, 131)])
@pytest.mark.parametrize("name", ["shufflenetv2_w1_cv", "shufflenetv2b_w1"])
def test_pytorchcvs_pools_at_other_sizes(name: str, size: tuple[int, int]) -> None:
    ours, theirs = build_pair(name)
    assert_eval_parity(ours, theirs, torch.randn(1, 3, *size))
