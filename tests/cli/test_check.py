# SPDX-License-Identifier: Apache-2.0
"""``fastcnn check``: what is equal, what differs and where, what is not installed."""

import json
import sys

import pytest
import torch
from torch import nn

from fastcnn import check
from fastcnn.cli import main
from fastcnn.models import metadata, registry

NAME, REFERENCE = "shufflenet_v2_x0_5", "torchvision:shufflenet_v2_x0_5"


def facts_of(monkeypatch, **facts) -> None:
    monkeypatch.setitem(registry._all_metadata(), NAME, metadata(NAME) | facts)


def test_equal_nets_give_a_row_and_exit_0(capsys):
    assert main(["check", NAME]) == 0
    out = capsys.readouterr().out
    assert out.startswith("1 of 1 equal their reference")
    assert "1,366,792" in out and "40.5 M" in out and "3x224x224" in out and out.rstrip().endswith("equal")


def test_json_is_one_document_with_the_errors(capsys):
    assert main(["check", NAME, "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["ok"] and entry["reference"] == REFERENCE and entry["problems"] == []
    assert (entry["parameters"], entry["macs"], entry["state_dict_entries"]) == (1366792, 40476448, 338)
    assert 0 < entry["error"] <= entry["allowed"] < 1e-4


def test_another_net_is_told_from_it(capsys, monkeypatch):
    facts_of(monkeypatch, reference="torchvision:shufflenet_v2_x1_0")
    assert main(["check", NAME, "--json"]) == 1
    captured = capsys.readouterr()
    (entry,) = json.loads(captured.out)
    assert not entry["ok"] and entry["error"] is None
    assert [problem.split(":")[0] for problem in entry["problems"]] == ["parameters", "MACs", "state_dict"]
    assert f"fastcnn check: {NAME}: parameters: wanted 2278604, got 1366792" in captured.err


def test_a_wrong_activation_is_told_by_the_logits(capsys, monkeypatch):
    right = registry._ENTRY_POINTS[NAME]

    def wrong(**kwargs) -> nn.Module:
        net = right(**kwargs)
        net.conv5.activation = "relu6"
        return net

    monkeypatch.setitem(registry._ENTRY_POINTS, NAME, wrong)
    assert main(["check", NAME]) == 1
    captured = capsys.readouterr()
    assert f"fastcnn check: {NAME}: logits: error" in captured.err and captured.out.rstrip().endswith("differs")


def test_where_no_package_has_it_the_torch_backend_does(capsys, monkeypatch):
    facts_of(monkeypatch, reference=f"plain:{NAME}")
    assert main(["check", NAME]) == 0
    out = capsys.readouterr().out
    assert "torch backend" in out.splitlines()[2] and REFERENCE not in out


def test_a_missing_package_is_named_with_its_command(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    assert main(["check", NAME]) == 1
    captured = capsys.readouterr()
    assert f"{sys.executable} -m pip install torchvision" in captured.err and "Traceback" not in captured.err


@pytest.mark.parametrize("arguments", [[], ["--all", NAME], ["no_such_net"], ["none*"]], ids=" ".join)
def test_usage_mistakes(arguments, capsys):
    assert main(["check", *arguments]) == 2
    assert capsys.readouterr().out == ""


def test_big_nets_run_on_a_smaller_input_where_they_can():
    facts = {"input_size": [3, 299, 299], "min_size": 75}
    assert check.size_to_run(facts, 5 * 10**9) == [3, 299, 299]
    assert check.size_to_run(facts, 7 * 10**9) == [3, 160, 160]
    assert check.size_to_run(facts | {"min_size": 171}, 7 * 10**9) == [3, 171, 171]
    assert check.size_to_run(facts | {"max_size": 299}, 7 * 10**9) == [3, 299, 299]


def test_nothing_starts_at_a_value_that_hides_it():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4))
    nn.init.zeros_(net[0].weight)
    nn.init.zeros_(net[0].bias)
    with torch.no_grad():
        check._fill(net)
    assert all(p.any() and p.unique().numel() > 1 for p in net.parameters())
