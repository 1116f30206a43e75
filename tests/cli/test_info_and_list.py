# SPDX-License-Identifier: Apache-2.0
"""``fastcnn info`` and ``fastcnn list``: what the person reads, and the JSON a program reads."""

import fnmatch
import json

import pytest

import fastcnn
from fastcnn import _library
from fastcnn.cli import info, main


def json_of(capsys, *arguments):
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_list_shows_what_the_registry_has(capsys):
    code, models = json_of(capsys, "list", "mobilenet*")
    assert code == 0 and [m["name"] for m in models] == fastcnn.list_models("mobilenet*") != []
    v2 = next(m for m in models if m["name"] == "mobilenet_v2")
    assert v2 == {
        "name": "mobilenet_v2", "parameters": 3504872, "input_size": [3, 224, 224],
        "reference": "torchvision:mobilenet_v2", "paper": "1801.04381", "weights": ["imagenet"],
    }  # fmt: skip
    assert main(["list", "mobilenet*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert fnmatch.filter(lines, "mobilenet_v2  *3.50 M  3x224x224  torchvision:mobilenet_v2  *  imagenet")


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
