# SPDX-License-Identifier: Apache-2.0
"""`pytest benchmarks [--benchmark-autosave | --benchmark-compare]`: groups per op and shape, implementations torch and fastcnn.

A benchmark asserts that both implementations agree before either is timed. Shapes come from the models (shapes.py).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import implementations, shapes
from fastcnn.analysis import machine

IMPLEMENTATIONS = ("torch", "fastcnn")
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastcnn benchmarks")
    group.addoption("--batch", type=int, action="append", help="batch size of the shapes, repeatable (default 1)")
    group.addoption("--model", action="append", help=f"model whose shapes are timed, repeatable (default {', '.join(shapes.REPRESENTATIVE)})")
    group.addoption("--threads", type=int, default=None, help="torch threads (default: torch's own)")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--threads"):
        torch.set_num_threads(config.getoption("--threads"))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    from fastcnn._library import isa_active

    machine_info.update(torch=torch.__version__, threads=torch.get_num_threads(), fastcnn_isa=isa_active(),
                        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "call" not in metafunc.fixturenames:
        return
    config = metafunc.config
    models, batches = config.getoption("--model") or shapes.REPRESENTATIVE, config.getoption("--batch") or [1]
    calls = [call for op in metafunc.module.OPS for call in shapes.op_calls(op, models, batches)]
    metafunc.parametrize("call", calls, ids=[call.label.replace(" ", "-") for call in calls])
    metafunc.parametrize("layout", LAYOUTS)
    metafunc.parametrize("implementation", IMPLEMENTATIONS)


@pytest.fixture
def time_op(benchmark: Any) -> Any:
    def run(call: shapes.Call, layout: str, implementation: str) -> None:
        pair = implementations.build(call, memory_format=LAYOUTS[layout])
        with torch.inference_mode():
            implementations.assert_equal(call, pair)
            benchmark.group = f"{call.op} {call.label} {layout}"
            benchmark(getattr(pair, implementation))
        if benchmark.stats is None:  # --benchmark-disable
            return
        seconds = benchmark.stats.stats.median
        benchmark.extra_info.update(
            implementation=implementation, layout=layout, gigabytes_per_second=round(pair.bytes / seconds / 1e9, 2),
            gigaflops=round(2 * pair.macs / seconds / 1e9, 2),
            percent_of_roof=round(100 * machine.roof_seconds(pair.bytes, pair.macs) / seconds, 1))

    return run
