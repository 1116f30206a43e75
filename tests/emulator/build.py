# SPDX-License-Identifier: Apache-2.0
"""Compiles the kernels of csrc/cuda for the CPU, a module per op, with a C++ compiler and CUDA's headers."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import torch

ROOT = Path(__file__).resolve().parents[2]
# A tree with the same folders, some of its sources changed: what the mutation tests compile.
SOURCES = Path(os.environ.get("FASTCNN_EMULATOR_SOURCES", ROOT))
SANITIZE = os.environ.get("FASTCNN_EMULATOR_SANITIZE") == "1"
COMPILER = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-DFASTCNN_EMULATOR",
         "-DFASTCNN_WITH_DOUBLE=1", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]  # fmt: skip
if SOURCES == ROOT:
    FLAGS.append("-Werror")  # a planted bug may leave a variable unused
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fsanitize-sections=fastcnn_shared",
              "-fno-omit-frame-pointer", "-g1"]  # fmt: skip


def _cuda_include() -> Path | None:
    """The folder with cuda_fp16.h: of the toolkit, else of the wheels that torch or Triton bring along."""
    nvcc = shutil.which("nvcc")
    site = Path(torch.__file__).parents[1]
    places = [Path(os.environ["CUDA_HOME"]) / "include"] if "CUDA_HOME" in os.environ else []
    if nvcc:
        # nvcc may be a script that calls the one in the toolkit: ask where that takes its headers from
        lines = subprocess.run([nvcc, "--dryrun", "-c", "x.cu"], capture_output=True, text=True, check=False).stderr
        tops = [line.split("TOP=", 1)[1].strip() for line in lines.splitlines() if "TOP=" in line]
        places += [Path(top) / "include" for top in tops] + [Path(nvcc).resolve().parents[1] / "include"]
    places += [*site.glob("nvidia/cu*/include"), site / "nvidia/cuda_runtime/include"]
    places += [site / "triton/backends/nvidia/include"]
    names = ("cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h", "crt/host_defines.h")
    return next((place for place in places if all((place / name).is_file() for name in names)), None)


CUDA_INCLUDE = _cuda_include()


def why_not() -> str | None:
    if shutil.which(COMPILER) is None:
        return f"no C++ compiler: {COMPILER} is not found"
    if CUDA_INCLUDE is None:
        return "no CUDA headers: install nvidia-cuda-runtime and nvidia-cuda-crt, triton, or the CUDA toolkit"
    return None


def _pybind11_include() -> Path:
    found = importlib.util.find_spec("pybind11")
    package = Path(found.origin).parent if found and found.origin else Path(torch.__file__).parent
    return package / "include"


def _digest(files: list[Path], flags: list[str]) -> str:
    state = hashlib.sha256(repr(flags).encode())
    for path in files:
        state.update(path.name.encode() + path.read_bytes())
    return state.hexdigest()[:16]


def module(name: str, folder: Path) -> ModuleType:
    """The module ``emulated_<name>`` of tests/emulator/<name>.cpp, compiled into ``folder`` once."""
    flags = FLAGS + (SANITIZERS if SANITIZE else [])
    here = SOURCES / "tests/emulator"
    watched = [*here.glob("*.h"), here / f"{name}.cpp", *SOURCES.glob("csrc/cuda/*.cuh"), *SOURCES.glob("csrc/*/*.h")]
    library = folder / _digest(sorted(watched), flags) / f"emulated_{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    library.parent.mkdir(parents=True, exist_ok=True)
    with open(library.with_suffix(".lock"), "w") as lock:  # of several workers, one compiles
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.is_file():
            system = [CUDA_INCLUDE, _pybind11_include(), sysconfig.get_path("include")]
            command = [COMPILER, *flags, f"-I{here}", *(f"-isystem{place}" for place in system)]
            fresh = library.with_suffix(".fresh")
            # the sanitizer's runtime is preloaded into Python: see test_sanitizers.py
            environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
            done = subprocess.run(
                [*command, str(here / f"{name}.cpp"), "-o", str(fresh)],
                capture_output=True, text=True, check=False, env=environment,
            )  # fmt: skip
            if done.returncode != 0:
                raise RuntimeError(f"{name}.cpp does not compile:\n{done.stderr[-6000:]}")
            fresh.replace(library)
    spec = importlib.util.spec_from_file_location(f"emulated_{name}", library)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded
