# SPDX-License-Identifier: Apache-2.0
from typing import Any

from benchmarks.shapes import Call

OPS = ("conv_bn_act",)


def bench_conv_bn_act(time_op: Any, call: Call, layout: str, implementation: str) -> None:
    time_op(call, layout, implementation)
