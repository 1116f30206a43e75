# SPDX-License-Identifier: Apache-2.0
"""What holds for every kernel: nothing in local memory, vectors move 16 bytes, registers below a ceiling."""

import re

import pytest

from tests.sass import gate

OPS = sorted(path.stem for path in gate.HERE.glob("*.cu"))
LANES = {"float": 4, "half": 8, "bfloat16": 8, "double": 2}
# template arguments of a kernel that has a vector path: how many elements a thread moves at once; None: every copy has
VECTOR: dict[str, int | None] = {}
NARROW_STORES: set[str] = set()  # sums that are stored one by one
NARROW_LOADS: set[str] = set()  # gradients that are loaded so
SCALAR: set[str] = set()  # kernels over a few sums, or a value a channel: nothing of theirs is wide
# At 128 registers 4 blocks of 128 threads fit on a multiprocessor, at 168 three, at 255 two. Of 256 threads, four at 64
# and three at 80.
CEILING: dict[str, int] = {}

CEILING |= {"activation_kernel": 64}
VECTOR |= {"activation_kernel": 0}

CEILING |= {"batch_norm_act_forward_kernel": 80, "batch_norm_act_statistics_kernel": 64}
CEILING |= {f"batch_norm_act_backward_{of}_kernel": 128 for of in ("sums", "input")}
VECTOR |= {f"batch_norm_act_{of}_kernel": 0 for of in ("forward", "statistics", "backward_sums", "backward_input")}
SCALAR |= {f"batch_norm_act_{of}_kernel" for of in ("fold", "merge", "backward_merge")}

CEILING |= {"depthwise_conv2d_generic_forward_kernel": 96}
CEILING |= {f"depthwise_conv2d_backward_{of}_kernel": 128 for of in ("input", "weight")}
VECTOR |= {"depthwise_conv2d_generic_forward_kernel": 0, "depthwise_conv2d_forward_kernel": None}
VECTOR |= {f"depthwise_conv2d_backward_{of}_kernel": at for of, at in (("input", 0), ("weight", 0), ("tile", None))}
SCALAR |= {"depthwise_conv2d_backward_reduce_kernel"}
NARROW_STORES |= {"depthwise_conv2d_backward_weight_kernel"}  # a row of sums a block

CEILING |= {f"channel_shuffle_{of}_kernel": 64 for of in ("pairs", "planes", "staged", "gather")}
VECTOR |= {"channel_shuffle_pairs_kernel": 0, "channel_shuffle_planes_kernel": 0, "channel_shuffle_staged_kernel": None}
SCALAR |= {"channel_shuffle_gather_kernel"}

CEILING |= {f"global_avg_pool_{of}_kernel": 64 for of in ("pixels", "backward_pixels", "backward_planes")}
CEILING |= {"global_avg_pool_planes_kernel": 80}
VECTOR |= {f"global_avg_pool_{of}_kernel": 0 for of in ("pixels", "planes", "backward_pixels", "backward_planes")}
NARROW_STORES |= {"global_avg_pool_planes_kernel"}
NARROW_LOADS |= {"global_avg_pool_backward_planes_kernel"}

CEILING |= {"max_pool2d_forward_kernel": 80, "max_pool2d_backward_kernel": 128}
VECTOR |= {f"max_pool2d_{of}_kernel": 0 for of in ("forward", "backward")}

CEILING |= {f"se_scale_{of}_kernel": 64 for of in ("pixels", "planes", "weights_backward")}
CEILING |= {f"se_scale_{of}_kernel": 128 for of in ("gate", "gate_backward")}
VECTOR |= {f"se_scale_{of}_kernel": at for of, at in (("pixels", 0), ("planes", 0), ("gate", None), ("gate_backward", None))}
NARROW_STORES |= {"se_scale_gate_kernel", "se_scale_gate_backward_kernel"}
SCALAR |= {"se_scale_weights_backward_kernel"}


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
        assert kernel.count(r"\bLDG\S*\.128\b") > 0 or kernel.name in NARROW_LOADS, kernel.label
        if kernel.name in NARROW_STORES:
            continue
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
