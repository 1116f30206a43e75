# SPDX-License-Identifier: Apache-2.0
"""MobileNetV1's two multipliers and SE-MobileNet's parameters."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastcnn.models import create_model, metadata
from fastcnn.models.mobilenet_v1 import STAGES


def _parameters(name: str, **kwargs) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in create_model(name, **kwargs).parameters())


@pytest.mark.parametrize("reduction", [8, 16])
def test_squeeze_excite_adds_two_layers_a_unit(reduction: int) -> None:
    """2 C^2 / r weights and C / r + C biases behind each of the 13 units."""
    widths = [width for stage in STAGES for width in stage]
    added = sum(2 * c * c // reduction + c // reduction + c for c in widths)
    assert _parameters("se_mobilenet_v1", reduction=reduction) - _parameters("mobilenet_v1_x1_0") == added
    assert reduction != 16 or _parameters("se_mobilenet_v1") == 4_231_976 + 479_744 + 372 + 5_952


@pytest.mark.parametrize(("size", "published"), [(224, 569), (192, 418), (160, 290), (128, 186)])
def test_the_resolution_multiplier(size: int, published: int) -> None:
    """Table 7, in millions of multiply-adds."""
    name = f"mobilenet_v1_x1_0_{size}" if size < 224 else "mobilenet_v1_x1_0"
    assert metadata(name)["input_size"] == [3, size, size]
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        create_model(name).eval()(torch.empty(1, 3, size, size))
    assert counter.get_total_flops() / 2e6 == pytest.approx(published, abs=0.7)
