# SPDX-License-Identifier: Apache-2.0
"""The recorder of launches: what it notes of a single op by hand, and of the lists against op_lists."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from benchmarks.models import launches, op_lists
from benchmarks.models.launches import BATCH
from benchmarks.models.op_lists import Op
from fastcnn import _triton

if _triton.why_not() is not None:
    pytest.skip(f"no Triton: {_triton.why_not()}", allow_module_level=True)

SQUEEZED = ("mobilenet_v3_large", "mobilenet_v3_small", "efficientnet_b0")


def _run(op, before=None):
    with launches.recorded() as found:
        launches._run(op, before)
    return found


@pytest.mark.parametrize("op", [
    Op("gemm", (16, 112, 112), (96, 112, 112), activation="relu6"),
    Op("gemm", (96, 56, 56), (24, 56, 56), residual=True, gate=True),
    Op("gemm", (64, 56, 56), (128, 56, 56), prologue=True, activation="relu"),
    Op("gemm", (256, 56, 56), (512, 28, 28), stride=2),
    Op("implicit gemm", (128, 56, 56), (32, 56, 56), 3, into=256),
    Op("implicit gemm", (3, 224, 224), (64, 112, 112), 7, 2),
])  # fmt: skip
def test_a_fused_convolution_is_one_launch_of_the_lists_bytes(op):
    (launch,) = _run(op)
    taps = op.x[0] * op.kernel**2
    weights = 2 * (op.y[0] * taps + op.y[0] + (2 * op.x[0] if op.prologue else 0))
    assert launch == ("_conv_bn_act_forward_kernel", BATCH * (op.read + op.written) + weights)


def test_a_depthwise_convolution_may_copy_its_weight():
    op = Op("depthwise", (144, 56, 56), (144, 28, 28), 5, 2, into=288)
    *copies, launch = _run(op)
    assert copies in ([], [("aten::clone", 2 * 2 * 144 * 25)])
    assert launch == ("_depthwise_conv2d_forward_kernel", BATCH * (op.read + op.written) + 2 * 144 * 26)


def test_a_slice_is_written_where_it_lies(monkeypatch):
    given = []
    monkeypatch.setattr(launches, "_bytes", lambda tensors: given.extend(tree_leaves(tensors)) or 1)
    _run(Op("implicit gemm", (128, 56, 56), (32, 56, 56), 3, into=256))
    assert ((BATCH, 32, 56, 56), 256) in [(tuple(t.shape), t.stride(-1)) for t in given if isinstance(t, torch.Tensor)]


@pytest.mark.parametrize("into", [0, 256])
def test_a_pool_writes_no_index_and_lies_where_it_is_wanted(into):
    pool = Op("max pool", (64, 112, 112), (64, 56, 56), 3, 2, into=into)
    assert _run(pool) == [("_max_pool2d_forward_kernel", BATCH * 2 * 64 * (112**2 + 56**2))]


def test_the_squeeze_reads_the_map_again():
    before = Op("depthwise", (72, 56, 56), (72, 28, 28), 5, 2, sums=28)
    names = {launch.name: launch.bytes for launch in _run(Op("se gate", (72, 1, 1), (72, 1, 1), hidden=24), before)}
    assert list(names) == ["_global_avg_pool_sums_kernel", "_sum_parts_kernel", "_se_scale_gate_kernel"]
    assert names["_global_avg_pool_sums_kernel"] >= BATCH * 2 * 72 * 784


def test_the_kernels_are_back_afterwards():
    module = __import__(f"{_triton._package()}.conv_bn_act", fromlist=["x"])
    before = module._conv_bn_act_forward_kernel
    with pytest.raises(ZeroDivisionError), launches.recorded():
        assert module._conv_bn_act_forward_kernel is not before
        1 / 0
    assert module._conv_bn_act_forward_kernel is before


@pytest.mark.parametrize("name", op_lists.NETS)
def test_the_launchers_move_what_the_lists_say_and_a_little(name):
    ops, found = op_lists.op_list(name), launches.record(name)
    own = [launch for launch in found if launch.name.endswith(("forward_kernel", "interleave_kernel", "apply_kernel"))]
    kinds = ("gemm", "implicit gemm", "depthwise", "shuffle concat", "batch norm", "max pool")
    assert len(own) == sum(op.kind in kinds for op in ops)
    weights = sum(op.x[0] * op.y[0] * op.kernel**2 for op in ops if op.kind in ("gemm", "implicit gemm")) * 2 / BATCH
    ratio = launches.megabytes(found) / (op_lists.megabytes(ops) + weights / 1e6)
    again = 1.15 if name in SQUEEZED else 1.01
    assert 0.99 <= ratio <= again
    assert "aten::convolution" not in {launch.name for launch in found}


def test_the_table_has_every_network():
    lines = launches.table().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == list(op_lists.NETS)
    assert len({line.count("|") for line in lines}) == 1


def test_meta_tensors_only():
    with launches.recorded() as found:
        torch.empty(3, device="meta")
    assert found == []
