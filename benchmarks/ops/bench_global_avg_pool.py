# SPDX-License-Identifier: Apache-2.0
from typing import Any

from benchmarks.shapes import Call

OPS = ("global_avg_pool",)


def bench_global_avg_pool(time_op: Any, call: Call, layout: str, implementation: str) -> None:
    time_op(call, layout, implementation)
