# SPDX-License-Identifier: Apache-2.0
"""The table of RESULTS.md: what a cell says, and that every instance of a CUDA kernel finds its block size."""

from tests.sass.table import Figures, cell, cuda_kernels


def test_a_cell_has_one_kernel_or_all_its_instances():
    one = Figures(40, 0, 2048, 0.75, "HMMA")
    assert cell([one]) == "40, 2.0 KiB, 75 %, HMMA"
    assert cell([one, Figures(255, 64, 0, 0.125, "")]) == "40-255, **64 B local**, 0.0-2.0 KiB, 12-75 %, HMMA"
    assert cell([Figures(32, 0, 0, 1.0, "")]) == "32, 100 %"


def test_instances_are_read_from_machine_code(tmp_path):
    (found,) = cuda_kernels("hardswish", 80, tmp_path).values()
    assert len(found) == 16  # forward and backward, vectors and single elements, of four types
    assert all(f.occupancy == 1 and f.local == 0 and 8 <= f.registers <= 64 and f.tensor == "" for f in found)
