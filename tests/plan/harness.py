# SPDX-License-Identifier: Apache-2.0
"""Builds harness.cpp with the kernels of one instruction set under a sanitizer, and runs cases in it."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastcnn.accelerate.plan.builder import Plan
from fastcnn.accelerate.plan.op import shapes_of
from fastcnn.accelerate.plan.words import Place, Value
from tests.emulator.build import _digest as digest

ROOT = Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CXX", "g++")
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"],
    "thread": ["-fsanitize=thread"],
}
LANES = {"plain": 4, "avx2": 8, "avx512": 16}


def _flags(isa: str) -> list[str]:
    """What CMakeLists.txt compiles the kernels of this set with."""
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    found = re.search(rf"set\(flags_{isa} ([^)]*)\)", text)
    return [] if isa == "plain" else found[1].split()


def build(isa: str, sanitizer: str, folder: Path) -> Path:
    """The harness, compiled once per session. One set alone, under the name of the plain one: no other need be compiled."""
    flags = ["-std=c++17", "-O1", "-g1", "-pthread", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi",
             "-DFASTCNN_ISA=plain", *_flags(isa), *SANITIZERS[sanitizer]]  # fmt: skip
    sources = [*ROOT.glob("csrc/cpu/plan/*.cpp"), ROOT / "csrc/cpu/isa.cpp", ROOT / "tests/plan/harness.cpp"]
    watched = [*sources, *ROOT.glob("csrc/cpu/plan/*.h"), *ROOT.glob("csrc/cpu/*.h"), *ROOT.glob("csrc/common/*.h")]
    place = folder / f"plan_{isa}_{sanitizer}_{digest(sorted(watched), flags)}"
    place.mkdir(parents=True, exist_ok=True)
    program = place / "harness"
    with open(place / "lock", "w") as lock:  # of several workers, one compiles
        fcntl.flock(lock, fcntl.LOCK_EX)
        if program.is_file():
            return program

        def compiled(source: Path) -> Path:
            to = place / f"{source.name}.o"
            _call([COMPILER, *flags, "-c", str(source), "-o", str(to)])
            return to

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compiled, sources))
        fresh = program.with_suffix(".fresh")
        _call([COMPILER, *flags, *map(str, objects), "-o", str(fresh)])
        fresh.replace(program)
    return program


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[-1]} does not compile:\n{done.stderr[-6000:]}")


@dataclass
class Case:
    """A plan and its inputs as a file, and what came of it."""

    path: Path
    shapes: list[tuple[int, ...]]

    def results(self) -> list[Tensor] | str:
        """The outputs, [N, C, H, W] or [N, C]; or the error."""
        error = Path(f"{self.path}.error")
        if error.is_file():
            return error.read_text()
        raw = bytearray(Path(f"{self.path}.out").read_bytes())
        floats = torch.frombuffer(raw, dtype=torch.float32) if raw else torch.empty(0)
        parts = floats.split([torch.Size(shape).numel() for shape in self.shapes])
        return [
            part.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)
            for part, shape in zip(parts, self.shapes, strict=True)
        ]


def write_case(
    path: Path, plan: Plan, inputs: list[Tensor], values: list[Value], program: Tensor | None = None
) -> Case:
    """``values`` say which inputs are pictures. ``program``: another one for the same plan."""
    program = plan.program if program is None else program
    pictures = {value.index for value in values if value.place == Place.PICTURE}
    images = inputs[0].shape[0]
    shapes = [(images, *shape) for shape in shapes_of(plan.output_shapes)]
    words = [images, len(program), len(plan.weights), len(inputs), len(shapes)]
    with open(path, "wb") as file:
        file.write(struct.pack("<5q", *words) + program.numpy().tobytes() + plan.weights.numpy().tobytes())
        for i, x in enumerate(inputs):
            C, H, W = (*x.shape[1:], 1, 1)[:3]
            strides = (H * W, W, 1) if i in pictures else (1, W * C, C)  # channel, row, pixel
            dense = x if i in pictures else x.movedim(1, -1)
            file.write(struct.pack("<8q", C, H, W, C * H * W, strides[1], strides[2], strides[0], x.numel()))
            file.write(dense.contiguous().numpy().tobytes())
        for shape in shapes:
            C, H, W = (*shape[1:], 1, 1)[:3]
            file.write(struct.pack("<8q", C, H, W, C * H * W, W * C, C, 1, images * C * H * W))
    return Case(path, shapes)


def run_cases(program: Path, mode: str, threads: int, cases: list[Case]) -> None:
    """Fails with the sanitizer's report."""
    for case in cases:
        for suffix in (".out", ".error"):
            Path(f"{case.path}{suffix}").unlink(missing_ok=True)
    environment = {**os.environ, "ASAN_OPTIONS": "allocator_may_return_null=1:detect_leaks=0",
                   "TSAN_OPTIONS": "halt_on_error=1"}  # fmt: skip
    command = [str(program), mode, str(threads), *(str(case.path) for case in cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=1800)
    assert done.returncode == 0, f"{mode}, {threads} threads: status {done.returncode}\n{done.stderr[-6000:]}"
