# SPDX-License-Identifier: Apache-2.0
"""Copies of the package in every state that an installation can be in, and processes that import them."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
HERE = f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}-{sys.platform}"
IN_SOURCE_FOLDER = f"in the source folder of fastcnn: {sys.executable} -m pip install --no-deps --force-reinstall ."
QUICK = ("activation", "hardswish", "isa", "library", "parallel", "tensor")
ONE_CALL = "import torch, fastcnn; assert fastcnn.ops.hardswish(torch.full((3,), 3.0)).tolist() == [3.0] * 3"


def install_copy(target: Path, library: Path | None = None) -> Path:
    """What a wheel puts into site-packages, in ``target``; no compiled library unless given. Returns fastcnn/lib."""
    skip = shutil.ignore_patterns("lib", "__pycache__")
    shutil.copytree(ROOT / "fastcnn", target / "fastcnn", ignore=skip)
    shutil.copytree(ROOT / "triton_kernels", target / "fastcnn/triton_kernels", ignore=skip)
    folder = target / "fastcnn/lib"
    folder.mkdir()
    if library is not None:
        shutil.copy(library, folder)
    return folder


def copy_source(target: Path) -> Path:
    """The files that a build reads, less the kernels that compile for long: their ops keep the reference."""
    skip = shutil.ignore_patterns("lib", "__pycache__", "*.egg-info")
    for name in ("csrc", "fastcnn", "triton_kernels"):
        shutil.copytree(ROOT / name, target / name, ignore=skip)
    for name in (
        "setup.py",
        "build_plan.py",
        "pyproject.toml",
        "MANIFEST.in",
        "CMakeLists.txt",
        "Makefile",
        "LICENSE",
        "README.md",
        "conftest.py",
    ):
        shutil.copy(ROOT / name, target)
    for path in (target / "csrc/cpu").glob("*.cpp"):
        if path.name.split(".")[0] not in QUICK:
            path.unlink()
    return target


def environment(path: Path | None = None, **changes: str | None) -> dict[str, str]:
    """This process's environment without our variables, ``path`` first among the packages; None removes a variable."""
    env = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith("FASTCNN_") and k not in ("PYTHONPATH", "TRITON_INTERPRET", "CXX", "MAX_JOBS")
    }
    changes = {"PYTHONPATH": str(path) if path else None, "PYTHONDONTWRITEBYTECODE": "1", **changes}
    return {k: v for k, v in {**env, **changes}.items() if v is not None}


def python(
    code: str, path: Path, cwd: Path | None = None, preexec=None, **changes: str | None
) -> subprocess.CompletedProcess:
    """Runs ``code`` with the package of ``path``, away from the source tree."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd or path,
        preexec_fn=preexec,
        env=environment(path, **changes),
        check=False,
    )


def warning_text(reason: str, description: str, fix: str, library: str = "cpu") -> str:
    """The one warning of the loader, whole."""
    return (
        f"RuntimeWarning: fastcnn: the compiled {library} library is not in use ({reason}).\n"
        f"  {description}.\n"
        f"  Every op still works, through its slower plain-torch reference. To fix it: {fix}\n"
        f"  `fastcnn info` tells more; FASTCNN_REQUIRE_EXT=1 makes this an error.\n"
    )


def warns_once(done: subprocess.CompletedProcess, text: str) -> None:
    """``done`` worked, and its standard error is this warning and the source line that Python shows below it."""
    assert done.returncode == 0, done.stderr
    assert re.sub(r"^\S.*?_library\.py:\d+: ", "", done.stderr, count=1) == text + "  _warn_not_loaded(CPU)\n"
