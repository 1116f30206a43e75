# SPDX-License-Identifier: Apache-2.0
"""What holds for every kernel: nothing in local memory, vectors move 16 bytes, registers below a ceiling."""

import re

import pytest

from tests.sass import gate

OPS = sorted(path.stem for path in gate.HERE.glob("*.cu"))
LANES = {"float": 4, "half": 8, "bfloat16": 8, "double": 2}
# At 128 registers 4 blocks of 128 threads fit on a multiprocessor, at 168 three, at 255 two.
CEILING = {"hardswish_kernel": 64, "depthwise_conv2d_generic_forward_kernel": 96}
CEILING |= {f"channel_shuffle_{name}_kernel": 64 for name in ("pairs", "planes", "staged", "gather")}
CEILING |= {f"global_avg_pool_{name}_kernel": 64 for name in ("pixels", "planes", "backward_pixels", "backward_planes")}
CEILING |= {f"se_scale_{name}_kernel": 64 for name in ("pixels", "planes", "weights_backward")}
CEILING |= {"se_scale_gate_kernel": 128, "se_scale_gate_backward_kernel": 128}
CEILING |= {"global_avg_pool_planes_kernel": 80}
# template arguments of a kernel that has a vector path: how many elements a thread moves at once
VECTOR = {"hardswish_kernel": 0, "depthwise_conv2d_generic_forward_kernel": 0, "depthwise_conv2d_forward_kernel": None}
VECTOR |= {"channel_shuffle_pairs_kernel": 0, "channel_shuffle_planes_kernel": 0, "channel_shuffle_staged_kernel": None}
VECTOR |= {f"global_avg_pool_{name}_kernel": 0 for name in ("pixels", "planes", "backward_pixels", "backward_planes")}
# sums that are stored one by one, and gradients that are loaded so
NARROW_STORES, NARROW_LOADS = {"global_avg_pool_planes_kernel"}, {"global_avg_pool_backward_planes_kernel"}
VECTOR |= {f"se_scale_{name}_kernel": 0 for name in ("pixels", "planes")}
VECTOR |= {f"se_scale_{name}_kernel": None for name in ("gate", "gate_backward")}
NARROW_STORES |= {"se_scale_gate_kernel", "se_scale_gate_backward_kernel"}
# kernels without a vector path
SCALAR = {"channel_shuffle_gather_kernel", "se_scale_weights_backward_kernel"}


def test_every_op_with_an_entry_is_looked_at():
    entries = {path.stem for path in (gate.ROOT / "csrc/cuda").glob("*.cu")}
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
        assert kernel.count(r"\bLDG\S*\.128\b") > 0 or kernel.name in NARROW_LOADS, kernel.label
        if kernel.name in NARROW_STORES:
            continue
        wide = [text for text in stores if ".128" in text]
        # the last thread of h-swish moves what is left over, element by element
        assert wide and (wide == stores or kernel.name == "hardswish_kernel"), (kernel.label, stores)
    assert seen > 0


@pytest.mark.parametrize("op", OPS)
def test_register_ceilings(kernels, op, arch):
    found = {k.label: k.registers for k in kernels(op, arch)}
    over = {
        k.label: k.registers for k in kernels(op, arch) if k.name in CEILING and k.registers > CEILING[k.name]
    }  # fmt: skip
    assert found and over == {}
