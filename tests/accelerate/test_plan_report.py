# SPDX-License-Identifier: Apache-2.0
"""What the report says of plans: as they are now, also after a load or a change of dtype."""

import json

import pytest
import torch
from torch import nn

import fastcnn
from fastcnn.accelerate import Report, module
from fastcnn.accelerate.plan import AVAILABLE
from tests.accelerate.plan_nets import Net, accelerated

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="no compiled CPU library")


def test_all_in_one_plan():
    _, fast = accelerated()
    plans = fast.report.plans
    assert (plans.count, plans.outside, plans.reason) == (1, [], None)
    weights = 4 * sum(p.numel() for p in fast.program.parameters())
    assert weights <= plans.packed_bytes == fast._packed.bytes() <= 8 * weights
    assert plans.arena_bytes == 4 * fast._packed.latest().planned.plans[0].arena > 0
    assert {row["backend"] for row in fast.report.operators.values()} == {"plan"}
    assert f"1 of {plans.steps} steps, 0 operators outside; 0.0 MB of maps an image" in str(fast.report)
    assert fast.report.launches["after"] == 1 and fast.report.bytes["after"] > 0
    found = fast.report.to_dict()
    assert json.loads(json.dumps(found))["plans"]["steps"] == plans.steps
    assert Report.from_dict(found) == fast.report


class Between(Net):
    """With operators that no plan serves between two plans, and one of a kind that both have."""

    def forward(self, x):
        x = torch.nn.functional.gelu(self.stem(x))
        y = x + self.project(torch.relu(self.depthwise(self.expand(x))))
        return self.head(
            torch.flatten(nn.functional.adaptive_avg_pool2d(y[:, :, 1:], 2)[:, :, 0, 0].repeat(1, 2)[:, :18], 1)
        )


def test_what_stays_outside_is_named_with_its_reason():
    torch.manual_seed(0)
    fast = fastcnn.accelerate(Between().eval(), torch.randn(2, 3, 24, 24))
    plans = fast.report.plans
    named = {each.operator: each.reason for each in plans.outside}
    assert named["aten.gelu"] == "the plan has no step for it"
    assert plans.outside_count() == sum(each.count for each in plans.outside) >= 2
    assert f"{plans.count} of {plans.steps} steps, {plans.outside_count()} operators outside" in str(fast.report)
    assert "  outside       1 aten.gelu" in str(fast.report) and "the plan has no step for it" in str(fast.report)
    rows = fast.report.operators
    assert rows["aten.gelu"]["backend"] == "torch"
    assert sum(row["count"] for row in rows.values()) == sum(
        hasattr(node.target, "namespace") for node in fast.program.graph.nodes
    )
    assert "plan" in rows["fastcnn.conv_bn_act"]["backend"]


def test_the_report_is_true_after_a_load_and_another_dtype(tmp_path):
    _, fast = accelerated()
    fast.save(tmp_path / "net")
    loaded = fastcnn.load(tmp_path / "net")
    assert loaded.report.plans == fast.report.plans and loaded.report.operators == fast.report.operators
    loaded.half()
    assert loaded.report.plans.reason == "its weights are float16, plans compute in float32"
    assert "plans      none: its weights are float16" in str(loaded.report)
    assert "plan" not in {row["backend"] for row in loaded.report.operators.values()}
    assert loaded(torch.randn(2, 3, 24, 24)).dtype == torch.float32
    loaded.float()
    assert loaded.report.plans.count == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_another_dtype_runs_on_the_operators(dtype):
    _, fast = accelerated(dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    assert fast.report.plans.reason == f"its weights are {name}, plans compute in float32"
    assert not any("plan" in node.meta for node in fast.runs((torch.zeros(2, 3, 24, 24, dtype=dtype),)).graph.nodes)


def test_bfloat16_needs_a_matrix_unit(monkeypatch):
    monkeypatch.setattr(module, "can_bf16", lambda: False)
    _, fast = accelerated(dtype=torch.bfloat16)
    assert fast.report.plans.reason == "its weights are bfloat16, which this processor has no matrix unit for"
    assert "plan" not in {row["backend"] for row in fast.report.operators.values()}


def test_before_the_first_call_of_a_size(tmp_path):
    _, fast = accelerated(dynamic_size=True)
    fast.save(tmp_path / "net")
    loaded = fastcnn.load(tmp_path / "net")
    assert "made at the first call of that size" in str(loaded.report)
    loaded(torch.randn(1, 3, 30, 20))
    assert loaded.report.plans.count == 1


def test_a_model_without_weights_has_no_plan():
    fast = fastcnn.accelerate(
        nn.Sequential(nn.MaxPool2d(2), nn.ReLU(), nn.MaxPool2d(2)).eval(), torch.randn(1, 3, 8, 8)
    )
    assert fast.report.plans.reason == "it has no weights"
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(fast(x), nn.functional.max_pool2d(nn.functional.max_pool2d(x, 2).relu(), 2))
