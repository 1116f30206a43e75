# SPDX-License-Identifier: Apache-2.0
"""EfficientNet's compound scaling, and the static padding of its other implementation."""

import pytest
import torch

from fastcnn.models import create_model, metadata
from fastcnn.models.efficientnet import PHI, EfficientNet, compound_scaling
from tests.parity import assert_eval_parity, build_pair

# Width, depth and resolution of the released nets.
RELEASED = [
    (1.0, 1.0, 224),
    (1.0, 1.1, 240),
    (1.1, 1.2, 260),
    (1.2, 1.4, 300),
    (1.4, 1.8, 380),
    (1.6, 2.2, 456),
    (1.8, 2.6, 528),
    (2.0, 3.1, 600),
]


@pytest.mark.parametrize("index", range(8))
def test_one_phi_gives_each_released_net(index: int) -> None:
    assert compound_scaling(PHI[index]) == RELEASED[index]
    assert metadata(f"efficientnet_b{index}")["input_size"][1] == RELEASED[index][2]


def test_the_papers_alpha_gives_the_first_three() -> None:
    phis = [i / 1000 for i in range(10_000)]
    found = [
        index for index, scale in enumerate(RELEASED) if scale in {compound_scaling(phi, alpha=1.2) for phi in phis}
    ]
    assert found == [0, 1, 2]
    assert 1.2 * 1.1**2 * 1.15**2 == pytest.approx(1.92, abs=0.001)


def test_depth_and_width_are_parameters() -> None:
    with torch.device("meta"):
        nets = [EfficientNet(*compound_scaling(PHI[2])[:2]), create_model("efficientnet_b2")]
    assert [sum(p.numel() for p in net.parameters()) for net in nets] == [9_109_994] * 2


@pytest.mark.parametrize(
    ("name", "same"),
    [("efficientnet_b0_lukemelas", "tf_efficientnet_b0"), ("efficientnet_lite0_ml", "efficientnet_lite0")],
)
def test_static_padding_at_odd_sizes(name: str, same: str) -> None:
    ours, theirs = build_pair(name)
    x = torch.randn(1, 3, 97, 67)
    assert_eval_parity(ours, theirs, x)
    with torch.inference_mode():
        assert (create_model(same, ours.state_dict()).eval()(x) - ours(x)).abs().max() > 0.01
