# SPDX-License-Identifier: Apache-2.0
"""For every test: the skips that are counted, seeds, and memory that starts as NaN."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch.utils._device import _device_constructors

# torch.device("meta") as a context knows the constructors it asks about first: the real ones, not those put in below
_device_constructors()

NO_GPU = "no CUDA device on this machine"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=NO_GPU))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = sum(NO_GPU in str(report.longrepr) for report in terminalreporter.stats.get("skipped", []))
    if skipped:
        terminalreporter.write_line(f"{skipped} GPU tests skipped: {NO_GPU}")


@pytest.fixture(autouse=True)
def same_seed() -> Iterator[None]:
    torch.manual_seed(0)
    yield


def _poisoned(allocate: Callable) -> Callable:
    def run(*args, **kwargs):
        fresh = allocate(*args, **kwargs)
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if (
            caller.startswith("fastcnn.")
            and type(fresh) is torch.Tensor
            and fresh.device.type in ("cpu", "cuda")
            and fresh.is_floating_point()
        ):
            fresh.fill_(float("nan"))
        return fresh

    return run


@pytest.fixture(autouse=True)
def poisoned_allocations(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the package allocates without a value starts as NaN: an element nobody wrote shows. Not for fake tensors."""
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(torch.Tensor, name, _poisoned(getattr(torch.Tensor, name)))
