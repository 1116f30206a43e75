# SPDX-License-Identifier: Apache-2.0
"""``fastcnn bench --layers``."""

import json

import pytest
import torch

from fastcnn.analysis import machine
from fastcnn.analysis.peers import peak
from fastcnn.cli import layers, main

MODEL = "shufflenet_v2_x0_5"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(peak, "fma_peak", lambda threads: peak.Peak(100.0, "a test"))
    monkeypatch.setattr(machine, "copy_bandwidth", lambda: dict.fromkeys(machine._PROBE_BYTES, 10e9))
    monkeypatch.setattr(layers, "CALLS", 1)


def test_table(capsys):
    assert main(["bench", "--layers", MODEL]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{MODEL}: ") and "input 1x3x224x224, float32 on cpu" in text
    assert "GFLOP/s" in text and "all of them" in text and "peak: 100 GFLOP/s of a test" in text


def test_json(capsys):
    assert main(["bench", "--layers", MODEL, "--batch", "1", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["profiles"]
    assert [each["shapes"][0][0] for each in found] == [1, 2] and all(each["model"] == MODEL for each in found)
    assert sum(step["share"] for step in found[0]["steps"]) == pytest.approx(1)


def test_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert main(["bench", "--layers", MODEL, "--plot", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("arguments", "message"), [
    ([MODEL, "--plot", "a.png"], "--plot draws what --layers"),
    (["--layers", MODEL, "--batch", "1", "2", "--plot", "a.png"], "draws one model at one batch size"),
    (["--layers", "nothing_of_the_kind"], "nothing_of_the_kind"),
    (["--layers", MODEL, "--plot", "nowhere/a.png"], "no folder 'nowhere'"),
])  # fmt: skip
def test_bad_input(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *arguments]) != 0
    assert message in capsys.readouterr().err
    assert torch.get_num_threads() >= 1
