# SPDX-License-Identifier: Apache-2.0
"""MobileNetV3 under timm's keys: a training step, odd sizes under SAME padding, its constructor's parameters."""

import pytest
import torch

from fastcnn.models import create_model
from fastcnn.models.mobilenet_v3_timm import MINIMAL
from tests.parity import FORMATS, assert_eval_parity, assert_train_parity, build_pair


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", ["tf_mobilenetv3_small_100", "mobilenetv3_small_w1_cv"])
def test_training_step(name: str, memory_format: str) -> None:
    ours, theirs = build_pair(name)
    assert_train_parity(ours, theirs, torch.randn(3, 3, 65, 97), FORMATS[memory_format])


@pytest.mark.parametrize(
    "name", ["tf_mobilenetv3_small_075", "tf_mobilenetv3_large_minimal_100", "mobilenetv3_small_050"]
)
def test_logits_at_odd_sizes(name: str) -> None:
    ours, theirs = build_pair(name)
    for size in ((65, 97), (64, 47)):
        assert_eval_parity(ours, theirs, torch.randn(2, 3, *size))


def test_the_minimal_rows() -> None:
    assert {(row.k, row.se, row.nl) for row in MINIMAL} == {(3, False, "relu")}
    net = create_model("tf_mobilenetv3_large_minimal_100")
    assert net.activation == "relu" and not [key for key in net.state_dict() if ".se." in key]


@pytest.mark.parametrize("name", ["tf_mobilenetv3_small_100", "mobilenetv3_small_w1_cv"])
def test_classes_channels_width_and_dropout(name: str) -> None:
    net = create_model(name, num_classes=7, in_chans=1, width_mult=0.5, dropout=0.4).eval()
    assert net.dropout.p == 0.4 and net.blocks[-1][0].conv.out_channels == 288
    assert net(torch.randn(2, 1, 64, 64)).shape == (2, 7)
