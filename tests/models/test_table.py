# SPDX-License-Identifier: Apache-2.0
"""The document of the models: a row each, the measured figures in it, nothing written of a net that differs."""

import json

import pytest

from fastcnn.models import list_models
from tests.models import table

V2 = {
    "model": "mobilenet_v2", "ok": True, "parameters": 3504872, "macs": 300774272, "input_size": [3, 224, 224],
    "error": 2.76e-6,
    "error64": None,
}  # fmt: skip


def test_a_row_for_every_model_with_what_was_measured(tmp_path, monkeypatch):
    results = [V2, V2 | {"model": "efficientnet_lite4", "input_size": [3, 160, 160]}]
    path = tmp_path / "check.json"
    path.write_text(json.dumps(results), encoding="utf-8")
    monkeypatch.setattr(table, "DOCUMENT", tmp_path / "docs/ARCHITECTURES.md")
    table.main([str(path), "--write"])
    rows = [line for line in table.DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert {row.split("`")[1] for row in rows} == set(list_models()) and len(rows) == len(list_models())
    assert (
        "| `mobilenet_v2` | [1801.04381](https://arxiv.org/abs/1801.04381) | 3x224x224 | 3,504,872 | 300.8 M | "
        "torchvision `mobilenet_v2` | 71.878 | 2.8e-06 |"
    ) in rows
    assert next(row for row in rows if "`efficientnet_lite4`" in row).endswith("| 2.8e-06 * |")
    assert next(row for row in rows if "`mobilenet_v3_small`" in row).endswith("| not measured |")


def test_a_net_that_differs_ends_it():
    with pytest.raises(SystemExit, match="not equal to their reference: mobilenet_v2"):
        table.write_table([V2 | {"ok": False}])
