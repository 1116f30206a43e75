# SPDX-License-Identifier: Apache-2.0
"""Runs the ``check_*`` functions of a test file in a process whose Triton is the interpreter.

Triton reads TRITON_INTERPRET when it is imported, and a test process may have imported it already.
"""

import importlib
import os
import subprocess
import sys
import time

import pytest
import torch

from fastcnn import _triton
from tests.packaging.tools import ROOT

needs_triton = pytest.mark.skipif(_triton.why_not() is not None, reason=f"Triton is not usable: {_triton.why_not()}")


def run_checks(module: str) -> None:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-m", "tests.triton.interpreter", module],
        env=env, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-6000:]


def _main(module: str) -> None:
    from tests.conftest import poisoned_allocations

    _triton._package()  # so that a check may import fastcnn.triton_kernels before any op ran
    with pytest.MonkeyPatch.context() as patch:
        getattr(poisoned_allocations, "__wrapped__", poisoned_allocations)(patch)
        loaded = importlib.import_module(module)
        checks = [function for name, function in vars(loaded).items() if name.startswith("check_")]
        assert checks, f"{module} has no checks"
        for check in checks:
            torch.manual_seed(0)
            start = time.perf_counter()
            check()
            print(f"{check.__name__}: {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    _main(sys.argv[1])
