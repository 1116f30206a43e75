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
def float32_is_float32_and_results_repeat() -> Iterator[None]:
    """cuDNN's default is TF32, ten bits of mantissa, and algorithms whose sums differ from run to run."""
    switches = [(torch.backends.cudnn, "allow_tf32", False), (torch.backends.cudnn, "deterministic", True),
                (torch.backends.cuda.matmul, "allow_tf32", False)]  # fmt: skip
    before = [getattr(module, name) for module, name, _ in switches]
    for module, name, value in switches:
        setattr(module, name, value)
    yield
    for (module, name, _), value in zip(switches, before):
        setattr(module, name, value)
    torch.cuda.synchronize()  # what a kernel did wrong shows in the test that launched it
