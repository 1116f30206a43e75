# SPDX-License-Identifier: Apache-2.0
"""Units that shuffle again and again move only the channels that they compute with."""

import pytest
import torch

from fastcnn.accelerate.capture import capture
from fastcnn.accelerate.cost import cost
from fastcnn.accelerate.rewrites.channel_gather import channel_gather
from tests.accelerate.channel_programs import Conv, Net, act, ops_of, rewritten, shuffle

paired = torch.ops.fastcnn.channel_shuffle_concat


def units(net, x, count=4):
    x = paired(net.left(x), net.right(x))
    for i in range(count):
        half = getattr(net, f"point{i}")(x[:, 6:])
        x = paired(x[:, :6], getattr(net, f"expand{i}")(getattr(net, f"depth{i}")(half)))
    return x


def parts(count=4, groups=1):
    net = {"left": Conv(12, 6), "right": Conv(12, 6, 3, activation="relu"), "last": Conv(12, 5),
           "strided": Conv(12, 12, 3, 2, 12), "after": Conv(12, 4)}  # fmt: skip
    for i in range(count):
        net |= {f"point{i}": Conv(6, 6, groups=groups, activation="relu"), f"depth{i}": Conv(6, 6, 3, groups=6),
                f"expand{i}": Conv(6, 6, activation="relu")}  # fmt: skip
    return net


def down(net, x):
    x = units(net, x)
    return net.last(x), net.after(net.strided(x))


@pytest.mark.parametrize("function", [lambda net, x: net.last(units(net, x)), down], ids=["dense", "downsampling"])
def test_only_what_a_unit_reads_is_moved(function):
    net = Net(function, **parts())
    before = capture(net.double().eval(), (torch.randn(2, 12, 5, 6).double(),)).program
    count, program, _ = rewritten(channel_gather, net, bitwise=False)
    assert count == 5
    names = ops_of(program)
    assert "channel_shuffle_concat" not in names
    assert [node.meta["val"].shape[1] for node in program.graph.nodes if node.name.startswith("cat")] == [6] * 4 + [12]
    # Five times 12 channels were read and written, now four times 6 and once 12; 5 x 6 pixels of 2 bytes.
    assert cost(before).bytes - cost(program).bytes == 2 * (5 * 12 - 4 * 6 - 12) * 30 * 2
    assert cost(before).launches == cost(program).launches


def test_what_is_cut_and_joined_again_is_read_where_it_lies():
    def function(net, x):
        first, second = shuffle(x, 3).chunk(2, 1)
        return net.wide(torch.cat([x, second, first], 1))

    count, program, _ = rewritten(channel_gather, Net(function, wide=Conv(24, 5)), bitwise=False)
    assert count == 1
    assert ops_of(program) == ["cat", "conv_bn_act"]


def returned(net, x):
    return units(net, x)


def one_unit(net, x):
    return net.last(paired(net.left(x), net.right(x)))


def half_is_returned(net, x):
    x = units(net, x)
    return net.last(x), act(x[:, 6:])


def sources_are_read_in_order(net, x):
    """What passes by is bound to its channels by a residual: it keeps its order, and the rest goes ahead."""
    left = net.left(x)
    y = paired(left, net.right(x))
    y = paired(y[:, :6], net.depth0(y[:, 6:], left))
    return net.last(y)


LEFT = {
    "returned": (returned, 5, "returned"),
    "nothing to save": (one_unit, 1, ""),
    "a half is returned": (half_is_returned, 5, "returned"),
    "a residual keeps the order": (sources_are_read_in_order, 2, "in two orders"),
}


@pytest.mark.parametrize("name", LEFT)
def test_it_stays(name):
    function, shuffles, reason = LEFT[name]
    count, program, left = rewritten(channel_gather, Net(function, **parts()), bitwise=False)
    assert count == 0
    assert ops_of(program).count("channel_shuffle_concat") == shuffles
    assert len(left) == (shuffles if reason else 0)
    assert all(reason in each for each in left)


def test_grouped_units_stay():
    count, program, _ = rewritten(
        channel_gather, Net(lambda net, x: net.last(units(net, x)), **parts(groups=3)), bitwise=False
    )
    assert count == 0
    assert ops_of(program).count("channel_shuffle_concat") == 5
