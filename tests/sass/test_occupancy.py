# SPDX-License-Identifier: Apache-2.0
"""occupancy.py against NVIDIA's own calculator, the header compiled for the host."""

import itertools
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from tests.sass import gate, occupancy

REGISTERS, SHARED, THREADS = (16, 40, 64, 96, 128, 168, 255), (0, 1000, 9216, 49152, 99 << 10), (32, 96, 128, 256, 1024)

SOURCE = """
#include <cstdio>
#include <cstdlib>
#include "cuda_occupancy.h"
int main(int, char** argv) {
  cudaOccDeviceProp device;
  const int arch = atoi(argv[1]);
  device.computeMajor = arch / 10, device.computeMinor = arch % 10;
  device.maxThreadsPerBlock = 1024, device.maxThreadsPerMultiprocessor = atoi(argv[2]);
  device.regsPerBlock = device.regsPerMultiprocessor = 65536, device.warpSize = 32, device.numSms = 1;
  device.sharedMemPerMultiprocessor = device.sharedMemPerBlockOptin = atoi(argv[3]);
  device.sharedMemPerBlock = 49152, device.reservedSharedMemPerBlock = atoi(argv[4]);
  int registers, shared, threads;
  while (scanf("%d %d %d", &registers, &shared, &threads) == 3) {
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = 1024, kernel.numRegs = registers, kernel.sharedSizeBytes = 0;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN, kernel.maxDynamicSharedSizeBytes = shared;
    cudaOccDeviceState state;
    cudaOccResult result;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, shared)) return 1;
    printf("%d\\n", result.activeBlocksPerMultiprocessor);
  }
}
"""


def _folder() -> Path | None:
    site = Path(torch.__file__).parents[1]
    tops = [Path(gate.tool("nvcc")).parents[1] / "include"] if gate.tool("nvcc") else []
    tops += [site / "triton/backends/nvidia/include", *site.glob("nvidia/cu*/include")]
    return next((top for top in tops if (top / "cuda_occupancy.h").is_file()), None)


@pytest.mark.skipif(_folder() is None or shutil.which("g++") is None, reason="no cuda_occupancy.h or no g++")
def test_as_the_header_computes_it(tmp_path):
    source, program = tmp_path / "occupancy.cpp", tmp_path / "occupancy"
    source.write_text(SOURCE, encoding="utf-8")
    subprocess.run(["g++", "-std=c++17", f"-I{_folder()}", "-o", program, source], check=True)
    kernels = list(itertools.product(REGISTERS, SHARED, THREADS))
    for arch, limits in occupancy.LIMITS.items():
        wanted = subprocess.run(
            [program, *map(str, (arch, limits.threads, limits.shared, limits.reserved))],
            input="\n".join(" ".join(map(str, kernel)) for kernel in kernels), capture_output=True, text=True,
            check=True,
        ).stdout.split()  # fmt: skip
        found = {kernel: occupancy.blocks(arch, *kernel) for kernel in kernels if kernel[1] < limits.shared}
        assert found == {kernel: int(n) for kernel, n in zip(kernels, wanted, strict=True) if kernel in found}, arch


def test_known_figures():
    """128 threads of 128 registers: four blocks of 65,536 registers; h-swish fills an A100."""
    assert occupancy.blocks(80, 128, 0, 128) == 4 and occupancy.occupancy(80, 128, 0, 128) == 0.25
    assert occupancy.occupancy(80, 19, 0, 256) == 1 and occupancy.blocks(90, 255, 0, 512) == 0
