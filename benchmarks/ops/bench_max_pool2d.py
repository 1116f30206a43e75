# SPDX-License-Identifier: Apache-2.0
from typing import Any

from benchmarks.shapes import Call

OPS = ("max_pool2d",)


def bench_max_pool2d(time_op: Any, call: Call, layout: str, implementation: str) -> None:
    time_op(call, layout, implementation)
