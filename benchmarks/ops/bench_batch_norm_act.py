# SPDX-License-Identifier: Apache-2.0
from typing import Any

from benchmarks.shapes import Call

OPS = ("batch_norm_act",)


def bench_batch_norm_act(time_op: Any, call: Call, layout: str, implementation: str) -> None:
    time_op(call, layout, implementation)
