# SPDX-License-Identifier: Apache-2.0
"""Every spelling of a channel shuffle becomes the op; what only looks like one stays."""

import pytest
import torch
from torch import nn

from fastcnn.accelerate.capture import capture
from fastcnn.accelerate.channels import inverse, shuffle_groups, shuffled
from fastcnn.accelerate.program import Notes, sweep
from fastcnn.accelerate.rewrites.channel_shuffle import channel_shuffle
from fastcnn.accelerate.rewrites.normalise import normalise
from tests.accelerate import captured
from tests.accelerate.channel_programs import Net, act, ops_of, rewritten, shuffle


def mixed(x, groups, batch=None, channels=None):
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w), (n if batch is None else batch, channels or c, h, w)


def transposed(net, x):
    y, shape = mixed(x, 3)
    return y.transpose(1, 2).contiguous().view(shape)


def negative_batch(net, x):
    y, shape = mixed(x, 3, batch=-1)
    return y.permute(0, 2, 1, 3, 4).reshape(shape)


def negative_channels(net, x):
    n, c, h, w = x.shape
    return x.reshape(-1, 3, c // 3, h, w).transpose(2, 1).reshape(n, -1, h, w)


def flat_map(net, x):
    n, c, h, w = x.shape
    return x.reshape(n, 3, c // 3, h * w).permute(0, 2, 1, 3).reshape(n, c, h, w)


def flattened(net, x):
    return x.unflatten(1, (3, -1)).transpose(1, 2).flatten(1, 2)


def torch_own(net, x):
    return nn.functional.channel_shuffle(x, 3)


def selected(net, x):
    return torch.index_select(x, 1, net.order)


def indexed(net, x):
    return x[:, net.order]


def gathered(net, x):
    n, _, h, w = x.shape
    return torch.gather(x, 1, net.order.view(1, -1, 1, 1).expand(n, -1, h, w))


def pieces_stacked(net, x):
    return torch.stack([x[:, :4], x[:, 4:8], x[:, 8:]], 2).flatten(1, 2)


SPELLINGS = [transposed, negative_batch, negative_channels, flat_map, flattened, torch_own, selected, indexed, gathered]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("function", SPELLINGS, ids=lambda f: f.__name__)
def test_a_spelling_becomes_the_op(function, batch):
    net = Net(lambda net, x: act(function(net, act(x))), order=torch.tensor(shuffled(12, 3)))
    count, program, _ = rewritten(channel_shuffle, net, batch=batch)
    assert count == 1
    assert ops_of(program) == ["activation", "channel_shuffle", "activation"]
    assert [node.args[1] for node in program.graph.nodes if "shuffle" in node.name] == [3]


def stacked(a, b):
    return torch.stack([a, b], 2).flatten(1, 2)


def unsqueezed(a, b):
    return torch.cat([a.unsqueeze(2), b.unsqueeze(2)], 2).reshape(a.shape[0], -1, *a.shape[2:])


def concatenated(a, b):
    return shuffle(torch.cat([a, b], 1), 2)


def by_hand(a, b):
    y, shape = mixed(torch.cat([a, b], 1), 2)
    return y.transpose(1, 2).reshape(shape)


@pytest.mark.parametrize("join", [stacked, unsqueezed, concatenated, by_hand], ids=lambda f: f.__name__)
@pytest.mark.parametrize("swapped", [False, True])
def test_two_of_one_width_become_the_shuffled_concat(join, swapped):
    def function(net, x):
        a, b = act(x, "relu"), act(x, "sigmoid")
        return join(b, a) if swapped else join(a, b)

    count, program, _ = rewritten(channel_shuffle, Net(function))
    assert count == 1
    assert ops_of(program) == ["activation", "activation", "channel_shuffle_concat"]
    first, second = list(program.graph.nodes)[-2].args
    assert (first.args[1], second.args[1]) == (("sigmoid", "relu") if swapped else ("relu", "sigmoid"))


def test_more_than_two_are_joined_and_shuffled():
    def function(net, x):
        return torch.stack([act(x, kind) for kind in ("relu", "silu", "sigmoid")], 2).flatten(1, 2)

    count, program, _ = rewritten(channel_shuffle, Net(function))
    assert count == 1
    assert ops_of(program) == ["activation"] * 3 + ["cat", "channel_shuffle"]
    assert list(program.graph.nodes)[-2].args[1] == 3


def test_even_and_odd_channels_share_one_shuffle():
    def function(net, x):
        n, c, h, w = x.shape
        y = act(x).reshape(n * c // 2, 2, h * w).permute(1, 0, 2).reshape(2, -1, c // 2, h, w)
        return act(y[0]), y[1]

    count, program, _ = rewritten(channel_shuffle, Net(function))
    assert count == 2
    assert sorted(ops_of(program)) == ["activation", "activation", "channel_shuffle", "slice", "slice"]
    assert [node.args[1] for node in program.graph.nodes if "shuffle" in node.name] == [6]


def test_height_and_width_may_be_symbols():
    program = capture(Net(transposed).eval(), (torch.randn(2, 12, 5, 6),), dynamic_size=True).program
    normalise(program, Notes())
    assert channel_shuffle(program, Notes()) == 1
    assert ops_of(sweep(program)) == ["channel_shuffle"]
    x = torch.randn(4, 12, 9, 7)
    assert torch.equal(program(x)[0], transposed(None, x))


def wrong_dims(net, x):
    n, c, h, w = x.shape
    return x.reshape(n, 3, 4, h, w).transpose(1, 3).reshape(n, c, h, w)


def merges_other_dims(net, x):
    n, c, h, w = x.shape
    return x.reshape(n, 2, c // 2, h, w).transpose(2, 1).reshape(n, c // 2, 2 * h, w)


def pixel_shuffle(net, x):
    n, c, h, w = x.shape
    return x.reshape(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)


def groups_do_not_return(net, x):
    n, c, h, w = x.shape
    return x.reshape(n, 3, 2, 2, h, w).permute(0, 2, 1, 3, 4, 5).reshape(n, c, h, w)


def moves_the_batch(net, x):
    n, c, h, w = x.shape
    return x.reshape(2, n // 2, c, h, w).transpose(0, 1).reshape(n, c, h, w)


def inner_value_is_read_again(net, x):
    y, shape = mixed(x, 3)
    y = y.transpose(1, 2).contiguous()
    return y.view(shape), y


def order_is_no_shuffle(net, x):
    return torch.index_select(x, 1, net.order)


LEFT = [
    wrong_dims,
    merges_other_dims,
    pixel_shuffle,
    groups_do_not_return,
    inner_value_is_read_again,
    order_is_no_shuffle,
]


@pytest.mark.parametrize("function", LEFT, ids=lambda f: f.__name__)
def test_what_only_looks_like_it_stays(function):
    net = Net(function, order=torch.tensor([1, 0, 3, 2, *range(4, 12)]))
    count, program, left = rewritten(channel_shuffle, net, size=(3, 6))
    assert count == 0
    assert not any("shuffle" in name for name in ops_of(program))
    if function is order_is_no_shuffle:
        assert left == ["a constant order of the channels, but no shuffle"]


def test_a_shuffle_of_the_batch_stays():
    program = capture(Net(moves_the_batch).eval(), (torch.randn(4, 12, 3, 3),)).program
    assert channel_shuffle(program, Notes()) == 0


@pytest.mark.parametrize("case", ["second reader", "unequal", "groups", "dim"])
def test_a_concat_that_must_stay(case):
    def function(net, x):
        a, b = act(x), act(x, "sigmoid")
        if case == "unequal":
            return shuffle(torch.cat([a, b[:, :8]], 1), 2)
        if case == "groups":
            return shuffle(torch.cat([a, b], 1), 4)
        if case == "dim":
            return shuffle(torch.cat([a, b], 2), 2)
        joined = torch.cat([a, b], 1)
        return shuffle(joined, 2), joined

    count, program, left = rewritten(channel_shuffle, Net(function))
    assert count == 0
    assert "channel_shuffle_concat" not in ops_of(program)
    if case == "second reader":
        assert left == ["the concat before it has another reader"]


def test_orders_of_channels():
    for count, groups in ((12, 3), (12, 6), (6, 1), (1, 1)):
        order = shuffled(count, groups)
        assert order == tuple(
            nn.functional.channel_shuffle(torch.arange(float(count)).view(1, -1, 1, 1), groups).flatten().int().tolist()
        )
        assert shuffle_groups(order) == groups
        assert [order[k] for k in inverse(order)] == list(range(count))
    assert shuffle_groups((0, 2, 1, 3)) == 2
    assert shuffle_groups((1, 0, 2, 3)) is None
    assert shuffle_groups((0, 0)) is None


def test_a_chain_behind_a_chain() -> None:
    """The source of the second is what the first became."""

    def forward(x):
        w = x[:, 1:]
        s = torch.stack([w[:, 1:], w[:, :1]], 2).flatten(1, 2)
        return s.view(-1, 2, 1, *x.shape[2:]).transpose(1, 2).contiguous().view(s.shape[0], -1, *x.shape[2:])

    assert captured.rewritten(captured.Function(forward), torch.randn(2, 3, 5, 6), channel_shuffle)[1] == [2]
