# SPDX-License-Identifier: Apache-2.0
"""The maths of the tables, on made-up times."""

import pytest

from benchmarks.models.peers import foreign, scaling, start
from fastcnn.analysis.peers.engines import EAGER, FASTCNN, OPENVINO, OPENVINO_STREAMS, ORT
from fastcnn.analysis.peers.goals import GOALS, verdict, wanted
from fastcnn.analysis.peers.measure import Row
from fastcnn.analysis.peers.table import COLUMNS, cells, draw, markdown
from tests.peers.rows import row


def test_ratio_gflops_and_percent():
    found = row(ours=2.0, batch=4, peak=4000.0)
    assert found.fastest_peer == OPENVINO_STREAMS and found.ratio() == 1.25 and found.ratio(ORT) == 1.5
    assert found.gflops(FASTCNN) == pytest.approx(2000.0)  # 2 x 0.5 G x 4 images in 2 ms
    assert found.percent_of_peak(FASTCNN) == pytest.approx(50.0)
    again = Row.from_dict(found.to_dict())
    assert again == found and found.to_dict()["ratio"] == 1.25


def test_without_a_peer_or_without_us_there_is_no_ratio():
    found = row()
    del found.milliseconds[FASTCNN]
    found.notes[FASTCNN] = "it was wrong"
    assert found.ratio() is None and verdict(found) == "1.4: not measured"
    assert "Not timed: fastcnn on torchvision:mobilenet_v2 at batch 1: it was wrong." in markdown([found])
    alone = row()
    alone.milliseconds = {FASTCNN: 1.0}
    assert alone.fastest_peer is None and alone.ratio() is None and cells(alone)[COLUMNS.index("ratio")] == "-"


@pytest.mark.parametrize("ours, peak, said", [
    (2.5 / 1.4, 1e4, "1.4: met"), (2.5 / 1.39, 1e4, "1.4: **missed**"),
    (2.5, 1000.0 / 2.5 / 0.71, "1.4: met by 70 % of the peak"),
    (2.5, 1000.0 / 2.5 / 0.69, "1.4: **missed**"),
])  # fmt: skip
def test_a_goal_is_met_by_its_ratio_or_by_the_peak(ours, peak, said):
    assert verdict(row(ours=ours, peak=peak)) == said


def test_goals_of_the_issue():
    assert wanted(row("timm:mobilenetv1_100")) == 1.2 and wanted(row("mobilenet_v3_small")) == 1.5
    assert wanted(row("timm:tf_efficientnet_lite0")) == 1.4 and wanted(row("vgg16")) == 1.0
    assert wanted(row("alexnet")) is None and verdict(row("alexnet")) == "" and len(GOALS) >= 16
    assert wanted(row("torchvision:resnet50", dtype="bfloat16")) == 1.2
    assert wanted(row("torchvision:resnet18", dtype="bfloat16")) is None


def test_bfloat16_is_held_against_openvino():
    found = row(ours=2.0, dtype="bfloat16", peak=1.0)  # percent of a peak of fp32 counts for nothing
    assert f"Errors in bfloat16 on torchvision:mobilenet_v2 at batch 1: {FASTCNN} 1.0e-06, {ORT}" in markdown([found])
    assert "Peak" not in markdown([found])
    found.milliseconds[EAGER] = 0.1
    assert found.ratio() < 1.0 and verdict(found) == "1.2: met"
    found.milliseconds[FASTCNN] = 2.2
    assert verdict(found) == "1.2: **missed**"


def test_the_table_shows_losses():
    rows = [row(), row("torchvision:resnet18", ours=3.0), row(ours=1.0, batch=16, noisy=True)]
    text = markdown(rows)
    lines = [line for line in text.splitlines() if line.startswith("| torchvision")]
    assert len(lines) == 3 and all(line.count("|") == len(COLUMNS) + 1 for line in lines)
    assert "| 2.50 (2.40-2.70; 2.25) |" in lines[0]  # the better of OpenVINO's two
    assert "float32, batch 1, 2 threads: goals met by 0 of 2, missed: torchvision:mobilenet_v2 1.25, " in text
    assert "Peak of 2 threads, measured beside each row: 10000 GFLOP/s, " in text and "Errors in bfloat16" not in text
    assert "Slower than the fastest peer: torchvision:resnet18 0.83." in text and "2.50 (noisy)" in lines[2]


def test_the_plot_has_a_bar_an_engine():
    axes = draw([row(), row("torchvision:resnet18")]).axes[0]
    widths = sorted(bar.get_width() for bar in axes.patches)
    assert len(widths) == 8 and widths[-1] == 1.25 and widths[0] == pytest.approx(2.5 / 20)


def scaled(batch, minimum, threads=2):
    return {"kind": "scaling", "model": "net", "batch": batch, "size": [3, 8, 8], "threads": threads, "macs": 10**6,
            "minimum": {FASTCNN: minimum}, "errors": {FASTCNN: 1e-6}, "noisy": False}  # fmt: skip


def test_scaling_is_held_against_the_best_smaller_batch():
    rows = [scaled(1, 3.0), scaled(2, 4.0), scaled(4, 9.2), scaled(8, 16.0), scaled(1, 5.1, threads=1)]
    assert scaling.rise(rows[0], rows) is None
    assert [scaling.rise(each, rows) for each in rows[1:4]] == pytest.approx([2 / 3, 1.15, 1.0])
    assert scaling.over_one_thread(rows[0], rows) == pytest.approx(1.7) and not scaling.over_one_thread(rows[4], rows)
    assert scaling.table(rows).endswith("Missed: net with 2 threads at batch 4 (1.15).")
    assert scaling.table(rows[:2]).endswith("Met.")


def test_a_busy_neighbour_may_cost_us_no_more_than_any_peer():
    found = {"model": "net", "threads": 2, "noisy": False, "notes": {ORT: "needs onnxruntime"}}
    for name in ("alone", "median_alone"):
        found[name] = {FASTCNN: 100.0, OPENVINO: 200.0, EAGER: 300.0}
    for name in ("beside", "median_beside"):
        found[name] = {FASTCNN: 210.0, OPENVINO: 400.0, EAGER: 900.0}
    assert foreign.losses(found) == pytest.approx({FASTCNN: 2.1, OPENVINO: 2.0, EAGER: 3.0})
    text = foreign.table([found])
    assert "missed, less is lost by OpenVINO." in text and "Not timed: ONNX Runtime on net: needs onnxruntime." in text
    found["beside"][FASTCNN] = 199.0
    assert foreign.table([found]).endswith("net, 2 threads: met.")


def test_memory_is_held_against_the_leanest_and_loading_against_half_a_second():
    found = {"model": "net", "threads": 2, "notes": {}, "growth_mb": {FASTCNN: 50.0, ORT: 55.0, OPENVINO: 40.0}}
    assert start.verdict("memory", found) == "OpenVINO's: **missed**"
    found["growth_mb"][FASTCNN] = 40.0
    assert start.verdict("memory", found) == "OpenVINO's: met"
    assert start.verdict("load", found | {"load_ms": {FASTCNN: 499.0}}) == "500 ms: met"
    assert "| net | 2 | 501 | 500 ms: **missed** |" in start.table("load", [found | {"load_ms": {FASTCNN: 501.0}}])
