# SPDX-License-Identifier: Apache-2.0
"""Names, metadata, arguments; what a net must survive: copies, export, compile, DDP."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn

from fastcnn.models import canonical_name, create_model, list_models, metadata
from fastcnn.models.registry import _ALIASES, _all_metadata, register
from fastcnn.models.weights import LAYOUTS
from fastcnn.reference import PACKAGES

SMALLEST = [  # of each family
    "mobilenet_v1_x0_25",
    "mobilenet_v2_x0_35",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "efficientnet_b0",
    "efficientnet_lite0",
]
OTHER_NAMES = {
    "tf_efficientnet_lite0": "efficientnet_lite0",
    "tf_efficientnet_lite4": "efficientnet_lite4",
    "mobilenetv1_100": "mobilenet_v1_timm",
    "mobilenetv2_100": "mobilenet_v2",
    "mobilenetv2_035": "mobilenet_v2_x0_35",
    "mobilenetv2_050": "mobilenet_v2_x0_5",
    "mobilenetv2_140": "mobilenet_v2_x1_4",
    "mobilenet_w1": "mobilenet_v1_x1_0",
    "mobilenet_wd4": "mobilenet_v1_x0_25",
}


def test_metadata_and_registry_name_the_same_models() -> None:
    assert sorted(_all_metadata()) == list_models()


@pytest.mark.parametrize("name", list_models())
def test_metadata_is_complete(name: str) -> None:
    facts = metadata(name)
    package, _, reference = facts["reference"].partition(":")
    assert package in (*PACKAGES, "plain") and re.fullmatch(r"[\w.]+", reference)
    assert re.fullmatch(r"\d{4}\.\d{4,5}|.*\b(19|20)\d\d\b.*|-", facts["paper"])
    channels, height, width = facts["input_size"]
    assert height == width > 0 and 0 < facts["min_size"] <= height <= facts.get("max_size", height)
    assert facts["params"] > 0 and facts["macs"] > 0
    if facts.get("num_classes") != 0:  # a lone block reads no picture
        assert channels == len(facts["mean"]) == len(facts["std"])
        assert facts["interpolation"] in ("bilinear", "bicubic") and 0.8 < facts["crop_pct"] <= 1.0
    assert ("top1" in facts) == ("top1_source" in facts)
    for entry in facts.get("weights", {}).values():
        assert entry.keys() == {"package", "version", "file", "sha256", "keys"}
        assert entry["keys"] in ("own", *LAYOUTS) and len(entry["sha256"]) == 64
    for reference in facts.get("also_loads", []):
        assert reference.split(":")[0] in LAYOUTS


def test_metadata_is_a_copy() -> None:
    metadata("mobilenet_v2").clear()
    assert metadata("mobilenet_v2")["reference"] == "torchvision:mobilenet_v2"


def test_list_models_takes_patterns() -> None:
    assert list_models("mobilenet_v3*") == ["mobilenet_v3_large", "mobilenet_v3_small"]
    assert list_models("yolo*") == []
    assert set(OTHER_NAMES).isdisjoint(list_models())


@pytest.mark.parametrize(("other", "name"), OTHER_NAMES.items())
def test_other_packages_names_are_understood(other: str, name: str) -> None:
    assert canonical_name(other) == name
    assert metadata(other) == metadata(name)
    assert _ALIASES[other] == name


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("mobilenet_v4", "mobilenet_v2"), ("MobileNet_V2", "mobilenet_v2"), ("effnet_lite0", "efficientnet_lite0")],
)
def test_a_wrong_name_gives_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(ValueError, match=rf"no model is called '{wrong}'; nearest: .*\b{near}\b"):
        create_model(wrong)


def test_a_hopeless_name_and_a_wrong_type() -> None:
    with pytest.raises(ValueError, match=r"list_models\(\) names them all"):
        create_model("xyzzy")
    with pytest.raises(TypeError, match="name must be a string, got NoneType"):
        create_model(None)


@pytest.mark.parametrize(("argument", "value"), [("num_classes", 0), ("num_classes", 2.5), ("in_chans", -1)])
def test_wrong_sizes_are_named(argument: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{argument} must be an integer of at least 1, got {value}"):
        create_model("mobilenet_v1_x0_25", **{argument: value})


def test_an_unknown_argument_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="wdith_mult"):
        create_model("mobilenet_v2", wdith_mult=0.5)


def test_a_name_is_entered_once() -> None:
    with pytest.raises(ValueError, match="'mobilenetv2_100' is taken"):
        register("something_new", "mobilenetv2_100")(nn.Identity)


@pytest.mark.parametrize("name", SMALLEST)
def test_classes_channels_and_sizes(name: str) -> None:
    net = create_model(name, num_classes=7, in_chans=1, dropout=0.4).eval()
    assert [module.p for module in net.modules() if isinstance(module, nn.Dropout)] == [0.4]
    for size in ((32, 32), (50, 91)):
        assert net(torch.randn(2, 1, *size)).shape == (2, 7)
    assert net(torch.randn(0, 1, 64, 64)).shape == (0, 7)


@pytest.mark.parametrize("name", ["mobilenet_v1_x1_0", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"])
def test_width_multiplier(name: str) -> None:
    half, full = (sum(p.numel() for p in create_model(name, width_mult=w).parameters()) for w in (0.5, 1.0))
    assert 0.2 < half / full < 0.6
    assert create_model(name, width_mult=0.5).eval()(torch.randn(1, 3, 32, 32)).shape == (1, 1000)


def test_nets_come_in_training_mode_and_differ() -> None:
    first, second = create_model("mobilenet_v1_x0_25"), create_model("mobilenet_v1_x0_25")
    assert first.training
    assert not torch.equal(first.output.weight, second.output.weight)


@pytest.mark.parametrize("name", SMALLEST)
def test_copies(name: str) -> None:
    net = create_model(name, num_classes=5).eval()
    x = torch.randn(1, 3, 48, 48)
    wanted = net(x)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(x), wanted)
        assert repr(twin) == repr(net)


@pytest.mark.parametrize("name", SMALLEST)
def test_export_with_a_dynamic_batch(name: str) -> None:
    net = create_model(name, num_classes=5).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(net, (torch.randn(2, 3, 64, 64),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 3, 64, 64)
    torch.testing.assert_close(program.module()(x), net(x))
    ops = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any("fastcnn.conv_bn_act" in op for op in ops)
    assert not any("batch_norm" in op or "aten.conv2d" in op for op in ops), ops


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "mobilenet_v3_small" else pytest.mark.long) for name in SMALLEST]
)
def test_compiles_to_one_graph(name: str, training: bool) -> None:
    net = create_model(name, num_classes=5, dropout=0.0).train(training)
    for module in net.modules():
        module.__dict__.update({"drop": 0.0} if "drop" in module.__dict__ else {})
    twin = copy.deepcopy(net)
    x = torch.randn(2, 3, 64, 64)
    got = torch.compile(net, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(got, twin(x))
    if training:
        got.square().sum().backward()
        for (key, buffer), wanted in zip(net.named_buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(buffer, wanted, msg=key)


def test_trains_under_ddp(tmp_path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        net = create_model("shufflenet_v2_x0_5", num_classes=3)
        alone = copy.deepcopy(net)
        parallel = nn.parallel.DistributedDataParallel(net)
        x, labels = torch.randn(6, 3, 64, 64), torch.tensor([0, 1, 2, 0, 1, 2])
        for each in (alone, parallel):
            nn.functional.cross_entropy(each(x), labels).backward()
        for (key, parameter), wanted in zip(net.named_parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, wanted.grad, msg=key)
    finally:
        torch.distributed.destroy_process_group()
