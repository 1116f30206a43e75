# SPDX-License-Identifier: Apache-2.0
"""The tests of one file, once more in a process that uses another build of the kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastcnn import _library

each = pytest.mark.parametrize("isa", _library.ISAS)


def rerun(file: str, isa: str, select: str) -> None:
    """Runs the tests of ``file`` whose names hold ``select`` under ``FASTCNN_CPU_ISA=isa``; skips what this machine lacks."""
    machine = _library.isa_machine()
    if machine is None or _library.ISAS.index(isa) > _library.ISAS.index(machine):
        pytest.skip(f"the {isa} kernels do not run here")
    if isa == _library.isa_active():
        pytest.skip(f"this process runs the {isa} kernels")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", file, "-k", select]
    environment = {**os.environ, "FASTCNN_CPU_ISA": isa}
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
