# SPDX-License-Identifier: Apache-2.0
"""GoogLeNet: the paper's net, which no package has, and what training with the auxiliary heads returns."""

import pytest
import torch
from torch import nn

from fastcnn.models import create_model
from fastcnn.models.googlenet import GoogLeNetOutputs
from tests.models.test_collection import OURS, Recorded
from tests.parity import FORMATS, assert_eval_parity, assert_train_parity, build_pair, build_reference, eval_errors

PLAIN = "plain:googlenet_5x5"
PIXELS = 60.0  # the deviation of raw pixels, where the response norm matters


def test_the_papers_net_has_the_parameters_of_its_table() -> None:
    def convolution(i: int, o: int, k: int) -> int:
        return i * o * k * k + o

    def module(i: int, c1: int, r3: int, c3: int, r5: int, c5: int, cp: int) -> int:
        threes = convolution(i, r3, 1) + convolution(r3, c3, 3)
        fives = convolution(i, r5, 1) + convolution(r5, c5, 5)
        return convolution(i, c1, 1) + threes + fives + convolution(i, cp, 1)

    stem = convolution(3, 64, 7) + convolution(64, 64, 1) + convolution(64, 192, 3)
    assert stem == 9_472 + 4_160 + 110_784
    modules = [
        module(192, 64, 96, 128, 16, 32, 32),
        module(256, 128, 128, 192, 32, 96, 64),
        module(480, 192, 96, 208, 16, 48, 64),
        module(512, 160, 112, 224, 24, 64, 64),
        module(512, 128, 128, 256, 24, 64, 64),
        module(512, 112, 144, 288, 32, 64, 64),
        module(528, 256, 160, 320, 32, 128, 128),
        module(832, 256, 160, 320, 32, 128, 128),
        module(832, 384, 192, 384, 48, 128, 128),
    ]
    assert modules[0] == 12_352 + 18_528 + 110_720 + 3_088 + 12_832 + 6_176
    formula = stem + sum(modules) + 1024 * 1000 + 1000
    with torch.device("meta"):
        net = create_model("googlenet_5x5")
        with_heads = create_model("googlenet_5x5", aux_logits=True)
    assert formula == 6_998_552 == sum(p.numel() for p in net.parameters())
    heads = sum(convolution(c, 128, 1) + 2048 * 1024 + 1024 + 1024 * 1000 + 1000 for c in (512, 528))
    assert sum(p.numel() for p in with_heads.parameters()) == formula + heads


def test_the_papers_net_is_the_plain_statement_with_the_same_keys() -> None:
    with torch.device("meta"):
        pair = create_model("googlenet_5x5", aux_logits=True), build_reference(PLAIN, aux_logits=True)
    ours, theirs = ({k: v.shape for k, v in net.state_dict().items()} for net in pair)
    assert ours == theirs
    rates = [[m.p for m in net.modules() if isinstance(m, nn.Dropout)] for net in pair]
    assert rates == [[0.7, 0.7, 0.4]] * 2


@pytest.mark.parametrize("size", [(65, 97), pytest.param((224, 224), marks=pytest.mark.long)])
def test_logits_of_the_papers_net(size: tuple[int, int]) -> None:
    ours, theirs = build_pair("googlenet_5x5", PLAIN, size)
    for batch in (1, 3):
        assert_eval_parity(ours, theirs, PIXELS * torch.randn(batch, 3, *size))


@pytest.mark.parametrize("forgotten", ["norm1", "norm2"])
def test_a_forgotten_response_norm_shows(forgotten: str) -> None:
    ours, theirs = build_pair("googlenet_5x5", PLAIN)
    setattr(ours, forgotten, nn.Identity())
    errors = eval_errors(ours, theirs, PIXELS * torch.randn(1, 3, 65, 97))
    assert errors["nchw"] > 2 * errors["allowed"]


@pytest.mark.parametrize("memory_format", FORMATS)
def test_training_step_of_the_papers_net_with_its_heads(memory_format: str) -> None:
    torch.manual_seed(0)
    theirs = build_reference(PLAIN, num_classes=7, aux_logits=True)
    ours = create_model("googlenet_5x5", theirs.state_dict(), num_classes=7, aux_logits=True)
    for module in (*ours.modules(), *theirs.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x = PIXELS * torch.randn(2, 3, 224, 224)  # the heads' 4x4 grid needs it
    assert_train_parity(ours, theirs, x, FORMATS[memory_format])


def test_the_papers_net_runs_on_our_ops() -> None:
    with torch.device("meta"):
        net = create_model("googlenet_5x5").eval()
    with torch.no_grad(), Recorded() as recorded:
        net(torch.empty(1, 3, 224, 224, device="meta"))
    assert not recorded.names & OURS


def test_training_returns_torchvisions_order_and_eval_the_logits() -> None:
    theirs = build_reference("torchvision:googlenet", aux_logits=True, init_weights=False, num_classes=6).train()
    ours = create_model("googlenet_aux", theirs.state_dict(), num_classes=6)
    x = torch.randn(2, 3, 64, 64)
    outputs = []
    for net in (ours, theirs):  # with dropout, so in the same order
        torch.manual_seed(3)
        outputs.append(net(x))
    assert isinstance(outputs[0], GoogLeNetOutputs) and outputs[0]._fields == outputs[1]._fields
    for got, wanted in zip(*outputs, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item())
    assert ours.eval()(x).shape == (2, 6)
