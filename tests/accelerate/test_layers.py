# SPDX-License-Identifier: Apache-2.0
"""Times per layer: every operator is run and counted once, in the original's order."""

import pickle

import pytest
import torch
from torch import nn

import fastcnn
from fastcnn.accelerate import clock as timing
from fastcnn.accelerate import layers
from fastcnn.accelerate.layers import LayerTime, layer_times


class Net(nn.Module):
    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)) for _ in range(blocks)))
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head((self.blocks(self.stem(x)) * 2).mean((2, 3)))


@pytest.fixture(scope="module")
def case():
    net, x = Net().eval(), torch.randn(2, 3, 16, 16)
    return net, fastcnn.accelerate(net, x, mapping={"plan": False}), x


@pytest.fixture
def clock(monkeypatch):
    """Every operator takes a millisecond."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(ticks) / 1e3)


def test_rows_are_the_layers_with_all_operators(case, clock):
    net, fast, x = case
    rows = {row.layer: row for row in layer_times(net, fast, x, rounds=3)}
    assert list(rows) == ["stem.0", "stem.1", "stem.2", "blocks.0.0", "blocks.0.1", "blocks.1.0", "blocks.1.1",
                          "blocks.2.0", "blocks.2.1", "(model)", "head"]  # fmt: skip
    assert all(row.before == pytest.approx(1) for name, row in rows.items() if name not in ("(model)", "head"))
    assert rows["blocks.1.1"].after == 0 or rows["blocks.1.0"].after == 0
    assert rows["head"].operators == {"aten.linear": 1}
    calls = sum(node.op == "call_function" for node in fast.runs((x,)).graph.nodes)
    counted = sum(sum(row.operators.values()) for row in rows.values())
    assert counted == calls and sum(row.after for row in rows.values()) == pytest.approx(calls)


@pytest.mark.parametrize(("most", "wanted"), [
    (10, ["stem.0", "stem.1", "stem.2", "blocks.0", "blocks.1", "blocks.2", "(model)", "head"]),
    (7, ["stem", "blocks", "(model)", "head"]), (4, ["stem", "blocks", "(model)", "head"]), (3, 3),
])  # fmt: skip
def test_the_depth_gives_at_most_so_many(case, clock, most, wanted):
    net, fast, x = case
    whole = layer_times(net, fast, x)
    rows = layer_times(net, fast, x, most=most)
    names = [row.layer for row in rows]
    assert names == wanted if isinstance(wanted, list) else (len(names) == wanted and names[-1] == "(others)")
    for place in (1, 2):
        assert sum(row[place] for row in rows) == pytest.approx(sum(row[place] for row in whole))


def test_depths_between():
    names = ["a", "b.0.x", "b.0.y", "b.1.x", "b.1.y", "c"]
    assert [layers._depth(names, most) for most in (6, 5, 4, 3, 2)] == [3, 2, 2, 1, 1]


def test_the_cheapest_are_merged():
    rows = [LayerTime(str(i), float(cost), 0.0, {"op": 1}) for i, cost in enumerate((5, 1, 7, 2, 6))]
    merged = layers._merged(rows, 4)
    assert [(row.layer, row.before) for row in merged] == [("0", 5), ("2", 7), ("4", 6), ("(others)", 3)]
    assert merged[-1].operators == {"op": 2}
    assert layers._merged(rows, 5) == rows


def test_medians_of_the_rounds_after_the_first(monkeypatch):
    class Clock:
        costs = iter([100.0, 9.0, 1.0, 2.0])

        def __init__(self, program):
            self.timed = []

        def run(self, *inputs):
            self.timed = [timing.Timed("op", "layer", next(self.costs), 1, 2, None)]

    monkeypatch.setattr(timing, "Clock", Clock)
    assert timing.measure(None, (), 3) == [timing.Timed("op", "layer", 2.0, 1, 2, None)]


def test_steps_of_a_plan_count_for_their_layers(case):
    net, _, x = case
    fast = fastcnn.accelerate(net, x)
    rows = {row.layer: row for row in layer_times(net, fast, x, rounds=1)}
    steps = fast.report.plans.steps
    assert sum(sum(row.operators.values()) for row in rows.values()) == steps + fast.report.plans.outside_count()
    assert rows["head"].operators == {"linear": 1} and rows["head"].after > 0


def test_half_precision_and_real_time(case):
    net, _, x = case
    fast = fastcnn.accelerate(net, x, dtype=torch.bfloat16)
    rows = layer_times(net, fast, x, rounds=1)
    assert all(row.before >= 0 and row.after >= 0 for row in rows) and sum(row.before for row in rows) > 0


def test_bad_input(case):
    net, fast, x = case
    with pytest.raises(TypeError, match="layer_times: fast must be an accelerated model, got Net"):
        layer_times(net, net, x)
    with pytest.raises(ValueError, match="rounds must be a whole number from 1 up, got 0"):
        layer_times(net, fast, x, rounds=0)
    with pytest.raises(ValueError, match="most must be a whole number from 2 up, got 1"):
        layer_times(net, fast, x, most=1)
    with pytest.raises(ValueError, match="fast must know its layers, got one from a file"):
        layer_times(net, pickle.loads(pickle.dumps(fast)), x)
    with pytest.raises(TypeError, match="example must be a Tensor"):
        layer_times(net, fast, "x")
