# SPDX-License-Identifier: Apache-2.0
"""The emulated kernels as modules, compiled once per session, and the three orders in which threads run."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.emulator import build

ORDERS = {"forward": 0, "backward": 1, "shuffled": 2}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = build.why_not()
    for item in items:
        if reason and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=f"the emulator is not usable: {reason}"))


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ModuleType]:
    """``emulated(op)``: the module of the op's kernels."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "emulator"
    # a test that runs other tests tells them where it compiles
    folder = Path(os.environ.setdefault("FASTCNN_EMULATOR_FOLDER", str(folder)))
    return functools.cache(lambda name: build.module(name, folder))


@pytest.fixture
def kernels(request: pytest.FixtureRequest, emulated: Callable[[str], ModuleType]) -> ModuleType:
    """The module that the test file names as KERNELS, its threads in order."""
    module = emulated(request.module.KERNELS)
    module.set_order(0, 0)
    return module


@pytest.fixture(params=ORDERS)
def order(request: pytest.FixtureRequest) -> int:
    return ORDERS[request.param]
