# SPDX-License-Identifier: Apache-2.0
"""Every test of this folder needs a GPU. Where there is none they are skipped, and counted (tests/conftest.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before tests/conftest.py looks for the mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def float32_is_float32() -> Iterator[None]:
    """cuDNN's default is TF32, ten bits of mantissa: the tolerances here are those of float32."""
    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    yield
    for switch, value in zip(switches, before):
        switch.allow_tf32 = value
    torch.cuda.synchronize()  # what a kernel did wrong shows in the test that launched it
