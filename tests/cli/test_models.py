# SPDX-License-Identifier: Apache-2.0
"""Names of models on a command line: whose they are, what they are made of, what is said of a wrong one."""

import sys

import pytest
import torch

import fastcnn
from fastcnn.cli.console import CommandError, UsageError
from fastcnn.cli.models import find_model

pytest.importorskip("torchvision")
pytest.importorskip("timm")
SMALL = (32, 32)


@pytest.mark.parametrize(("name", "package", "kind", "size"), [
    ("mobilenet_v1_x0_25", "fastcnn", "MobileNetV1", [3, 224, 224]),
    ("fastcnn:mobilenet_v1_x0_25", "fastcnn", "MobileNetV1", [3, 224, 224]),
    ("squeezenet1_1", None, None, None),
    ("torchvision:squeezenet1_1", "torchvision", "SqueezeNet", [3, 224, 224]),
    ("timm:test_resnet", "timm", "ResNet", [3, 160, 160]),
    ("test_resnet", "timm", "ResNet", [3, 160, 160]),
    ("test_resnet.r160_in1k", "timm", "ResNet", [3, 160, 160]),
    ("quantized_shufflenet_v2_x0_5", "torchvision", "QuantizableShuffleNetV2", [3, 224, 224]),
])  # fmt: skip
def test_names_and_where_they_are_found(name, package, kind, size, monkeypatch):
    monkeypatch.setattr("fastcnn.reference.calibrate", lambda model, size: model)
    found = find_model(name)
    if package is None:  # whichever has it first, ours where we do
        package = "fastcnn" if name in fastcnn.list_models() else "torchvision"
        kind, size = type(found.model).__name__, [3, 224, 224]
    assert type(found.model).__name__ == kind and found.input_size == size and not found.model.training
    assert found.notes[0].startswith(f"{name.rpartition(':')[2]} of {package}, random weights (seed 0)")


def test_other_sizes_than_224_are_the_models_own(monkeypatch):
    monkeypatch.setattr("fastcnn.reference.calibrate", lambda model, size: model)
    assert find_model("torchvision:inception_v3").input_size == [3, 299, 299]
    assert find_model("timm:test_resnet", size=(64, 96)).input_size == [3, 64, 96]


def test_random_weights_repeat_and_do_not_fade():
    first, second = (find_model("mobilenet_v1_x0_25", size=SMALL) for _ in range(2))
    for a, b in zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert first.notes == [
        "mobilenet_v1_x0_25 of fastcnn, random weights (seed 0), batch norm statistics of random images"
    ]
    y = first.model(torch.randn(2, 3, *SMALL)).detach()
    assert float(y.abs().max()) > 1e-3
    state = torch.get_rng_state()
    find_model("mobilenet_v1_x0_25", size=SMALL)
    assert torch.equal(state, torch.get_rng_state())


def test_no_backbone_is_downloaded(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a download")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    found = find_model("torchvision:lraspp_mobilenet_v3_large", size=SMALL)
    assert found.input_size == [3, 32, 32]
    assert found.model(torch.randn(1, 3, *SMALL))["out"].shape == (1, 21, 32, 32)


def test_a_net_that_does_not_train_on_a_picture_keeps_its_statistics(monkeypatch):
    def refuse(model, size):
        model.train()
        raise ValueError("In training mode, targets should be passed")

    monkeypatch.setattr("fastcnn.reference.calibrate", refuse)
    found = find_model("timm:test_resnet")
    assert found.notes == ["test_resnet of timm, random weights (seed 0)"] and not found.model.training


@pytest.mark.parametrize("name", ["timm:test_resnet", "mobilenet_v1_x0_25"])
def test_weights_of_a_file(name, tmp_path):
    state = find_model(name, size=SMALL).model.state_dict()
    path = str(tmp_path / "weights.pt")
    torch.save({key: value + 1 if value.is_floating_point() else value for key, value in state.items()}, path)
    found = find_model(name, path)
    key = next(iter(state))
    assert torch.equal(found.model.state_dict()[key], state[key] + 1)
    assert found.notes[0].endswith(f", weights of {path}")
    torch.save({key: state[key]}, path)
    with pytest.raises(CommandError, match="does not fit"):
        find_model(name, path)


@pytest.mark.parametrize(("name", "wanted"), [
    ("mobilenet_v9", "no model of fastcnn, torchvision, timm is called 'mobilenet_v9'; nearest: mobilenet_v"),
    ("torchvision:vgg15", "no model of torchvision is called 'vgg15'; nearest: torchvision:vgg1"),
    ("timm:test_resnot", "nearest: timm:test_resnet"),
    ("fastcnn:test_resnet", "no model of fastcnn is called 'test_resnet'"),
    ("xqzw", "no model of fastcnn, torchvision, timm is called 'xqzw'"),
    ("timm:", "no model of timm is called ''"),
])  # fmt: skip
def test_unknown_names_come_with_the_nearest(name, wanted):
    with pytest.raises(UsageError) as error:
        find_model(name)
    assert str(error.value).startswith(wanted) or wanted in str(error.value)


def test_packages_that_are_not_here(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(CommandError, match="timm:test_resnet: timm is not here .*-m pip install timm"):
        find_model("timm:test_resnet")
    with pytest.raises(
        UsageError, match="no model of fastcnn, torchvision is called 'test_resnet'.*; timm is not here"
    ):
        find_model("test_resnet")
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    assert find_model("fastcnn:mobilenet_v1_x0_25", size=SMALL).model
    with pytest.raises(CommandError, match="torchvision is not here .*-m pip install torchvision"):
        find_model("torchvision:vgg11")
