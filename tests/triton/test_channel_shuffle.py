# SPDX-License-Identifier: Apache-2.0
"""Channel shuffle, inverse and concat in Triton's interpreter: bitwise, every path of both layouts, gradients."""

import itertools

import pytest
import torch

import fastcnn
from fastcnn import _triton
from fastcnn.testing import DTYPES, LAYOUTS, arrange, assert_format
from tests.cross import exact

from .compare import draw
from .interpreter import needs_triton, run_checks

# (C, groups): interleaved, split, gathered, one channel a group, one group, more channels than a program holds
GROUPS = ((6, 2), (10, 5), (24, 3), (7, 7), (7, 1), (1040, 2), (1040, 520), (600, 4))


def check_shuffle_and_inverse():
    number = 0
    for C, groups in GROUPS:
        for shape in ((2, C, 3, 5), (1, C, 1, 1)):
            for layout in ("nchw", "channels_last", LAYOUTS[2 + number % 3]):
                number += 1
                x = draw(*shape, dtype=DTYPES[number % 4])
                for inverse in (False, True):
                    given = arrange(x, layout)
                    with fastcnn.use_backend("triton"):
                        y = fastcnn.ops.channel_shuffle(given, groups, inverse)
                    label = f"{shape} groups={groups} {layout} inverse={inverse}"
                    assert torch.equal(y, exact.channel_shuffle(x, groups, inverse)), label
                    assert_format(y, given, label)


def check_other_ranks_and_gradient():
    for shape in ((2, 6, 9), (2, 6, 2, 3, 4)):
        x = draw(*shape, dtype=torch.float32).requires_grad_()
        with fastcnn.use_backend("triton"):
            y = fastcnn.ops.channel_shuffle(x, 3)
            (grad,) = torch.autograd.grad(y, x, y.detach())
        assert torch.equal(y, exact.channel_shuffle(x, 3)) and torch.equal(grad, x)


def check_concat():
    for C in (1, 5, 24, 520):
        for layout in LAYOUTS:
            whole = draw(2, 2 * C, 3, 4, dtype=torch.float16)
            first, second = (arrange(half, layout).detach().requires_grad_() for half in whole.chunk(2, 1))
            with fastcnn.use_backend("triton"):
                y = fastcnn.ops.channel_shuffle_concat(first, second)
                grads = torch.autograd.grad(y, (first, second), y.detach())
            assert torch.equal(y, exact.channel_shuffle(whole, 2)), f"{C} {layout}"
            assert torch.equal(torch.cat(grads, 1), whole), f"{C} {layout}: gradients"
            assert_format(y, first, f"{C} {layout}")


def check_halves_are_read_where_they_lie():
    from fastcnn.triton_kernels import _host

    for memory_format in (torch.channels_last, torch.contiguous_format):
        whole = draw(2, 24, 3, 4, dtype=torch.float16).contiguous(memory_format=memory_format)
        for half in whole.chunk(2, 1):
            assert _host.rows_of(half, memory_format is torch.channels_last)[0].data_ptr() == half.data_ptr()
        left, right = whole.chunk(2, 1)
        with fastcnn.use_backend("triton"):
            assert torch.equal(
                fastcnn.ops.channel_shuffle_concat(right, left), exact.channel_shuffle(torch.cat((right, left), 1), 2)
            )
            assert fastcnn.ops.channel_shuffle_concat(right[:0], left[:0]).shape == (0, 24, 3, 4)


def check_concat_into_a_slice():
    launch = _triton.launcher("channel_shuffle_concat")
    for C, memory_format in itertools.product((1, 5, 24), (torch.channels_last, torch.contiguous_format)):
        whole = draw(2, 2 * C, 3, 4, dtype=torch.float16).contiguous(memory_format=memory_format)
        into = torch.full((2, 6 * C, 3, 4), 7.0, dtype=torch.float16).contiguous(memory_format=memory_format)
        y = launch(*whole.chunk(2, 1), out=into[:, 2 * C : 4 * C])
        label = f"{C} {memory_format}"
        assert y.data_ptr() == into[:, 2 * C :].data_ptr() and torch.equal(y, exact.channel_shuffle(whole, 2)), label
        assert (into[:, : 2 * C] == 7).all() and (into[:, 4 * C :] == 7).all(), label
    with pytest.raises(ValueError, match="^channel_shuffle_concat: out must be a map or a channel slice of one, got"):
        launch(*whole.chunk(2, 1), out=torch.empty(2, 48, 3, 8, dtype=torch.float16)[..., ::2])
    with pytest.raises(ValueError, match=r"^channel_shuffle_concat: out must be \[2, 48, 3, 4\], got \[2, 24, 3, 4\]"):
        launch(*whole.chunk(2, 1), out=into[:, :24])


@needs_triton
def test_in_the_interpreter():
    run_checks(__name__)
