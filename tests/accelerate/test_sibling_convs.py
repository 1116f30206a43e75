# SPDX-License-Identifier: Apache-2.0
"""Convolutions of one input become one, where that moves less."""

import sys

import pytest
import torch

from fastcnn.accelerate.rewrites.sibling_convs import sibling_convs
from tests.accelerate.channel_programs import Conv, Net, act, ops_of, rewritten


def parts(**more):
    return {
        "a": Conv(12, 4, activation="relu"), "b": Conv(12, 5, activation="relu", bias=False), "c": Conv(12, 3, activation="relu"),
        "after": Conv(4, 6, 3), "point": Conv(5, 6), "silu": Conv(12, 4, activation="silu"), **more,
    }  # fmt: skip


def convs(program):
    return [node for node in program.graph.nodes if "conv_bn_act" in node.name]


def inception(net, x):
    return torch.cat([net.a(x), net.point(net.b(x)), net.c(x)], 1)


def test_branches_become_one_convolution():
    count, program, left = rewritten(sibling_convs, Net(inception, **parts()), bitwise=False)
    assert count == 2
    assert ops_of(program) == ["conv_bn_act", "slice", "slice", "conv_bn_act", "slice", "cat"]
    assert [node.meta["val"].shape[1] for node in convs(program)] == [12, 6]
    assert left == []
    (name,) = [name for name in program.state_dict() if name.startswith("a") and "bias" in name]
    assert program.state_dict()[name][4:9].tolist() == [0.0] * 5


def test_without_any_bias_there_is_none():
    def function(net, x):
        return torch.cat([net.b(x), net.d(x)], 1)

    net = Net(function, b=Conv(12, 5, bias=False), d=Conv(12, 2, bias=False))
    count, program, _ = rewritten(sibling_convs, net, bitwise=False)
    assert count == 1
    assert convs(program)[0].args[2] is None


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"),
    [(1, 2, 1), (3, 1, 1), (3, 2, 1), (3, 1, 2)],
    ids=["1x1 s2", "3x3", "3x3 s2", "dilated"],
)
def test_any_geometry_that_they_share(kernel, stride, dilation):
    def function(net, x):
        return torch.cat([net.d(x), net.e(x)], 1)

    net = Net(function, **{name: Conv(12, n, kernel, stride, dilation=dilation) for name, n in (("d", 4), ("e", 7))})
    count, program, _ = rewritten(sibling_convs, net, bitwise=False)
    assert count == 1
    assert ops_of(program) == ["conv_bn_act", "slice", "slice", "cat"]


def test_a_slice_may_be_copied_where_the_input_is_wide():
    def function(net, x):
        return torch.cat([net.after(net.a(x)), net.b(x)], 1)

    count, program, _ = rewritten(sibling_convs, Net(function, **parts()), bitwise=False)  # 12 channels against 2 * 4
    assert count == 1
    assert [node.meta["val"].shape[1] for node in convs(program)] == [9, 6]


def with_residual(net, x):
    return torch.cat([net.a(x), net.square(x, x)], 1)


def two_inputs(net, x):
    return torch.cat([net.a(x), net.b(act(x))], 1)


def computed(net, x):
    weight = x[:4, :, :1, :1]
    y = torch.ops.fastcnn.conv_bn_act(x, weight, None, None, None, None, None, None, *net.a.rest)
    return torch.cat([net.a(x), y], 1)


def copied(net, x):
    return net.after(net.a(x)), net.again(net.d(x))


LEFT = {
    "one alone": (lambda net, x: torch.cat([net.a(x), x], 1), ""),
    "activations differ": (lambda net, x: torch.cat([net.a(x), net.silu(x)], 1), "that end in"),
    "strides differ": (lambda net, x: (net.a(x) + 1, net.fast(x) + 1), ""),
    "dilations differ": (lambda net, x: torch.cat([net.three(x), net.wide(x)], 1), ""),
    "kernels differ": (lambda net, x: torch.cat([net.a(x), net.three(x)], 1), ""),
    "grouped": (lambda net, x: torch.cat([net.grouped(x), net.a(x)], 1), ""),
    "a residual": (with_residual, ""),
    "inputs differ": (two_inputs, ""),
    "one weight": (lambda net, x: torch.cat([net.a(x), net.a(x)], 1), ""),
    "weights that are computed": (computed, ""),
    "returned": (lambda net, x: (net.a(x), net.b(x)), ""),
    "slices to copy": (copied, "more would be copied"),
}


@pytest.mark.parametrize("name", LEFT)
def test_it_stays(name):
    function, reason = LEFT[name]
    more = {
        "square": Conv(12, 12, activation="relu"), "fast": Conv(12, 4, stride=2, activation="relu"),
        "three": Conv(12, 4, 3, activation="relu"), "wide": Conv(12, 4, 3, dilation=2, activation="relu"),
        "grouped": Conv(12, 6, groups=3, activation="relu"), "d": Conv(12, 4, activation="relu"), "again": Conv(4, 2, 3),
    }  # fmt: skip
    count, program, left = rewritten(sibling_convs, Net(function, **parts(**more)), bitwise=False, batch=4)
    assert count == 0
    assert "slice" not in [op for op in ops_of(program) if name != "weights that are computed"]
    assert bool(left) == bool(reason)
    assert all(reason in each for each in left)


def test_no_more_than_a_bound(monkeypatch):
    monkeypatch.setattr(sys.modules[sibling_convs.__module__], "MOST_CHANNELS", 8)
    count, program, _ = rewritten(sibling_convs, Net(inception, **parts()), bitwise=False)
    assert count == 1
    assert sorted(node.meta["val"].shape[1] for node in convs(program)) == [5, 6, 7]
