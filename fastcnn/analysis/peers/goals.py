# SPDX-License-Identifier: Apache-2.0
"""How much faster than the fastest peer each model is to be, and whether it is."""

from __future__ import annotations

from fastcnn.analysis.peers.engines import FASTCNN, OPENVINO, OPENVINO_STREAMS
from fastcnn.analysis.peers.measure import Row

ENOUGH_PERCENT = 70.0  # of the multiply-add peak: met, whatever the ratio
HALF_GOAL = 1.2  # in bf16, over OpenVINO
HALF_MODELS = ("mobilenet_v2", "mobilenet_v3_large", "resnet50")

# torchvision's names, then timm's and ours where they differ
GOALS: dict[str, float] = {
    **dict.fromkeys(("mobilenet_v3_large", "mobilenet_v3_small", "shufflenet_v2_x1_0", "efficientnet_b0"), 1.5),
    **dict.fromkeys(("mobilenet_v2", "mnasnet1_0", "tf_efficientnet_lite0", "efficientnet_lite0"), 1.4),
    **dict.fromkeys(("mobilenetv1_100", "mobilenet_v1_x1_0", "mobilenet_v1_timm"), 1.2),
    **dict.fromkeys(("resnet18", "resnet50", "resnext50_32x4d", "googlenet", "densenet121", "inception_v3"), 1.0),
    **dict.fromkeys(("vgg16", "seresnet50", "legacy_seresnet50", "se_resnet50", "se_resnet50_tv"), 1.0),
}  # fmt: skip


def wanted(row: Row) -> float | None:
    """The ratio that the model must reach; None for one without a goal."""
    name = row.model.rpartition(":")[2]
    if row.dtype == "bfloat16":
        return HALF_GOAL if name in HALF_MODELS else None
    return GOALS.get(name)


def reached(row: Row) -> float | None:
    """The ratio that the goal is about: over the fastest peer, in bf16 over OpenVINO's better form."""
    if row.dtype != "bfloat16":
        return row.ratio()
    times = {label: row.milliseconds[label] for label in (OPENVINO, OPENVINO_STREAMS) if label in row.milliseconds}
    return row.ratio(min(times, key=times.__getitem__)) if times else None


def verdict(row: Row) -> str:
    """As in the table's column: the goal, and whether it is met. Empty for a model without one."""
    goal = wanted(row)
    if goal is None:
        return ""
    ratio = reached(row)
    if ratio is None:
        return f"{goal}: not measured"
    if ratio >= goal:
        return f"{goal}: met"
    if row.dtype == "float32" and row.percent_of_peak(FASTCNN) >= ENOUGH_PERCENT:
        return f"{goal}: met by {ENOUGH_PERCENT:.0f} % of the peak"
    return f"{goal}: **missed**"
