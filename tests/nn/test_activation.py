# SPDX-License-Identifier: Apache-2.0
"""HardSwish and the names of activations."""

import pytest
import torch
from torch import nn

from fastcnn.nn import HardSwish, activation_name
from tests.parity import assert_same_module, assert_survives_copies


def test_hardswish_is_torchs() -> None:
    x = torch.tensor([-5.0, -3.0, -2.9, -0.1, 0.0, 0.1, 2.9, 3.0, 5.0, 1e30]).view(1, 2, 1, 5)
    assert_same_module(HardSwish(), nn.Hardswish(), x + 0.01)
    torch.testing.assert_close(HardSwish()(x), nn.Hardswish()(x))
    assert_survives_copies(HardSwish(inplace=True), x)


def test_inplace_is_kept_but_the_input_too() -> None:
    module = HardSwish.from_torch(nn.Hardswish(inplace=True).eval())
    assert module.inplace and not module.training and "inplace=True" in repr(module)
    x = torch.ones(2, 3)
    module(x)
    assert torch.equal(x, torch.ones(2, 3))


def test_names() -> None:
    torch_kinds = [nn.Identity, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.SiLU, nn.Sigmoid, HardSwish]
    names = ["identity", "relu", "relu6", "hardswish", "hardsigmoid", "silu", "sigmoid", "hardswish"]
    assert [activation_name(kind) for kind in torch_kinds] == names
    assert [activation_name(kind()) for kind in torch_kinds] == names
    assert [activation_name(name) for name in names] == names
    assert activation_name(None) == "identity"
    for wrong in ("ReLU", nn.GELU, nn.PReLU(), 1.0):
        with pytest.raises(ValueError, match=r"activation must be one of \['hardsigmoid'.* got"):
            activation_name(wrong)
