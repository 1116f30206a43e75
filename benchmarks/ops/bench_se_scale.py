# SPDX-License-Identifier: Apache-2.0
from typing import Any

from benchmarks.shapes import Call

OPS = ("se_scale",)


def bench_se_scale(time_op: Any, call: Call, layout: str, implementation: str) -> None:
    time_op(call, layout, implementation)
