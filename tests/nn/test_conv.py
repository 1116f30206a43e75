# SPDX-License-Identifier: Apache-2.0
"""ConvBNAct, Conv2dSame and DepthwiseConv2d against the torch modules they stand for."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune
from torchvision.ops.misc import Conv2dNormActivation

from fastcnn.nn import Conv2dSame, ConvBNAct, DepthwiseConv2d, fused_conv_bn_act
from fastcnn.nn import conv as conv_module
from tests.parity import assert_same_module, assert_survives_copies

CASES = {
    "1x1": {"in_channels": 6, "out_channels": 10, "kernel_size": 1},
    "3x3-stride2": {"in_channels": 6, "out_channels": 10, "stride": 2},
    "depthwise-5x5": {"in_channels": 9, "out_channels": 9, "kernel_size": 5, "groups": 9},
    "depthwise-multiplier": {"in_channels": 4, "out_channels": 8, "groups": 4, "stride": 2},
    "grouped": {"in_channels": 6, "out_channels": 4, "groups": 2},
    "dilated": {"in_channels": 4, "out_channels": 4, "dilation": 2, "groups": 4},
    "pairs": {"in_channels": 3, "out_channels": 5, "kernel_size": (1, 5), "stride": (2, 1), "dilation": (1, 2)},
    "bias": {"in_channels": 3, "out_channels": 4, "bias": True},
    "padding": {"in_channels": 3, "out_channels": 4, "padding": 0},
}
ACTIVATIONS = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hardswish": nn.Hardswish, "silu": nn.SiLU, None: None}


def random_norm(module: nn.Module) -> nn.Module:
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
                if tensor is not None:
                    nn.init.uniform_(tensor, 0.5, 1.5)
    return module


def row(activation: type[nn.Module] | None = nn.ReLU, **norm) -> nn.Sequential:
    """Conv, BN and activation as a torch Sequential: 4 -> 6 channels, 3x3."""
    layers = [nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6, **norm)]
    return random_norm(nn.Sequential(*layers, *([activation()] if activation else [])))


@pytest.mark.parametrize("case", CASES)
def test_conv_bn_act_is_torchvisions_block(case: str) -> None:
    kwargs = {"kernel_size": 3} | CASES[case]
    theirs = random_norm(Conv2dNormActivation(**kwargs, activation_layer=nn.ReLU6))
    assert_same_module(ConvBNAct(**kwargs, activation="relu6"), theirs, torch.randn(2, kwargs["in_channels"], 9, 11))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_by_name_module_and_class(name: str | None) -> None:
    kind = ACTIVATIONS[name]
    theirs, x = row(kind), torch.randn(3, 4, 7, 5)
    for spelling in {name, kind, kind and kind()}:
        assert_same_module(ConvBNAct(4, 6, activation=spelling), theirs, x)
    taken = ConvBNAct.from_torch(theirs)
    assert taken[0] is theirs[0] and taken[1] is theirs[1] and taken.activation == (name or "identity")
    torch.testing.assert_close(taken.eval()(x), theirs.eval()(x))


def test_unknown_activation() -> None:
    for wrong in ("swish", nn.GELU(), 3):
        with pytest.raises(ValueError, match="activation must be one of .*hardswish.*, got"):
            ConvBNAct(3, 4, activation=wrong)


@pytest.mark.parametrize("training", [False, True])
def test_residual_comes_before_the_activation(training: bool) -> None:
    theirs = row().train(training).double()
    x, residual = torch.randn(2, 4, 6, 6, dtype=torch.float64), torch.randn(2, 6, 6, 6, dtype=torch.float64)
    wanted = F.relu(copy.deepcopy(theirs)[1](theirs[0](x)) + residual)
    torch.testing.assert_close(ConvBNAct.from_torch(theirs)(x, residual), wanted)


@pytest.mark.parametrize(
    "norm",
    [{"affine": False}, {"track_running_stats": False}, {"affine": False, "track_running_stats": False},
     {"momentum": None}, {"momentum": 0.0}, {"momentum": 1.0}, {"eps": 0.3}],
    ids=str,
)  # fmt: skip
def test_every_kind_of_batch_norm(norm: dict) -> None:
    theirs = row(**norm).double()
    ours = ConvBNAct.from_torch(copy.deepcopy(theirs))
    for training in (True, True, False):
        x = torch.randn(3, 4, 6, 6, dtype=torch.float64)
        torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x))
        for got, wanted in zip(ours.buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(got, wanted)


def test_a_frozen_batch_norm_stays_frozen_in_a_training_net() -> None:
    theirs = row().train()
    theirs[1].eval()
    ours, x = ConvBNAct.from_torch(copy.deepcopy(theirs)), torch.randn(3, 4, 6, 6)
    torch.testing.assert_close(ours(x), theirs(x))
    assert torch.equal(ours[1].running_mean, theirs[1].running_mean) and ours[1].num_batches_tracked == 0


def test_hooks_on_the_block_and_on_its_children_run() -> None:
    block, x, calls = ConvBNAct.from_torch(row()).eval(), torch.randn(1, 4, 6, 6, requires_grad=True), []
    wanted = block(x)
    handles = [
        block.register_forward_hook(lambda *_: calls.append("block")),
        block[0].register_forward_hook(lambda *_: calls.append("conv")),
        block[1].register_forward_pre_hook(lambda *_: calls.append("bn")),
        block[0].register_full_backward_hook(lambda *_: calls.append("backward")),
    ]
    got = block(x)
    got.sum().backward()
    assert calls == ["conv", "bn", "block", "backward"]
    torch.testing.assert_close(got, wanted)
    for handle in handles:
        handle.remove()
    assert torch.equal(block(x), wanted)


def _replace_norm(block: ConvBNAct) -> None:
    block[1] = nn.InstanceNorm2d(6, affine=True)


def _reflect(block: ConvBNAct) -> None:
    block[0] = nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")


def _parametrize(block: ConvBNAct) -> None:
    nn.utils.parametrizations.weight_norm(block[0])


def _prune(block: ConvBNAct) -> None:
    prune.l1_unstructured(block[0], "weight", amount=0.5)


@pytest.mark.parametrize("change", [_replace_norm, _reflect, _parametrize, _prune])
def test_children_that_others_changed_run_as_themselves(change, monkeypatch) -> None:
    block, x = ConvBNAct.from_torch(row()).eval(), torch.randn(2, 4, 6, 6)
    change(block)
    monkeypatch.setattr(conv_module, "conv_bn_act", None)  # the fused path would fail
    torch.testing.assert_close(block(x), F.relu(block[1](block[0](x))))


def test_sync_batch_norm_conversion_keeps_its_meaning() -> None:
    block = nn.SyncBatchNorm.convert_sync_batchnorm(ConvBNAct.from_torch(row()))
    assert type(block[1]) is nn.SyncBatchNorm
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(block.eval()(x), F.relu(block[1](block[0](x))))


def test_settings_are_read_at_the_call() -> None:
    block, x = ConvBNAct.from_torch(row()).eval(), torch.randn(1, 4, 9, 9)
    block[0].stride, block[0].padding = (2, 2), (0, 0)
    torch.testing.assert_close(block(x), F.relu(block[1](block[0](x))))


def test_siblings_with_and_without_norm() -> None:
    conv, x, residual = nn.Conv2d(4, 6, 3), torch.randn(2, 4, 8, 8), torch.randn(2, 6, 6, 6)
    torch.testing.assert_close(fused_conv_bn_act(conv, None, x, "silu", residual), F.silu(conv(x) + residual))
    norm = random_norm(nn.BatchNorm2d(6)).eval()
    torch.testing.assert_close(fused_conv_bn_act(conv, norm, x), norm(conv(x)))


@pytest.mark.parametrize("wrong", [nn.Sequential(nn.Conv2d(3, 4, 1)), nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())])
def test_from_torch_refuses_other_rows(wrong: nn.Sequential) -> None:
    with pytest.raises(ValueError, match=r"must hold Conv2d, BatchNorm2d\[, activation\], got \['Conv2d'"):
        ConvBNAct.from_torch(wrong)
    with pytest.raises(TypeError, match="must be an nn.Sequential, got Conv2d"):
        ConvBNAct.from_torch(wrong[0])


@pytest.mark.parametrize("size", [(7, 7), (8, 9), (5, 12)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (5, 2), (2, 3), ((1, 4), (1, 2)), (3, 1)])
def test_same_padding_is_tensorflows(kernel, stride, size) -> None:
    timm_same = pytest.importorskip("timm.layers").Conv2dSame(3, 4, kernel, stride)
    ours = Conv2dSame(3, 4, kernel, stride)
    assert_same_module(ours, timm_same, torch.randn(2, 3, *size))
    strides = stride if isinstance(stride, tuple) else (stride, stride)
    assert ours.float()(torch.randn(1, 3, *size)).shape[2:] == tuple(-(-n // s) for n, s in zip(size, strides))
    block = ConvBNAct(3, 4, kernel, stride, padding="same")
    assert type(block[0]) is Conv2dSame and block(torch.randn(2, 3, *size)).shape[0] == 2


def test_same_padding_refuses_other_paddings() -> None:
    for kwargs in ({"padding": 1}, {"padding_mode": "reflect"}):
        with pytest.raises(ValueError, match="Conv2dSame: padding must be 'same' of zeros, got"):
            Conv2dSame(3, 4, 3, **kwargs)
    taken = Conv2dSame.from_torch(nn.Conv2d(3, 4, 3, 2, padding=1))
    assert taken.padding == "same" and "padding=same" in repr(taken)


@pytest.mark.parametrize(
    "kwargs",
    [{"kernel_size": 3}, {"kernel_size": 5, "stride": 2, "padding": 2}, {"kernel_size": (1, 7), "padding": (0, 3)},
     {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}, {"kernel_size": 3, "padding": "same", "dilation": 2},
     {"kernel_size": 4, "padding": "same"}, {"kernel_size": 2, "bias": False, "padding": "valid"}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("multiplier", [1, 3])
def test_depthwise_is_torchs_grouped_convolution(kwargs: dict, multiplier: int) -> None:
    theirs, x = nn.Conv2d(5, 5 * multiplier, groups=5, **kwargs), torch.randn(2, 5, 9, 10)
    assert_same_module(DepthwiseConv2d(5, 5 * multiplier, **kwargs), theirs, x)
    taken = DepthwiseConv2d.from_torch(theirs)
    assert taken.weight is theirs.weight and taken.bias is theirs.bias
    torch.testing.assert_close(taken(x), theirs(x))


def test_depthwise_refuses_other_groups() -> None:
    with pytest.raises(ValueError, match="groups must be in_channels = 8, got 4"):
        DepthwiseConv2d(8, 8, 3, groups=4)
    with pytest.raises(ValueError, match="out_channels must be a multiple of 8, got 12"):
        DepthwiseConv2d(8, 12, 3)


@pytest.mark.parametrize(
    "module",
    [ConvBNAct(4, 6, activation="silu"), ConvBNAct(4, 6, padding="same", stride=2), Conv2dSame(4, 6, 3, 2),
     DepthwiseConv2d(4, 8, 3, padding=1)],
    ids=lambda module: type(module).__name__,
)  # fmt: skip
def test_copies_compile_and_export(module: nn.Module) -> None:
    x = torch.randn(2, 4, 8, 8)
    assert_survives_copies(module, x)
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), module(x))
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), module(x))
