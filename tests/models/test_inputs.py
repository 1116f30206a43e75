# SPDX-License-Identifier: Apache-2.0
"""A wrong input is named by the net that got it; the sizes that a net takes."""

import copy
import pickle

import pytest
import torch
from torch import nn

from fastcnn.models import create_model, list_models, metadata, registry
from tests.models.collection import REPRESENTATIVE
from tests.models.sizes import limits

SHAPES = [(3, 64, 64), (1, 1, 64, 64), (1, 3, 64), (1, 64, 64, 3)]


class Flat(nn.Sequential):
    """5x5 and a pool, then a linear layer on 6x6 maps: from 16 to 17 pixels."""

    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__(nn.Conv2d(in_chans, 4, 5), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(144, num_classes))


class Pooled(nn.Sequential):
    """No padding: from 11 pixels up."""

    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__(
            nn.Conv2d(in_chans, 4, 7),
            nn.Conv2d(4, 4, 5),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, num_classes),
        )


@pytest.fixture
def two_more(monkeypatch) -> None:
    for name, net in (("flat", Flat), ("pooled", Pooled)):
        monkeypatch.setitem(registry._ENTRY_POINTS, name, net)
        monkeypatch.setitem(registry._all_metadata(), name, {"input_size": [3, 16, 16]})
        registry._all_metadata()[name] |= limits(name)


def test_limits_are_found(two_more) -> None:
    assert limits("flat") == {"min_size": 16, "max_size": 17}
    assert limits("pooled") == {"min_size": 11}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_wrong_shape_names_the_net(shape: tuple[int, ...]) -> None:
    net = create_model("mobilenetv2_100").eval()
    with pytest.raises(ValueError, match=r"^mobilenet_v2: the input must be \[N, 3, H, W\].*, got \[") as error:
        net(torch.zeros(shape))
    assert str(list(shape)) in str(error.value)


def test_a_wrong_size_names_the_net_and_what_it_takes(two_more) -> None:
    flat, pooled = create_model("flat", in_chans=1, num_classes=3), create_model("pooled")
    for size in (16, 17):
        assert flat(torch.zeros(2, 1, size, size)).shape == (2, 3)
    for height, width in ((15, 16), (16, 18)):
        with pytest.raises(ValueError, match=r"^flat: .*\[N, 1, H, W\] with H and W from 16 to 17, got"):
            flat(torch.zeros(2, 1, height, width))
    assert pooled(torch.zeros(1, 3, 11, 200)).shape == (1, 1000)
    with pytest.raises(ValueError, match=r"\[N, 3, H, W\] with H and W from 11 up, got \[1, 3, 200, 10\]"):
        pooled(torch.zeros(1, 3, 200, 10))
    registry._all_metadata()["flat"]["max_size"] = 16
    with pytest.raises(ValueError, match=r"^flat: the input must be \[N, 3, 16, 16\], got \[1, 3, 17, 17\]"):
        create_model("flat")(torch.zeros(1, 3, 17, 17))


def test_what_is_no_tensor_is_a_type_error() -> None:
    with pytest.raises(TypeError, match=r"^mobilenet_v2: the input must be a tensor \[N, 3, H, W\].*, got ndarray"):
        create_model("mobilenet_v2")(torch.zeros(1).numpy())


def test_copies_and_maps_check_too_and_compiled_nets_do_not() -> None:
    net = create_model("mobilenet_v1_x0_25").eval()
    wrong = torch.zeros(1, 1, 64, 64)
    features = create_model("mobilenet_v1_x0_25", features_only=True)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), features):
        with pytest.raises(ValueError, match=r"^mobilenet_v1_x0_25: the input must be"):
            twin(wrong)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    with pytest.raises(Exception) as error:
        compiled(wrong)
    assert "mobilenet_v1_x0_25: the input" not in str(error.value)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in REPRESENTATIVE else pytest.mark.long) for n in list_models()]
)
def test_metadata_has_the_sizes(name: str) -> None:
    facts, found = metadata(name), limits(name)
    assert {key: facts[key] for key in ("min_size", "max_size") if key in facts} in ({}, found)
    assert found["min_size"] <= facts["input_size"][1] <= found.get("max_size", 10**9)
