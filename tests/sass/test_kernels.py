# SPDX-License-Identifier: Apache-2.0
"""What holds for every kernel: nothing in local memory, vectors move 16 bytes, registers below a ceiling."""

import re

import pytest

from tests.sass import gate

OPS = sorted(path.stem for path in gate.HERE.glob("*.cu"))
LANES = {"float": 4, "half": 8, "bfloat16": 8, "double": 2}
# At 128 registers 4 blocks of 128 threads fit on a multiprocessor, at 168 three, at 255 two.
CEILING = {"activation_kernel": 64, "depthwise_conv2d_generic_forward_kernel": 96}
# blocks of 256: three fit at 80, four at 64
CEILING |= {"batch_norm_act_forward_kernel": 80, "batch_norm_act_statistics_kernel": 64}
CEILING |= {"batch_norm_act_backward_sums_kernel": 128, "batch_norm_act_backward_input_kernel": 128}
CEILING |= {f"depthwise_conv2d_backward_{of}_kernel": most for of, most in (("input", 128), ("weight", 128))}
# template arguments of a kernel that has a vector path: how many elements a thread moves at once
VECTOR = {"activation_kernel": 0, "depthwise_conv2d_generic_forward_kernel": 0, "depthwise_conv2d_forward_kernel": None}
VECTOR |= {"batch_norm_act_forward_kernel": 0, "batch_norm_act_statistics_kernel": 0}
VECTOR |= {"batch_norm_act_backward_sums_kernel": 0, "batch_norm_act_backward_input_kernel": 0}
VECTOR |= {f"depthwise_conv2d_backward_{of}_kernel": at for of, at in (("input", 0), ("weight", 0), ("tile", None))}
# a value a channel: nothing there is long enough for vectors
SCALAR = {"batch_norm_act_fold_kernel", "batch_norm_act_merge_kernel", "batch_norm_act_backward_merge_kernel"}
# over a few sums
SCALAR |= {"depthwise_conv2d_backward_reduce_kernel"}


def test_every_op_with_an_entry_is_looked_at():
    entries = {
        path.stem
        for path in (gate.ROOT / "csrc/cuda").glob("*.cu")
        # an entry may launch the kernels of other ops only
        if path.with_suffix(".cuh").is_file() or "__global__" in path.read_text(encoding="utf-8")
    }
    assert entries - set(OPS) == set()


@pytest.mark.parametrize("op", OPS)
def test_nothing_is_spilled(kernels, op, arch):
    found = {k.label: (k.stack, k.count(r"\b(LDL|STL)\b")) for k in kernels(op, arch)}
    assert found and {label: figures for label, figures in found.items() if figures != (0, 0)} == {}


@pytest.mark.parametrize("op", OPS)
def test_vectors_move_16_bytes(kernels, op, arch):
    seen = 0
    for kernel in kernels(op, arch):
        if kernel.name in SCALAR:
            continue
        position = VECTOR[kernel.name]
        if position is not None and kernel.parameters[position] != LANES[kernel.dtype]:
            continue
        seen += 1
        stores = [text for _, text in kernel.code if re.search(r"\bSTG\b", text)]
        assert kernel.count(r"\bLDG\S*\.128\b") > 0, kernel.label
        wide = [text for text in stores if ".128" in text]
        # the last thread of an activation moves what is left over, element by element
        assert wide and (wide == stores or kernel.name == "activation_kernel"), (kernel.label, stores)
    assert seen > 0


@pytest.mark.parametrize("op", OPS)
def test_register_ceilings(kernels, op, arch):
    found = {k.label: k.registers for k in kernels(op, arch)}
    over = {
        k.label: k.registers for k in kernels(op, arch) if k.name in CEILING and k.registers > CEILING[k.name]
    }  # fmt: skip
    assert found and over == {}
