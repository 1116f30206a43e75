# SPDX-License-Identifier: Apache-2.0
"""Runs the ``check_*`` functions of a test file in a process whose Triton is the interpreter.

Triton reads TRITON_INTERPRET when it is imported, and a test process may have imported it already.
"""

import importlib
import importlib.util
import os
import subprocess
import sys
import time

import pytest
import torch

from fastcnn import _triton
from tests.packaging.tools import ROOT

needs_triton = pytest.mark.skipif(_triton.why_not() is not None, reason=f"Triton is not usable: {_triton.why_not()}")


SOURCES = "FASTCNN_TRITON_SOURCES"  # a folder to take the kernels from instead of the package's own


def start(module: str, *checks: str, **environment: str) -> subprocess.CompletedProcess:
    """The ``checks`` of the module, all of them without a name, in an interpreting process."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path, **environment}
    return subprocess.run(
        [sys.executable, "-m", "tests.triton.interpreter", module, *checks],
        env=env, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def run_checks(module: str) -> None:
    done = start(module)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-6000:]


def load_kernels() -> None:
    """Makes fastcnn.triton_kernels importable before any op ran, from the folder of SOURCES where it is set."""
    name = _triton._PACKAGE
    if SOURCES in os.environ and name not in sys.modules:
        folder = os.environ[SOURCES]
        spec = importlib.util.spec_from_file_location(
            name, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
        )
        sys.modules[name] = importlib.util.module_from_spec(spec)
    _triton._package()


def _main(module: str, *names: str) -> None:
    from tests.conftest import poisoned_allocations

    load_kernels()
    with pytest.MonkeyPatch.context() as patch:
        getattr(poisoned_allocations, "__wrapped__", poisoned_allocations)(patch)
        loaded = importlib.import_module(module)
        checks = [function for name, function in vars(loaded).items() if name.startswith("check_")]
        checks = [check for check in checks if not names or check.__name__ in names]
        assert checks, f"{module} has no checks"
        for check in checks:
            torch.manual_seed(0)
            start = time.perf_counter()
            check()
            print(f"{check.__name__}: {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
