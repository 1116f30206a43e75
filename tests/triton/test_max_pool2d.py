# SPDX-License-Identifier: Apache-2.0
"""Max pooling in Triton's interpreter: windows at the borders, ties, NaN, gradients, channel slices, bytes."""

import functools

import pytest
import torch
import torch.nn.functional as F

import fastcnn
from fastcnn import _triton
from fastcnn.testing import DTYPES, FORMATS, LAYOUTS, arrange

from .compare import compare, draw
from .interpreter import needs_triton, run_checks
from .traffic import counted

WINDOWS = {
    "stem": ((2, 24, 14, 13), (3, 2, 1)),
    "vgg": ((1, 7, 6, 9), (2, None, 0)),
    "same": ((1, 20, 7, 9), (3, 1, 1)),
    "ceil": ((1, 8, 8, 7), (3, 2, 0, 1, True)),
    "gaps": ((1, 8, 11, 10), (2, 4, 0)),
    "oblong": ((2, 3, 9, 6), ((5, 2), (1, 3), (2, 1))),
    "whole-plane": ((2, 9, 7, 7), (7, None, 0)),
    "one-pixel": ((3, 17, 1, 1), (1, None, 0)),
}


def check_forward_and_backward():
    for number, (name, (shape, window)) in enumerate(WINDOWS.items()):
        dtype = DTYPES[number % len(DTYPES)]
        for layout in ("nchw", "channels_last", LAYOUTS[2 + number % 3]):
            given = dict(zip(("kernel_size", "stride", "padding", "dilation", "ceil_mode"), window))
            op, exact = (functools.partial(pool, **given) for pool in (fastcnn.ops.max_pool2d, _exact))
            compare(f"{name} {layout}", op, exact, {"x": draw(*shape, dtype=dtype)}, layout, 9)


def _exact(x, **window):
    return F.max_pool2d(x, **window)


def check_ties_and_special_values():
    """Of equal maxima the first takes the gradient, of NaN the last; a window of -inf has a gradient too."""
    for value in (None, torch.nan, -torch.inf):
        x = torch.randint(-2, 2, (2, 8, 9, 8)).float()
        if value is not None:
            x[torch.rand(x.shape) < 0.6] = value
        for layout, half in ((layout, half) for layout in FORMATS for half in (False, True)):
            mine = arrange(x.half() if half else x, layout).requires_grad_()
            theirs = x.clone().requires_grad_()
            with fastcnn.use_backend("triton"):
                y = fastcnn.ops.max_pool2d(mine, 3, 2, 1)
                grad = torch.arange(1.0, 1 + y.numel()).view(y.shape).remainder(7)
                (got,) = torch.autograd.grad(y, mine, grad.to(y.dtype))
            wanted = F.max_pool2d(theirs, 3, 2, 1)
            (right,) = torch.autograd.grad(wanted, theirs, grad)
            assert torch.equal(y.float().nan_to_num(9.0), wanted.nan_to_num(9.0)), f"{layout} {value}"
            assert torch.equal(got.float(), right), f"gradient {layout} {value}"


def check_slices():
    """From a slice and into one: nothing is copied, nothing beside it written."""
    launch = _triton.launcher("max_pool2d")
    for last, memory_format in ((False, torch.contiguous_format), (True, torch.channels_last)):
        wide = torch.randn(2, 40, 9, 8).contiguous(memory_format=memory_format)
        into = torch.full((2, 48, 5, 4), 7.0).contiguous(memory_format=memory_format)
        with counted() as traffic:
            y = launch(wide[:, 8:24], [3, 3], [2, 2], [1, 1], False, out=into[:, 16:32])
        assert y.data_ptr() == into[:, 16:32].data_ptr(), last
        assert torch.equal(into[:, 16:32], F.max_pool2d(wide[:, 8:24], 3, 2, 1)), last
        assert (into[:, :16] == 7).all() and (into[:, 32:] == 7).all(), last
        (pool,) = traffic
        assert pool["x"].loaded_once == wide.nbytes * 16 // 40 and pool["y"].stored == into.nbytes // 3
    with pytest.raises(ValueError, match="^max_pool2d: out must be a map or a channel slice of one, got strides"):
        launch(wide, [3, 3], [2, 2], [1, 1], False, out=torch.empty(2, 40, 5, 8)[..., ::2])
    with pytest.raises(ValueError, match=r"^max_pool2d: out must be \[2, 40, 5, 4\], got \[2, 40, 4, 4\]"):
        launch(wide, [3, 3], [2, 2], [1, 1], False, out=torch.empty(2, 40, 4, 4))


def check_bytes():
    launch = _triton.launcher
    for last, memory_format in ((False, torch.contiguous_format), (True, torch.channels_last)):
        x = torch.randn(1, 64, 16, 40).half().contiguous(memory_format=memory_format)
        window = [3, 3], [2, 2], [1, 1], False
        with counted() as traffic:
            y = launch("max_pool2d")(x, *window)
            launch("max_pool2d_backward")(torch.ones_like(y), x, *window)
        forward, backward = traffic["max_pool2d_forward_kernel"], traffic["max_pool2d_backward_kernel"]
        assert forward["x"].loaded <= 9 / 4 * x.nbytes and forward["x"].loaded_once == x.nbytes
        assert forward["y"].stored == forward["y"].stored_once == y.nbytes
        if last:
            assert forward["x"].left_l1 <= 3 / 2 * (1 + 2 / forward.arguments["PIXELS"]) * x.nbytes
        assert backward["x"].loaded <= 81 / 4 * x.nbytes and backward["x"].loaded_once == x.nbytes
        assert backward["grad"].loaded == backward["grad"].loaded_once == y.nbytes
        assert backward["grad_x"].stored == backward["grad_x"].stored_once == x.nbytes


def check_empty():
    with fastcnn.use_backend("triton"):
        assert fastcnn.ops.max_pool2d(torch.zeros(0, 3, 4, 4), 2).shape == (0, 3, 2, 2)


@needs_triton
def test_in_the_interpreter():
    run_checks(__name__)
