# SPDX-License-Identifier: Apache-2.0
"""The mobile nets against their references, by the rule of tests/parity.py, and that the rule fails on wrong ones.

Every net of the collection: test_collection.py.
"""

import pytest
import torch
from torch import nn

from fastcnn.models import create_model, list_models, metadata
from fastcnn.models.blocks import InvertedResidual
from fastcnn.nn import Conv2dSame
from tests.parity import (
    FORMATS,
    assert_eval_parity,
    assert_train_parity,
    build_pair,
    build_reference,
    eval_errors,
    train_errors,
)

SHORT, LONG = (65, 97), (193, 225)
# The families that the kernels were made for: every net of them, in both modes and two batch sizes.
MOBILE = [name for name in list_models("mobilenet_v*") + list_models("shufflenet_v2_x*") + list_models("efficientnet_lite*")
          if metadata(name)["macs"] < 1e9]  # fmt: skip
OTHER_LAYOUTS = [
    (name, reference)
    for name in list_models()
    for reference in metadata(name).get("also_loads", [])
    if reference.split(":")[0] == "timm"
]


@pytest.mark.long
@pytest.mark.parametrize("name", MOBILE)
def test_logits_of_every_mobile_net(name: str) -> None:
    ours, theirs = build_pair(name, size=LONG)
    for batch, size in ((1, LONG), (3, LONG), (1, metadata(name)["input_size"][1:])):
        assert_eval_parity(ours, theirs, torch.randn(batch, 3, *size))


@pytest.mark.long
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", MOBILE)
def test_training_step_of_every_mobile_net(name: str, memory_format: str) -> None:
    ours, theirs = build_pair(name, size=LONG)
    for batch in (1, 3):
        assert_train_parity(ours, theirs, torch.randn(batch, 3, *LONG), FORMATS[memory_format])


@pytest.mark.parametrize(("name", "reference"), OTHER_LAYOUTS, ids=[reference for _, reference in OTHER_LAYOUTS])
def test_checkpoints_of_other_layouts_give_the_same_logits(name: str, reference: str) -> None:
    ours, theirs = build_pair(name, reference)
    assert_eval_parity(ours, theirs, torch.randn(1, 3, *SHORT))
    counts = [[v for k, v in net.named_buffers() if k.endswith("num_batches_tracked")] for net in (ours, theirs)]
    assert counts[0] == counts[1] and counts[0][0] == 1


@pytest.mark.parametrize("name", MOBILE)
def test_the_reference_has_the_same_dropout(name: str) -> None:
    facts = metadata(name)
    if facts["reference"].startswith("plain:"):
        return
    with torch.device("meta"):
        theirs = build_reference(facts["reference"], **facts.get("reference_kwargs", {}))
        ours = create_model(name)
    rates = [[m.p for m in net.modules() if isinstance(m, nn.Dropout)] for net in (ours, theirs)]
    assert rates[0] == (rates[1] or [getattr(theirs, "drop_rate", 0.0)])


def test_stochastic_depth_and_dropout_draw_as_the_reference_does() -> None:
    theirs = build_reference("torchvision:efficientnet_b0")
    ours = create_model("efficientnet_b0", weights=theirs.state_dict())
    rates = [m.p for m in theirs.modules() if type(m).__name__ == "StochasticDepth"]
    assert [m.drop for m in ours.modules() if isinstance(m, InvertedResidual)] == pytest.approx(rates)
    x = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    outputs = []
    for net in (ours, theirs):
        torch.manual_seed(5)
        outputs.append(net.double().train()(x))
    torch.testing.assert_close(*outputs, rtol=1e-8, atol=1e-9 * outputs[1].abs().max().item())


def _first(net: nn.Module, kind: type) -> nn.Module:
    return next(module for module in net.modules() if type(module) is kind)


def _wrong_eps(net: nn.Module) -> None:
    _first(net, nn.BatchNorm2d).eps *= 30


def _wrong_same(net: nn.Module) -> None:
    _first(net, Conv2dSame).padding = (1, 1)


def _wrong_activation(net: nn.Module) -> None:
    next(module for module in net.modules() if getattr(module, "activation", "") == "hardswish").activation = "silu"


def _lost_residual(net: nn.Module) -> None:
    next(module for module in net.modules() if getattr(module, "has_residual", False)).has_residual = False


def _swapped_branches(net: nn.Module) -> None:
    unit = net.stage2[0]
    unit.branch1.steps[0] = (*unit.branch1.steps[0][:2], "relu")


@pytest.mark.parametrize(
    ("name", "mutant"),
    [
        ("mobilenet_v3_small", _wrong_eps),
        ("mobilenet_v3_small", _wrong_activation),
        ("mobilenet_v2_x0_35", _lost_residual),
        ("efficientnet_lite0", _wrong_same),
        ("shufflenet_v2_x0_5", _swapped_branches),
    ],
)
def test_the_rule_fails_on_a_wrong_net(name: str, mutant) -> None:
    ours, theirs = build_pair(name)
    mutant(ours)
    x = torch.randn(2, 3, 64, 64)
    errors = eval_errors(ours, theirs, x)
    assert errors["nchw"] > 2 * errors["allowed"]
    assert max(train_errors(ours, theirs, x, torch.contiguous_format).values()) > 2.0
