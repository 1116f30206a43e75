# SPDX-License-Identifier: Apache-2.0
"""The highway layer: what its gate does; the net's parameters by hand."""

import pytest
import torch
from torch import nn

from fastcnn.models import create_model
from fastcnn.models.highway import Highway


def test_parameters_by_hand() -> None:
    net = create_model("highway_cnn")
    plain = sum((9 * before + 1) * width for before, width in ((3, 16), (16, 32), (32, 48), (48, 64)))
    highway = sum(2 * (9 * width + 1) * width for width in (16, 16, 32, 32, 48))
    assert sum(p.numel() for p in net.parameters()) == plain + highway + (64 + 1) * 10 == 135_162


@pytest.mark.parametrize(("bias", "transformed"), [(-1e3, 0.0), (0.0, 0.5), (1e3, 1.0)])
def test_the_gate_mixes_the_layer_with_its_input(bias: float, transformed: float) -> None:
    layer = Highway(8, gate_bias=bias)
    nn.init.zeros_(layer.gate.weight)
    x = torch.randn(2, 8, 9, 9)
    wanted = transformed * layer.transform(x).relu() + (1.0 - transformed) * x
    torch.testing.assert_close(layer(x), wanted)


def test_a_fresh_net_passes_most_by() -> None:
    gates = [m.gate.bias for m in create_model("highway_cnn", gate_bias=-3.0).modules() if isinstance(m, Highway)]
    assert len(gates) == 5 and all(bias.eq(-3.0).all() for bias in gates)


def test_widths_classes_and_channels() -> None:
    net = create_model("highway_cnn", num_classes=7, in_chans=1, widths=[[8, 8, 8, 8], [12, 12]])
    assert sum(isinstance(m, Highway) for m in net.modules()) == 4
    assert net(torch.randn(2, 1, 30, 41)).shape == (2, 7)
