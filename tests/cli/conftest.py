# SPDX-License-Identifier: Apache-2.0
"""One thread: what these tests check does not depend on it, and idle workers that spin starve a machine that is shared."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(threads)
