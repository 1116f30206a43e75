# SPDX-License-Identifier: Apache-2.0
from typing import Any

from benchmarks.shapes import Call

OPS = ("depthwise_se_gate",)


def bench_depthwise_se_gate(time_op: Any, call: Call, layout: str, implementation: str) -> None:
    time_op(call, layout, implementation)
