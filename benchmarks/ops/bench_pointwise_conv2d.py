# SPDX-License-Identifier: Apache-2.0
from typing import Any

from benchmarks.shapes import Call

OPS = ("pointwise_conv2d",)


def bench_pointwise_conv2d(time_op: Any, call: Call, layout: str, implementation: str) -> None:
    time_op(call, layout, implementation)
