# SPDX-License-Identifier: Apache-2.0
"""``fastcnn bench --peers`` on a tiny net, one round."""

import json
import sys

import pytest

from fastcnn.analysis.peers import measure, peak
from fastcnn.analysis.peers.engines import EAGER, ENGINES, FASTCNN, OPENVINO
from fastcnn.cli import main, peers

NET = """
from torch import nn
def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)).eval()
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The name of a tiny net; engines that start at once, and OpenVINO, which is not here."""
    (tmp_path / "tiny.py").write_text(NET, encoding="utf-8")
    monkeypatch.setattr(measure, "ENGINES", {label: ENGINES[label] for label in (FASTCNN, EAGER, OPENVINO)})
    monkeypatch.setattr(peak, "_probe", lambda threads: peak.Peak(100.0, "nothing"))
    monkeypatch.setattr(measure, "pixels", lambda batch, size, make=measure.pixels: make(batch, (3, 16, 16)))
    monkeypatch.setitem(sys.modules, "openvino", None)
    return f"{tmp_path}/tiny.py:net"


def test_one_document_for_machines(tiny, capsys):
    assert main(["bench", "--peers", tiny, "--batch", "1", "2", "--rounds", "1", "--threads", "1", "--json"]) == 0
    captured = capsys.readouterr()
    rows = json.loads(captured.out)["results"]
    assert [each["batch"] for each in rows] == [1, 2] and all(set(each["gflops"]) == {FASTCNN, EAGER} for each in rows)
    assert rows[0]["notes"] == {OPENVINO: "needs openvino"} and rows[0]["fastest_peer"] == EAGER
    line = [line for line in captured.err.splitlines() if "not here" in line]
    assert len(line) == 1 and "openvino" in line[0] and line[0].endswith("-m pip install 'fastcnn[bench]'")


def test_a_table_and_a_plot_for_people(tiny, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "peers.png"
    assert main(["bench", "--peers", tiny, "--rounds", "1", "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines() if line.startswith(tiny)]
    assert {line[2] for line in lines} == {"fastcnn", "eager"} and f"Not timed: {OPENVINO} on {tiny}" in out
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_wrong_result_of_ours_is_a_failure(tiny, capsys, monkeypatch):
    wrong = ENGINES[EAGER]._replace(make=lambda case: lambda: 2 * case.model(case.x))
    monkeypatch.setitem(measure.ENGINES, FASTCNN, wrong)
    assert main(["bench", "--peers", tiny, "--rounds", "1"]) == 1
    captured = capsys.readouterr()
    assert "differs from the reference" in captured.err
    assert {line.split()[2] for line in captured.out.splitlines() if line.startswith(tiny)} == {"eager"}


@pytest.mark.parametrize("arguments, message", [
    (["--peers", "--dtype", "float16"], "--dtype must be float32 or bfloat16, got float16"),
    (["--peers", "--memory-format", "contiguous"], "leave --memory-format out"),
    (["--plot", "x.png"], "--plot draws what --layers or --peers measures"),
])  # fmt: skip
def test_what_does_not_go_together(capsys, arguments, message):
    assert main(["bench", "mobilenet_v2", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_unknown_names_are_usage_mistakes(capsys):
    assert peers.run is not None and main(["bench", "--peers", "mobilenet_v99"]) == 2
    assert "mobilenet_v99" in capsys.readouterr().err
