# SPDX-License-Identifier: Apache-2.0
"""Slices and concats along the channels that the program does not need."""

import pytest
import torch

from fastcnn.accelerate.program import Notes
from fastcnn.accelerate.rewrites.slices import slices
from tests.accelerate.channel_programs import Net, act, ops_of, rewritten, shuffle


def three(x):
    return act(x), act(x, "sigmoid"), act(x, "silu")


def paired(a, b):
    return torch.ops.fastcnn.channel_shuffle_concat(a, b)


#   what it computes, how many nodes are replaced, the operators afterwards
ACTS = ["activation"] * 3
REPLACED = {
    "slice of a slice": (lambda net, x: x[:, 2:10][:, 1:4], 1, ["slice"]),
    "slice of a slice, from behind": (lambda net, x: x[:, 2:-2][:, -3:], 1, ["slice"]),
    "operand of a concat": (lambda net, x: torch.cat(three(x), 1)[:, 12:24], 1, ACTS[:1]),
    "slice of an operand": (lambda net, x: torch.cat(three(x), 1)[:, 26:30], 1, ["activation", "slice"]),
    "slice over two operands": (
        lambda net, x: torch.cat(three(x), 1)[:, 6:24],
        1,
        ["activation", "activation", "slice", "cat"],
    ),
    "all slices in order": (lambda net, x: act(torch.cat([x[:, :4], x[:, 4:7], x[:, 7:]], 1)), 1, ["activation"]),
    "slices that touch": (
        lambda net, x: torch.cat([act(x), x[:, :4], x[:, 4:7], x[:, 8:]], 1),
        1,
        ["activation", "slice", "slice", "cat"],
    ),
    "concat of concats": (
        lambda net, x: torch.cat([torch.cat(three(x)[:2], 1), torch.cat([x, act(x, "silu")], 1)], 1),
        1,
        [*ACTS, "cat"],
    ),
    "concat of one": (lambda net, x: act(torch.cat([x], 1)), 1, ["activation"]),
    "slice of a shuffled concat": (
        lambda net, x: paired(*three(x)[:2])[:, 2:12],
        1,
        ["activation", "activation", "slice", "slice", "channel_shuffle_concat"],
    ),
    "slice of a shuffle": (lambda net, x: shuffle(x, 2)[:, 4:8], 1, ["slice", "slice", "channel_shuffle_concat"]),
    "shuffled halves": (
        lambda net, x: shuffle(torch.cat([x[:, :6], x[:, 6:]], 1), 3),
        1,
        ["channel_shuffle"],
    ),
    "halves of a concat that meet again": (
        lambda net, x: torch.cat([torch.cat([x, act(x)], 1)[:, :12], torch.cat([x, act(x)], 1)[:, 12:]], 1),
        2,
        ["activation", "cat"],
    ),
}


@pytest.mark.parametrize("name", REPLACED)
def test_it_is_replaced(name):
    function, wanted, ops = REPLACED[name]
    count, program, _ = rewritten(slices, Net(function))
    assert count == wanted
    assert sorted(ops_of(program)) == sorted(ops)


def two_readers(net, x):
    joined = torch.cat([x, act(x)], 1)
    return joined, joined[:, 6:18]


def concat_read_twice(net, x):
    joined = torch.cat([x, act(x)], 1)
    return torch.cat([joined, joined, x], 1)


def shuffle_with_two_readers(net, x):
    mixed = shuffle(x, 2)
    return mixed[:, :6], mixed[:, 6:]


LEFT = {
    "a slice over two operands of a concat that others read": (two_readers, ["activation", "cat", "slice"]),
    "a concat that is read twice": (concat_read_twice, ["activation", "cat", "cat"]),
    "both halves of one shuffle": (shuffle_with_two_readers, ["channel_shuffle", "slice", "slice"]),
    "slices in another order": (lambda net, x: torch.cat([x[:, 6:], x[:, :6]], 1), ["cat", "slice", "slice"]),
    "slices with a gap": (lambda net, x: torch.cat([x[:, :5], x[:, 6:]], 1), ["cat", "slice", "slice"]),
    "slices of two maps": (lambda net, x: torch.cat([x[:, :6], act(x)[:, 6:]], 1), ["activation", "cat", "slice", "slice"]),
    "rows": (lambda net, x: torch.cat([x[:, :, :2], x[:, :, 2:]], 2), ["cat", "slice", "slice"]),
    "rows of channels": (lambda net, x: x[:, 2:6][:, :, 1:3], ["slice", "slice"]),
    "a step": (lambda net, x: x[:, ::2][:, 1:3], ["slice", "slice"]),
    "odd bounds of a shuffle": (lambda net, x: shuffle(x, 2)[:, 1:5], ["channel_shuffle", "slice"]),
    "a shuffle of three groups": (lambda net, x: shuffle(x, 3)[:, 4:8], ["channel_shuffle", "slice"]),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_it_stays(name):
    function, ops = LEFT[name]
    count, program, left = rewritten(slices, Net(function))
    assert count == 0
    assert sorted(name for name in ops_of(program) if name != "alias") == ops
    assert any("more readers" in reason for reason in left) == (name == "a concat that is read twice")


def test_it_finds_nothing_in_its_own_result():
    _, program, _ = rewritten(slices, Net(REPLACED["concat of concats"][0]))
    assert slices(program, Notes()) == 0
