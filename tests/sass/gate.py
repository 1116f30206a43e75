# SPDX-License-Identifier: Apache-2.0
"""Compiles kernels to machine code and reads it back: registers, stack, and the instructions of each kernel."""

from __future__ import annotations

import fcntl
import functools
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SHORT_ARCHS = (80, 90)
LONG_ARCHS = (75, 86, 89, 100, 120)
TYPES = {"f": "float", "d": "double", "NS_4HalfE": "half", "NS_8BFloat16E": "bfloat16"}


class Kernel(NamedTuple):
    """``parameters``: the template arguments that are numbers, in order; a tile's kernel size and stride come first."""

    name: str
    dtype: str
    parameters: tuple[int, ...]
    registers: int
    stack: int
    shared: int
    code: tuple[tuple[int, str], ...]  # address, instruction

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, text)) for _, text in self.code)

    def loop(self, opcode: str = "FFMA") -> list[str]:
        """The instructions of the loop with the most ``opcode``: from the target of a backward branch to the branch."""
        best: list[str] = []
        for address, text in self.code:
            target = re.search(r"\bBRA(?:\.\w+)* .*?0x([0-9a-f]+)", text)
            if target and int(target[1], 16) < address:
                body = [other for at, other in self.code if int(target[1], 16) <= at <= address]
                if sum(opcode in other for other in body) > sum(opcode in other for other in best):
                    best = body
        return best

    @property
    def label(self) -> str:
        return f"{self.name}<{self.dtype}, {', '.join(map(str, self.parameters))}>"


def _toolkit_folders() -> list[Path]:
    site = Path(torch.__file__).parents[1]
    folders = [Path(os.environ["CUDA_HOME"]) / "bin"] if "CUDA_HOME" in os.environ else []
    if found := shutil.which("nvcc"):
        dry = subprocess.run([found, "--dryrun", "-c", "x.cu"], capture_output=True, text=True, check=False).stderr
        folders += [Path(found).parent, *(Path(top.strip()) / "bin" for top in re.findall(r"TOP=(.*)", dry))]
    return [*folders, *site.glob("nvidia/cu*/bin"), site / "nvidia/cuda_nvcc/bin", site / "triton/backends/nvidia/bin"]


@functools.cache
def tool(name: str) -> str | None:
    return next((str(folder / name) for folder in _toolkit_folders() if os.access(folder / name, os.X_OK)), None)


def why_not() -> str | None:
    if tool("nvcc") is None:
        return "no nvcc: install the CUDA toolkit, or pip install nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm"
    if tool("cuobjdump") is None or tool("nvdisasm") is None:
        return "no cuobjdump or nvdisasm: both come with triton, and with the CUDA toolkit"
    return None


def _dump(option: str, cubin: Path) -> str:
    path = os.pathsep.join([str(Path(tool("nvdisasm")).parent), os.environ.get("PATH", "")])  # cuobjdump calls it
    command = [tool("cuobjdump"), option, str(cubin)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PATH": path}).stdout


def _identity(mangled: str) -> tuple[str, str, tuple[int, ...]]:
    name, arguments = re.match(r"_ZN7fastcnn\d+(\w+?_kernel)I(.*)", mangled).groups()
    dtype = next(TYPES[key] for key in TYPES if arguments.startswith(key))
    # the function's own parameters follow the template's, and may repeat them
    arguments = re.split(r"EEv|EvP|Evl", arguments)[0]
    return name, dtype, tuple(int(number) for number in re.findall(r"L(?:[ibl]|NS_\w+?E)(\d+)E", arguments + "E"))


def compile_kernels(source: str, arch: int, folder: Path) -> list[Kernel]:
    cubin = folder / f"{source}_{arch}.cubin"
    with open(cubin.with_suffix(".lock"), "w") as lock:  # of several workers, one compiles
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not cubin.is_file():
            fresh = cubin.with_suffix(".fresh")
            command = [tool("nvcc"), "-std=c++17", f"-arch=sm_{arch}", "-cubin", "-o", str(fresh), str(HERE / f"{source}.cu")]
            subprocess.run(command, check=True, capture_output=True, text=True)
            fresh.replace(cubin)
    usage = dict(re.findall(r"Function (\w+):\s+(REG:.*)", _dump("-res-usage", cubin)))
    kernels = []
    for part in _dump("-sass", cubin).split("Function : ")[1:]:
        mangled, text = part.split("\n", 1)
        figures = dict(re.findall(r"(REG|STACK|SHARED):(\d+)", usage[mangled.strip()]))
        code = tuple((int(at, 16), line.strip()) for at, line in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", text))
        kernels.append(
            Kernel(
                *_identity(mangled.strip()), int(figures["REG"]), int(figures["STACK"]), int(figures["SHARED"]), code
            )
        )
    return kernels
