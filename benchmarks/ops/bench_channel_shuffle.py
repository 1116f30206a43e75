# SPDX-License-Identifier: Apache-2.0
from typing import Any

from benchmarks.shapes import Call

OPS = ("channel_shuffle", "channel_shuffle_concat")


def bench_channel_shuffle(time_op: Any, call: Call, layout: str, implementation: str) -> None:
    time_op(call, layout, implementation)
