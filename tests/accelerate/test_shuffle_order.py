# SPDX-License-Identifier: Apache-2.0
"""Shuffles that disappear into the weights around them, and what keeps one where it is."""

import random

import pytest
import torch
from torch import nn

from fastcnn.accelerate.rewrites.shuffle_order import shuffle_order
from tests.accelerate.channel_programs import Conv, Net, act, ops_of, rewritten, shuffle

POOL = torch.ops.fastcnn.max_pool2d


def normed(net, x):
    return torch.ops.fastcnn.batch_norm_act(x, net.mean, net.var, net.mean, net.var, None, 1e-5, "relu")


def gate(net, x):
    means = torch.ops.fastcnn.global_avg_pool(x)
    return x * act(net.expand(act(net.reduce(means))), "sigmoid")


def head(net, x):
    return net.linear(torch.ops.fastcnn.global_avg_pool(x).flatten(1))


def scaled(net, x):
    args = (net.reduce.weight.flatten(1), net.reduce.bias, net.expand.weight.flatten(1), net.expand.bias)
    return torch.ops.fastcnn.se_scale(x, *args, "relu", "sigmoid")[0]


def twice(net, x):
    return net.last(x), net.dense(x)


def with_itself(function, x):
    return function(x), x


def parts():
    return {
        "dense": Conv(12, 12, 3, activation="relu"), "last": Conv(12, 7), "other": Conv(12, 5), "wide": Conv(24, 6),
        "depthwise": Conv(12, 12, 3, groups=12), "twofold": Conv(12, 24, 3, groups=12), "strided": Conv(12, 12, 3, 2, 12),
        "grouped": Conv(12, 12, groups=3, activation="relu"), "back": Conv(12, 12, groups=3), "reduce": Conv(12, 3),
        "expand": Conv(3, 12), "linear": nn.Linear(12, 4), "mean": torch.randn(12), "var": torch.rand(12) + 0.5,
        "blocks": torch.tensor([8, 9, 10, 11, 1, 0, 3, 2, 4, 5, 6, 7]), "any": torch.tensor([3, 7, 0, 11, 2, 9, 10, 1, 5, 4, 8, 6]),
    }  # fmt: skip


#   what it computes, how many shuffles go, the operators that stay apart from convolutions and activations
GONE = {
    "readers take the order": (lambda net, x: twice(net, shuffle(x, 3)), 1, []),
    "producer writes the order": (lambda net, x: shuffle(net.dense(x), 4), 1, []),
    "producer, before a grouped one": (lambda net, x: net.back(net.depthwise(shuffle(net.dense(x), 3))), 1, []),
    "through a depthwise one": (lambda net, x: net.last(act(net.depthwise(shuffle(x, 3)))), 1, []),
    "depthwise with two results a channel": (lambda net, x: net.wide(net.twofold(shuffle(x, 3))), 1, []),
    "through norm and pool": (
        lambda net, x: net.last(POOL(normed(net, shuffle(x, 3)), [3, 3], [2, 2], [1, 1], False)),
        1,
        ["batch_norm_act", "max_pool2d"],
    ),
    "through a gate": (lambda net, x: net.last(gate(net, shuffle(x, 2))), 1, ["global_avg_pool", "mul"]),
    "through se_scale": (lambda net, x: net.last(scaled(net, shuffle(x, 2))), 1, ["se_scale"]),
    "to the classifier": (lambda net, x: head(net, shuffle(x, 6)), 1, ["global_avg_pool", "linear", "reshape"]),
    "through a concat": (
        lambda net, x: net.wide(torch.cat([act(x), act(shuffle(x, 3))], 1)),
        1,
        ["cat"],
    ),
    "two shuffles that undo each other": (lambda net, x: act(shuffle(act(shuffle(x, 3)), 4)), 2, []),
    "a constant order": (lambda net, x: net.last(torch.index_select(x, 1, net.any)), 1, []),
    "whole groups change places": (lambda net, x: net.last(net.grouped(x[:, net.blocks])), 1, []),
    "both sides of a sum": (
        lambda net, x: net.last(shuffle(net.dense(x), 3) + net.depthwise(shuffle(net.dense(x), 3))),
        2,
        ["add"],
    ),
    "a residual from a dense one": (
        lambda net, x: net.last(net.depthwise(shuffle(x, 3), net.dense(x))),
        1,
        [],
    ),
}


def others(program):
    return sorted(name for name in ops_of(program) if name not in ("conv_bn_act", "activation"))


@pytest.mark.parametrize("name", GONE)
def test_it_disappears(name):
    function, wanted, rest = GONE[name]
    count, program, _ = rewritten(shuffle_order, Net(function, **parts()), bitwise=False)
    assert count == wanted
    assert others(program) == sorted(rest)


STAYS = {
    "producer is grouped, reader too": (lambda net, x: net.back(shuffle(net.grouped(x), 3)), "from group to group"),
    "depthwise between grouped ones": (
        lambda net, x: net.back(net.depthwise(shuffle(net.grouped(x), 3))),
        "from group to group",
    ),
    "returned": (lambda net, x: shuffle(x, 3), "returned"),
    "read by the output too": (lambda net, x: with_itself(net.last, shuffle(x, 3)), "returned"),
    "producer has another reader": (lambda net, x: with_itself(lambda y: shuffle(y, 3), net.dense(x)), "returned"),
    "producer has a residual": (lambda net, x: shuffle(net.dense(x, x), 3), "from outside"),
    "a sum with the unshuffled": (lambda net, x: net.last(shuffle(x, 3) + x), "from outside"),
    "cut in two": (
        lambda net, x: net.wide(torch.cat([act(x), *map(act, shuffle(x, 3).chunk(2, 1))], 1)),
        "other channels",
    ),
    "weights are computed": (
        lambda net, x: torch.ops.fastcnn.conv_bn_act(
            shuffle(x, 3), x[:2, :, :1, :1], None, None, None, None, None, None, [1, 1], [0] * 4, [1, 1], 1, 0.0, "relu"
        ),
        "computed",
    ),
    "softmax over channels": (lambda net, x: net.last(torch.softmax(shuffle(x, 3), 1)), "in this order"),
}


@pytest.mark.parametrize("name", STAYS)
def test_it_stays(name):
    function, reason = STAYS[name]
    count, program, left = rewritten(shuffle_order, Net(function, **parts()), bitwise=False)
    assert count == 0
    assert others(program).count("channel_shuffle") == 1
    assert len(left) == 1
    assert reason in left[0]


@pytest.mark.parametrize("by", ["depthwise", "pool", "constant order"])
def test_it_moves_behind_what_makes_the_map_smaller(by):
    def function(net, x):
        y = net.grouped(x)
        y = y[:, net.any] if by == "constant order" else shuffle(y, 3)
        y = POOL(y, [2, 2], [2, 2], [0, 0], False) if by == "pool" else net.strided(y)
        return net.back(y)

    count, program, _ = rewritten(shuffle_order, Net(function, **parts()), size=(6, 8), bitwise=False)
    assert count == 1
    move, conv = list(program.graph.nodes)[-3:-1]
    assert move.meta["val"].shape[2:] == (3, 4)
    assert move.target.__name__ == ("index.Tensor" if by == "constant order" else "channel_shuffle.default")
    assert conv.args[0] is move


def test_it_does_not_move_behind_what_others_read():
    def function(net, x):
        y = shuffle(net.grouped(x), 3)
        return net.back(net.strided(y)), y

    count, program, _ = rewritten(shuffle_order, Net(function, **parts()), bitwise=False)
    assert count == 0
    assert others(program) == ["channel_shuffle"]


def test_weights_that_others_share_stay_theirs():
    def function(net, x):
        return net.last(shuffle(x, 3)), net.last(x)

    count, program, _ = rewritten(shuffle_order, Net(function, **parts()), bitwise=False)
    assert count == 1
    first, second = [node for node in program.graph.nodes if "conv_bn_act" in node.name]
    assert first.args[1] is not second.args[1]


@pytest.mark.parametrize("seed", range(12))
def test_random_programs_compute_the_same(seed):
    choice = random.Random(seed)

    def function(net, x):
        values = [net.dense(x), x]
        for _ in range(12):
            y = choice.choice(values[-3:])
            kind = choice.randrange(9)
            if kind < 3:
                y = shuffle(y, choice.choice([2, 3, 4, 6]))
            elif kind == 3:
                y = y + choice.choice(values)
            elif kind == 4:
                y = torch.cat([y[:, 6:], choice.choice(values)[:, :6]], 1)
            elif kind == 5:
                y = gate(net, y)
            else:
                y = choice.choice([net.dense, net.grouped, net.depthwise])(y)
            values.append(act(y, "sigmoid"))
        return [net.last(y) for y in values[-2:]]

    state = choice.getstate()

    def again(net, x):
        choice.setstate(state)
        return function(net, x)

    count, _, left = rewritten(shuffle_order, Net(again, **parts()), bitwise=False)
    assert count + len(left) > 0
