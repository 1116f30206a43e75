# SPDX-License-Identifier: Apache-2.0
"""SqueezeExcite against torchvision's."""

import pytest
import torch
from torch import nn
from torchvision.ops import SqueezeExcitation

from fastcnn.nn import SqueezeExcite
from fastcnn.nn import squeeze_excite as module_file
from tests.parity import assert_same_module, assert_survives_copies

KINDS = {
    "mobilenet_v3": (nn.ReLU, nn.Hardsigmoid, {}),
    "efficientnet": (nn.SiLU, nn.Sigmoid, {"activation": "silu", "gate": nn.Sigmoid}),
    "senet": (nn.ReLU, nn.Sigmoid, {"gate": "sigmoid"}),
}


@pytest.mark.parametrize("size", [(1, 1), (7, 9)])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_torchvisions(kind: str, size: tuple[int, int]) -> None:
    delta, sigma, kwargs = KINDS[kind]
    theirs, x = SqueezeExcitation(12, 5, delta, sigma), torch.randn(3, 12, *size)
    assert_same_module(SqueezeExcite(12, 5, **kwargs), theirs, x)
    taken = SqueezeExcite.from_torch(theirs.eval())
    assert taken.fc1 is theirs.fc1 and not taken.training
    torch.testing.assert_close(taken(x), theirs(x))
    assert_survives_copies(taken, x)


def test_hooks_and_replaced_layers_run(monkeypatch) -> None:
    block, x, calls = SqueezeExcite(8, 2), torch.randn(2, 8, 5, 5), []
    wanted = block(x)
    monkeypatch.setattr(module_file, "se_scale", None)  # the fused path would fail
    handle = block.fc1.register_forward_hook(lambda *_: calls.append("fc1"))
    torch.testing.assert_close(block(x), wanted)
    handle.remove()
    nn.utils.parametrizations.weight_norm(block.fc2)
    torch.testing.assert_close(block(x), wanted)
    assert calls == ["fc1"]


def test_repr_compile_and_export() -> None:
    block, x = SqueezeExcite(8, 2, "silu", "sigmoid").eval(), torch.randn(2, 8, 5, 5)
    assert "activation=silu, gate=sigmoid" in repr(block)
    torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="aot_eager")(x), block(x))
    torch.testing.assert_close(torch.export.export(block, (x,)).module()(x), block(x))
