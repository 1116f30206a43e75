# SPDX-License-Identifier: Apache-2.0
"""BatchNormAct2d and fused_bn_act."""

import pytest
import torch
from torch import nn

from fastcnn.nn import BatchNormAct2d, fused_bn_act
from tests.parity import assert_same_module, assert_survives_copies


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"eps": 1e-2, "momentum": 0.3}],
    ids=str,
)
def test_it_is_torchs_norm_and_activation(options: dict) -> None:
    x = torch.randn(3, 5, 7, 4)

    class Torchs(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.relu6(super().forward(x) * 3)

    class Ours(BatchNormAct2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.relu6(super().forward(x) * 3)

    assert_same_module(Ours(5, activation=None, **options), Torchs(5, **options), x)
    assert_survives_copies(BatchNormAct2d(5, **options), x)


def test_activation_and_residual() -> None:
    x, residual = torch.randn(2, 5, 6, 6), torch.randn(2, 5, 6, 6)
    for training in (False, True):
        ours, theirs = BatchNormAct2d(5, activation=nn.ReLU).train(training), nn.BatchNorm2d(5).train(training)
        torch.testing.assert_close(ours(x), theirs(x).relu())
        torch.testing.assert_close(ours(x, residual), (theirs(x) + residual).relu())
        torch.testing.assert_close(ours.running_var, theirs.running_var)
        assert ours.num_batches_tracked == theirs.num_batches_tracked


def test_a_head_of_vectors() -> None:
    ours, theirs = nn.BatchNorm1d(7), nn.BatchNorm1d(7)
    x = torch.randn(4, 7)
    torch.testing.assert_close(fused_bn_act(ours, x, "relu"), theirs(x).relu())
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)


def test_a_hook_keeps_its_meaning() -> None:
    bn, seen = nn.BatchNorm2d(3).eval(), []
    bn.register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(fused_bn_act(bn, x, "silu", x), nn.functional.silu(bn(x) + x))
    assert len(seen) == 2


def test_from_torch_shares_the_parameters() -> None:
    theirs = nn.BatchNorm2d(4, eps=1e-3).eval()
    ours = BatchNormAct2d.from_torch(theirs, nn.Hardswish())
    assert ours.weight is theirs.weight and ours.running_var is theirs.running_var
    assert (ours.eps, ours.training, ours.activation) == (1e-3, False, "hardswish")
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(ours(x), nn.functional.hardswish(theirs(x)))


def test_an_activation_without_a_kernel() -> None:
    with pytest.raises(ValueError, match="activation must be one of"):
        BatchNormAct2d(4, activation="tanh")
