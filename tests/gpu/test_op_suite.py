# SPDX-License-Identifier: Apache-2.0
"""The tests of tests/ops with every tensor on the GPU: the same cases, references and tolerances."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.gpu.tools import DEVICE

# what is about the CPU: builds per instruction set, numbers of threads, the CPU's autocast, and arguments made at
# import, before a device could be chosen (test_errors.py has those)
OF_THE_CPU = re.compile("instruction_sets|threads|autocast|beside_a_half_x|wrong|unknown|errors|no_derivative")

for _path in sorted(Path(__file__).parents[1].glob("ops/test_*.py")):
    _module = importlib.import_module(f"tests.ops.{_path.stem}")
    for _name, _test in list(vars(_module).items()):
        if _name.startswith("test_") and not OF_THE_CPU.search(_name) and not _path.stem.endswith("errors"):
            globals()[f"{_path.stem}_{_name.removeprefix('test_')}"] = _test


@pytest.fixture(autouse=True)
def on_the_gpu() -> Iterator[None]:
    with torch.device(DEVICE):
        assert torch.empty(1).device.type == DEVICE
        yield
