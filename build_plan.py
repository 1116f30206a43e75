# SPDX-License-Identifier: Apache-2.0
"""What can be built on this machine, and the PEP 517 backend that pyproject.toml names.

The backend is setuptools' own, plus the requirements that only some machines have: cmake and ninja where they are
missing; torch only where no environment around the build has it, so that an isolated build does not fetch 5 GB in
vain. Nothing here downloads, and torch is never imported: its folder is all that the LibTorch stable ABI needs.

FASTCNN_CUDA=auto|0|1  FASTCNN_CUDA_ARCHS="90;120"  FASTCNN_TORCH=folder  MAX_JOBS=n  CXX=compiler  CUDA_HOME=folder
"""

import functools
import importlib.util
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

from setuptools.build_meta import *  # noqa: F403  (the hooks of PEP 517; two are extended below)
from setuptools.build_meta import get_requires_for_build_editable as _requires_for_editable
from setuptools.build_meta import get_requires_for_build_wheel as _requires_for_wheel

TORCH_NEEDED, CMAKE_NEEDED = (2, 10), (3, 22)
GB_PER_JOB = 2.5  # what one nvcc process takes at its peak


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text)[:2])


def _site_folders() -> list[Path]:
    """Where the packages of the environment around the build lie: pip's isolation hides them from sys.path only."""
    paths = [*sysconfig.get_paths().values(), site.getusersitepackages()]
    config = Path(sys.prefix, "pyvenv.cfg")
    if config.is_file() and re.search(r"include-system-site-packages\s*=\s*true", config.read_text(encoding="utf-8")):
        base = {"base": sys.base_prefix, "platbase": sys.base_prefix}
        paths += [sysconfig.get_path(name, vars=base) for name in ("purelib", "platlib")]
    venv = os.environ.get("VIRTUAL_ENV")
    return [Path(p) for p in paths] + (sorted(Path(venv).glob("lib/python*/site-packages")) if venv else [])


@functools.cache
def find_torch() -> tuple[Path | None, str, str | None]:
    """(folder, version, CUDA version) of the torch to build for, or (None, why not, None)."""
    asked = os.environ.get("FASTCNN_TORCH")
    spec = importlib.util.find_spec("torch")
    folders = [Path(spec.origin).parent] if spec and spec.origin else []
    why = "no torch was found"
    for folder in [Path(asked)] if asked else [*folders, *(p / "torch" for p in _site_folders())]:
        version_file = folder / "version.py"
        if not version_file.is_file():
            continue
        text = version_file.read_text(encoding="utf-8")
        version = re.search(r"__version__ = '([^']+)'", text)[1]
        cuda = re.search(r"^cuda\b[^=]*= '([^']+)'", text, re.MULTILINE)
        if numbers(version) >= TORCH_NEEDED and (folder / "include/torch/csrc/stable/library.h").is_file():
            return folder, version, cuda[1] if cuda else None
        why = f"torch {version} in {folder} is too old, 2.10 is the first that will do"
    return None, f"FASTCNN_TORCH={asked} is not the folder of a torch >= 2.10" if asked else why, None


def find_tool(name: str, least: tuple[int, ...] = ()) -> str | None:
    """The program on PATH or in the environment of this Python, which need not be activated."""
    for path in (shutil.which(name), shutil.which(name, path=sysconfig.get_path("scripts"))):
        # Runs it: a cmake installed by pip is a script that fails where isolation hides its package.
        run = path and subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        if run and run.returncode == 0 and numbers(run.stdout) >= least:
            return path
    return None


def _find_nvcc() -> str | None:
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    asked = [str(Path(home, "bin", "nvcc")) for home in homes if home]
    return next(
        filter(None, map(shutil.which, [*asked, os.environ.get("CUDACXX", ""), "nvcc", "/usr/local/cuda/bin/nvcc"])),
        None,
    )


def plan_cuda(torch: tuple[Path | None, str, str | None]) -> SimpleNamespace:
    """The CUDA library: .nvcc when it will be built, else .reason; .error stops the build, .warning does not."""
    folder, version, torch_cuda = torch
    plan = SimpleNamespace(nvcc=None, reason=None, error=None, warning=None)
    mode, nvcc = os.environ.get("FASTCNN_CUDA", "auto"), _find_nvcc()
    if mode not in ("auto", "0", "1"):
        plan.error = f"FASTCNN_CUDA must be auto, 0 or 1, got {mode!r}"
    elif mode == "0":
        plan.reason = "FASTCNN_CUDA=0 was set"
    elif torch_cuda is None or not (folder / "lib/libtorch_cuda.so").is_file():
        plan.reason = f"torch {version} has no CUDA" if folder else version
    elif nvcc is None:
        plan.reason = "nvcc was not found on PATH, in CUDA_HOME or in /usr/local/cuda"
    else:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
        release = re.search(r"release (\d+\.\d+)", text)
        toolkit = release[1] if release else "of an unknown version"
        both = f"{nvcc} is CUDA {toolkit}, torch {version} in {folder} is built with CUDA {torch_cuda}"
        if numbers(toolkit)[:1] != numbers(torch_cuda)[:1]:
            plan.error = (
                f"{both}: the major versions must be the same. "
                f"Set CUDA_HOME to a CUDA {torch_cuda} toolkit, or FASTCNN_CUDA=0"
            )
        else:
            plan.nvcc, plan.warning = (
                nvcc,
                f"{both}: a differing minor version works in practice" if toolkit != torch_cuda else None,
            )
    if mode == "1" and plan.reason:
        plan.error = f"FASTCNN_CUDA=1, but the CUDA library cannot be built: {plan.reason}"
    return plan


def _find_compiler() -> str | None:
    asked = os.environ.get("CXX", "").split()[-1:]  # CXX may be "ccache g++"
    return next(filter(None, map(shutil.which, asked or ["c++", "g++", "clang++"])), None)


@functools.cache
def plan_build() -> SimpleNamespace:
    """.torch and .cuda as above; .reason: why nothing will be compiled; .needs: what has to be done first."""
    torch, compiler = find_torch(), _find_compiler()
    reason = needs = None
    if sys.platform != "linux":
        reason = f"the compiled libraries are for Linux, this is {sys.platform}"
    elif compiler is None:
        reason, needs = "no C++ compiler was found", "install g++ (or set CXX)"
    elif torch[0] is None:
        reason, needs = torch[1], "pip install 'torch>=2.10' (or set FASTCNN_TORCH)"
    elif not (find_tool("cmake", CMAKE_NEEDED) and find_tool("ninja")):
        reason, needs = "cmake >= 3.22 and ninja were not found", "pip install cmake ninja"
    return SimpleNamespace(torch=torch, compiler=compiler, cuda=plan_cuda(torch), reason=reason, needs=needs)


def _memory_gb() -> float:
    """What may still be used here: MemAvailable, or what is left to the control group or one around it."""
    left = [int(re.search(r"MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024]
    group = re.search(r"^0::(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    folder = Path("/sys/fs/cgroup", group[1].lstrip("/")) if group else Path("/sys/fs/cgroup/memory")
    for top in (folder, *folder.parents):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            if (top / limit).is_file() and (text := (top / limit).read_text().strip()) != "max":
                left.append(max(0, int(text) - int((top / used).read_text())))
    return min(left) / 1e9


def job_count() -> tuple[int, str]:
    """(parallel compilers, why so many)."""
    asked = os.environ.get("MAX_JOBS")
    if asked:
        if not asked.isdecimal() or int(asked) < 1:
            raise SystemExit(f"fastcnn: MAX_JOBS must be a whole number from 1 up, got {asked!r}")
        return int(asked), "MAX_JOBS"
    cores, memory = len(os.sched_getaffinity(0)), _memory_gb()
    jobs = max(1, min(cores, int(0.7 * memory / GB_PER_JOB)))
    return jobs, f"{cores} cores, {memory:.1f} GB of memory free, {GB_PER_JOB} GB each; MAX_JOBS=n overrides"


def _machine_requirements() -> list[str]:
    if sys.platform != "linux" or _find_compiler() is None:
        return []
    tools = [] if find_tool("cmake", CMAKE_NEEDED) else ["cmake>=3.22"]
    tools += [] if find_tool("ninja") else ["ninja"]
    return tools + (["torch>=2.10"] if find_torch()[0] is None and "FASTCNN_TORCH" not in os.environ else [])


def get_requires_for_build_wheel(config_settings=None) -> list[str]:
    return _requires_for_wheel(config_settings) + _machine_requirements()


def get_requires_for_build_editable(config_settings=None) -> list[str]:
    return _requires_for_editable(config_settings) + _machine_requirements()
