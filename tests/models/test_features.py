# SPDX-License-Identifier: Apache-2.0
"""``features_only``: the maps that timm gives, equal to what the whole net computes there; copies, export, compile."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn

from fastcnn.models import create_model, list_models, metadata
from fastcnn.models.features import find_maps
from fastcnn.reference import reference_model
from tests.models.collection import REPRESENTATIVE

SIX = [
    "efficientnet_b0",
    "efficientnet_lite0",
    "mobilenet_v1_timm",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
]
TIMM = {
    "efficientnet_b0": "efficientnet_b0",
    "efficientnet_lite0": "tf_efficientnet_lite0",
    "efficientnet_lite4": "tf_efficientnet_lite4",
    "mobilenet_v1_timm": "mobilenetv1_100",
    "mobilenet_v2": "mobilenetv2_100",
    "mobilenet_v2_x0_35": "mobilenetv2_035",
    "mobilenet_v3_large": "mobilenetv3_large_100",
    "mobilenet_v3_small": "mobilenetv3_small_100",
}
OTHERS = {  # nets of other packages, for what ours of the same family look like: skips, cells, pads, ceil_mode, heads
    "torchvision:resnet18": [64, 64, 128, 256, 512],
    "torchvision:vgg11": [128, 256, 512, 512, 512],
    "torchvision:mnasnet1_0": [16, 24, 40, 96, 320],
    "timm:legacy_seresnet50": [64, 256, 512, 1024, 2048],
    "timm:resnetv2_50x1_bit": [64, 256, 512, 1024, 2048],
    "timm:nasnetalarge": [96, 168, 1008, 2016, 4032],
    "torchvision:densenet121": [64, 256, 512, 1024, 1024],
}


def _short(names: list[str]) -> list:
    return [pytest.param(name, marks=() if name in REPRESENTATIVE else pytest.mark.long) for name in names]


def on_meta(name: str, **kwargs) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, **kwargs)


@pytest.mark.parametrize("name", TIMM)
def test_channels_and_reductions_are_timms(name: str) -> None:
    info = on_meta(name, features_only=True).feature_info
    theirs = timm.create_model(TIMM[name], features_only=True, pretrained=False).feature_info
    assert (info.channels(), info.reduction()) == (theirs.channels(), theirs.reduction())


@pytest.mark.parametrize("reference", OTHERS)
def test_the_trunk_of_other_nets_is_found(reference: str) -> None:
    with torch.device("meta"):
        net = reference_model(reference)
    found = find_maps(net, [3, 224, 224])
    assert [m["num_chs"] for m in found] == OTHERS[reference]
    assert [m["reduction"] for m in found] == [2, 4, 8, 16, 32]


@pytest.mark.parametrize("name", _short(list_models()))
def test_maps_are_of_the_size_they_say(name: str) -> None:
    channels, height, width = metadata(name)["input_size"]
    try:
        net = on_meta(name, features_only=True)
    except ValueError as error:
        assert str(error) == f"{name}: features_only needs maps of stride 2 or more, and this net has none"
        return
    maps = net(torch.empty(2, channels, height, width, device="meta"))
    for x, channels, reduction in zip(maps, net.feature_info.channels(), net.feature_info.reduction(), strict=True):
        assert x.shape[:2] == (2, channels)
        assert 0.7 < height / reduction / x.shape[2] < 1.5


@pytest.mark.parametrize("name", SIX)
def test_they_are_the_maps_of_the_whole_net(name: str) -> None:
    whole = create_model(name).eval()
    net = create_model(name, weights=whole.state_dict(), features_only=True, out_indices=(-1, 0)).eval()
    assert net.feature_info.reduction() == [32, 2]
    seen = {}
    for module in net.feature_info.module_name():
        whole.get_submodule(module).register_forward_hook(lambda m, args, y, module=module: seen.update({module: y}))
    x = torch.randn(2, 3, 64, 96)
    whole(x)
    for got, module in zip(net(x), net.feature_info.module_name(), strict=True):
        assert torch.equal(got, seen[module])


def test_only_what_the_maps_need_is_left() -> None:
    net = create_model("mobilenet_v2", features_only=True, out_indices=[1, 2], in_chans=1)
    sum(y.square().mean() for y in net(torch.randn(2, 1, 64, 64))).backward()
    assert all(p.grad is not None for p in net.parameters())  # DDP waits for the gradient of every one
    assert {key.split(".")[2] for key in net.state_dict()} == {str(i) for i in range(7)}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "mobilenet_v3_small" else pytest.mark.long) for name in SIX]
)
def test_copies_export_and_compile(name: str) -> None:
    net = create_model(name, features_only=True, out_indices=[1, 3]).eval()
    x = torch.randn(2, 3, 64, 64)
    wanted = net(x)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(net, (x,), dynamic_shapes=({0: batch},))
    assert not any("linear" in str(node.target) for node in exported.graph.nodes)
    twins = [copy.deepcopy(net), pickle.loads(pickle.dumps(net)), exported.module()]
    twins += [torch.compile(copy.deepcopy(net), fullgraph=True, backend="aot_eager")]
    for twin in twins:
        for got, map_ in zip(twin(x), wanted, strict=True):
            torch.testing.assert_close(got, map_)
    assert exported.module()(torch.randn(5, 3, 64, 64))[0].shape[0] == 5


@pytest.mark.parametrize("wrong", [[5], [-6], [], [0.5]])
def test_maps_that_are_not_there_are_named(wrong: list) -> None:
    with pytest.raises(ValueError, match="^mobilenet_v2: out_indices must be some of 0: stride 2, .*4: stride 32; got"):
        on_meta("mobilenetv2_100", features_only=True, out_indices=wrong)


def test_a_net_without_maps_is_named(monkeypatch) -> None:
    from fastcnn.models import registry

    monkeypatch.setitem(registry._ENTRY_POINTS, "flat", lambda **_: nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)))
    monkeypatch.setitem(registry._all_metadata(), "flat", {"input_size": [3, 32, 32]})
    with pytest.raises(ValueError, match="^flat: features_only needs maps of stride 2 or more, and this net has none"):
        create_model("flat", features_only=True)
    with pytest.raises(ValueError, match="out_indices is for features_only=True"):
        create_model("flat", out_indices=[0])
