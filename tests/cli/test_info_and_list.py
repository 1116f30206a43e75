# SPDX-License-Identifier: Apache-2.0
"""``fastcnn info`` and ``fastcnn list``: what the person reads, and the JSON a program reads."""

import fnmatch
import json

import pytest

import fastcnn
from fastcnn import _library
from fastcnn.cli import info, main
from fastcnn.models import registry


def json_of(capsys, *arguments):
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture
def counted(monkeypatch):
    """Metadata with the counts of two models and without those of the others; nothing may be built."""
    for name, facts in list(registry._all_metadata().items()):
        others = {key: value for key, value in facts.items() if key not in ("params", "macs")}
        monkeypatch.setitem(registry._all_metadata(), name, others)
    registry._all_metadata()["mobilenet_v2"] |= {"params": 3504872, "macs": 300774272}
    registry._all_metadata()["efficientnet_lite0"] |= {"params": 4652008, "macs": 385178592, "top1": 75.1}
    monkeypatch.setattr(registry, "_ENTRY_POINTS", dict.fromkeys(registry._ENTRY_POINTS))


def test_list_shows_what_the_metadata_say(capsys, counted):
    code, models = json_of(capsys, "list", "mobilenet*")
    assert code == 0 and [m["name"] for m in models] == fastcnn.list_models("mobilenet*") != []
    v2 = next(m for m in models if m["name"] == "mobilenet_v2")
    assert v2 == {
        "name": "mobilenet_v2", "parameters": 3504872, "macs": 300774272, "top1": 71.878, "input_size": [3, 224, 224],
        "reference": "torchvision:mobilenet_v2", "paper": "1801.04381", "weights": ["imagenet"],
    }  # fmt: skip
    assert main(["list", "mobilenet*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert fnmatch.filter(lines, "mobilenet_v2  *3.50 M *301 M  71.878  3x224x224  torchvision:mobilenet_v2 * imagenet")
    assert fnmatch.filter(lines, "mobilenet_v1_timm  *70.6  3x224x224  timm:mobilenetv1_100 *")


def test_compare_draws_those_whose_three_figures_are_known(tmp_path, capsys, counted):
    from fastcnn.cli.list import describe, draw

    path = tmp_path / "compare.png"
    assert main(["list", "--compare", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    (axes,) = draw([describe(name) for name in fastcnn.list_models()]).axes
    drawn = {text.get_text(): text.xy for text in axes.texts}
    assert drawn == {"mobilenet_v2": (300774272, 71.878), "efficientnet_lite0": (385178592, 75.1)}
    areas = [float(scatter.get_sizes()[0]) for scatter in axes.collections]
    assert axes.get_xscale() == "log" and areas[1] / areas[0] == pytest.approx(3504872 / 4652008)
    capsys.readouterr()
    assert main(["list", "shufflenet*", "--compare", str(path)]) == 1
    assert capsys.readouterr().err == (
        "fastcnn list: none of these models has parameters, MACs and a published top-1 in its metadata\n"
    )


def test_list_without_a_match_is_a_usage_mistake(capsys):
    assert main(["list", "transformer*"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("fastcnn list: no model matches 'transformer*'")


def test_info_says_what_serves_each_op(capsys):
    code, document = json_of(capsys, "info")
    assert code == 0 and {"version", "torch", "python", "cpu", "cuda", "triton", "ops", "missing"} <= document.keys()
    assert {"depthwise_conv2d", "conv_bn_act", "channel_shuffle", "hardswish", "se_scale"} <= document["ops"].keys()
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) <= 60 and max(map(len, out.splitlines())) < 400
    assert all(op in out for op in document["ops"]) and document["cpu"]["isa_active"] in out


@pytest.fixture
def nothing_built(monkeypatch):
    state = {
        "version": "1", "torch": "2", "python": "3", "platform": "here",
        "cpu": {"built": False, "reason": "no compiler", "fix": "apt-get install g++", "isas_built": [],
                "isa_machine": ["avx2"], "isa_active": "reference"},
        "cuda": {"built": False, "reason": "nvcc not found", "fix": None, "archs": [], "toolkit": None},
        "triton": {"available": False, "version": None, "reason": "not installed"},
        "ops": {"hardswish": {"cpu": "reference", "cuda": "reference"}},
    }  # fmt: skip
    monkeypatch.setattr(_library, "info", lambda: state, raising=False)
    monkeypatch.setattr(info, "_version", lambda name: None)


def test_info_names_each_gap_and_its_fix(capsys, nothing_built):
    code, document = json_of(capsys, "info")
    fixes = {gap["what"]: (gap["reason"], gap["fix"]) for gap in document["missing"]}
    assert code == 0 and fixes["CPU library"] == ("no compiler", "apt-get install g++")
    assert fixes["CUDA library"] == ("nvcc not found", None)
    assert fixes["timm"][1].endswith("-m pip install timm") and fixes["Triton"][1].endswith("-m pip install triton")
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "not built: no compiler" in out and "apt-get install g++" in out
