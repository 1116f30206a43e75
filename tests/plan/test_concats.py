# SPDX-License-Identifier: Apache-2.0
"""Concatenations: operands are written where they are read, and copied only where they cannot be."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.accelerate.plan.op import AVAILABLE
from tests.plan.planned_nets import Net, conv, names, planned

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="the CPU library is not built")


def inception(net: Net, x: Tensor) -> Tensor:
    x = net.stem(x)
    second, third = net.three(net.into_three(x)), net.five(net.into_five(x))
    return torch.cat([net.one(x), second, third, net.pooled(F.max_pool2d(x, 3, 1, 1))], 1)


def test_inception_block_copies_nothing() -> None:
    """Three 1x1 convolutions are merged into one, of which only one slice is an operand."""
    net = Net(inception, stem=conv(3, 24, 3, 2), one=conv(24, 17), into_three=conv(24, 12), three=conv(12, 20, 3),
              into_five=conv(24, 5), five=conv(5, 9, 3), pooled=conv(24, 11))  # fmt: skip
    assert "copy" not in names(planned(net, (3, 18, 20)))


def fire(net: Net, x: Tensor) -> Tensor:
    x = net.squeeze(net.stem(x))
    return net.last(F.max_pool2d(torch.cat([net.one(x), net.three(x)], 1), 3, 2, ceil_mode=True))


def test_fire_module_copies_nothing() -> None:
    net = Net(
        fire, stem=conv(3, 24, 3, 2), squeeze=conv(24, 7), one=conv(7, 30), three=conv(7, 30, 3), last=conv(60, 10)
    )
    assert "copy" not in names(planned(net, (3, 21, 19)))


def dense(net: Net, x: Tensor) -> Tensor:
    features = [net.stem(x)]
    for layer in (net.first, net.second, net.third):
        features.append(layer(torch.cat(features, 1)))
    return torch.cat(features, 1)


def pre_activated(C: int, O: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(C), nn.ReLU(), nn.Conv2d(C, O, 1), nn.BatchNorm2d(O), nn.ReLU(),
                         nn.Conv2d(O, 6, 3, 1, 1))  # fmt: skip


def test_a_growing_list_grows_in_place() -> None:
    net = Net(dense, stem=conv(3, 20, 3, 2), first=pre_activated(20, 12), second=pre_activated(26, 12),
              third=pre_activated(32, 12))  # fmt: skip
    assert "copy" not in names(planned(net, (3, 16, 15)))


def reduced(net: Net, x: Tensor) -> Tensor:
    x = net.stem(x)
    return net.last(torch.cat([F.max_pool2d(x, 3, 2, 1), F.avg_pool2d(x, 3, 2, 1), net.down(x)], 1))


def test_pools_write_into_the_list() -> None:
    net = Net(reduced, stem=conv(3, 19, 3), down=conv(19, 8, 3, 2), last=conv(46, 12))
    assert "copy" not in names(planned(net, (3, 13, 14)))


def read_elsewhere(net: Net, x: Tensor) -> Tensor:
    first = net.stem(x)
    second = net.three(first)
    return net.last(torch.cat([first, second], 1)) + net.three(second)


def test_an_operand_may_be_read_elsewhere() -> None:
    net = Net(read_elsewhere, stem=conv(3, 18, 3), three=conv(18, 18, 3), last=conv(36, 18))
    assert "copy" not in names(planned(net, (3, 12, 11)))


def twice(net: Net, x: Tensor) -> Tensor:
    first = net.stem(x)
    return net.last(torch.cat([first, first], 1))


def test_a_map_that_is_there_twice_is_copied_once() -> None:
    net = Net(twice, stem=conv(3, 18, 3), last=conv(36, 10))
    assert names(planned(net, (3, 12, 11))).count("copy") == 1


def nested(net: Net, x: Tensor) -> Tensor:
    first = net.stem(x)
    second, third = net.three(first), F.relu(first) * F.max_pool2d(first, 3, 1, 1)
    inner = torch.cat([first, second], 1)
    return net.last(torch.cat([third, inner], 1)) + net.inner(inner)


def test_a_list_inside_a_list_copies_nothing() -> None:
    net = Net(nested, stem=conv(3, 18, 3), three=conv(18, 9, 3), last=conv(45, 10), inner=conv(27, 10))
    assert "copy" not in names(planned(net, (3, 12, 11)))


def sliced(net: Net, x: Tensor) -> Tensor:
    x = net.stem(x)
    both = net.merged(x)
    return net.last(torch.cat([x, both[:, 5:]], 1)) + net.other(both[:, :5]) + net.third(both[:, 2:4])


def test_slices_that_share_channels_are_copied() -> None:
    net = Net(sliced, stem=conv(3, 16, 3), merged=conv(16, 12), last=conv(23, 10), other=conv(5, 10), third=conv(2, 10))
    assert names(planned(net, (3, 12, 11))).count("copy") == 1
