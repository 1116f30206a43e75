# SPDX-License-Identifier: Apache-2.0
"""A frame of zeros in front of a convolution becomes the convolution's padding."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.accelerate.program import CONV, Conv, calls
from fastcnn.accelerate.rewrites.same_padding import same_padding
from tests.accelerate.captured import rewritten
from tests.accelerate.test_fold_batch_norm import Net

X = torch.randn(2, 6, 7, 8)


@pytest.mark.parametrize("pads", [(0, 1, 0, 1), (2, 0, 1, 3), (1, 2)])
@pytest.mark.parametrize("more", [0, 1])
def test_absorbed(pads: tuple[int, ...], more: int) -> None:
    net = Net(lambda self, x: self.conv(F.pad(x, pads)), conv=nn.Conv2d(6, 4, 3, 2, more))
    program, counts, stands = rewritten(net, X, same_padding)
    assert counts == [1]
    assert stands == {"conv_bn_act": 1}
    wanted = tuple(a + more for a in (*pads, 0, 0)[:4])
    assert Conv.of(next(calls(program, CONV))).padding == wanted


def test_of_two_convolutions() -> None:
    def forward(self: Net, x: Tensor) -> Tensor:
        y = F.pad(x, (0, 1, 0, 1))
        return self.a(y) * self.b(y)

    net = Net(forward, a=nn.Conv2d(6, 4, 3), b=nn.Conv2d(6, 4, 3))
    assert rewritten(net, X, same_padding)[1:] == ([1], {"conv_bn_act": 2, "mul": 1})


@pytest.mark.parametrize(
    "pad",
    [
        lambda x: F.pad(x, (1, 1, 1, 1), value=0.5),
        lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
        lambda x: F.pad(x, (-1, 1, 0, 0)),
        lambda x: F.pad(x, (1, 1, 1, 1, 0, 0)),
    ],
    ids=["value", "reflect", "crop", "channels"],
)
def test_another_frame_stays(pad: Callable[[Tensor], Tensor]) -> None:
    net = Net(lambda self, x: self.conv(pad(x)), conv=nn.Conv2d(6, 4, 3))
    program, counts, _ = rewritten(net, X, same_padding)
    assert counts == [0]
    assert any("left" in node.meta for node in program.graph.nodes)


def test_a_frame_that_others_read_stays() -> None:
    def forward(self: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.pad(x, (0, 1, 0, 1))
        return self.conv(y), y * 2

    net = Net(forward, conv=nn.Conv2d(6, 4, 3))
    assert rewritten(net, X, same_padding)[1][0] == 0
