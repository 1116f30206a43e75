# SPDX-License-Identifier: Apache-2.0
"""The kernels of csrc/cuda as machine code: 80 and 90 in the short form, every other architecture in the long one."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sass import gate


NEEDS_NO_NVCC = ("test_triton_sass.py", "test_occupancy.py")  # Triton brings its own assembler


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = gate.why_not()
    for item in items:
        if reason and Path(__file__).parent in item.path.parents and item.path.name not in NEEDS_NO_NVCC:
            item.add_marker(pytest.mark.skip(reason=f"no machine code to look at: {reason}"))


@pytest.fixture(
    scope="session",
    params=[*gate.SHORT_ARCHS, *(pytest.param(arch, marks=pytest.mark.long) for arch in gate.LONG_ARCHS)],
    ids=lambda arch: f"sm_{arch}",
)
def arch(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], list[gate.Kernel]]:
    """``kernels(op, arch)``: every kernel of tests/sass/<op>.cu."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "sass"
    folder.mkdir(exist_ok=True)
    return functools.cache(lambda op, arch: gate.compile_kernels(op, arch, folder))
