# SPDX-License-Identifier: Apache-2.0
"""pointwise_conv2d in Triton's interpreter: what stands in front of the product, alone and together."""

import torch

import fastcnn
from fastcnn.testing import assert_close_fp64, assert_format
from tests.ops.test_pointwise_conv2d import CHANGES, exact_sum, inputs

from .compare import HALF_AND_SINGLE
from .interpreter import needs_triton, run_checks


def check_every_prologue():
    for name, change in CHANGES.items():
        for layout in ("nchw", "channels_last"):
            for dtype in (*HALF_AND_SINGLE, torch.float64):
                arguments = inputs((2, 21, 5, 6, 10), change, dtype, layout)
                with fastcnn.use_backend("triton"):
                    y = fastcnn.ops.pointwise_conv2d(**arguments)
                assert_format(y, arguments["x"])
                wanted, magnitude = exact_sum(**arguments)
                # the product takes what the prologue makes of x in the dtype of x: half a unit each
                rival = wanted + torch.finfo(dtype).eps * magnitude / 4
                assert_close_fp64(
                    y, wanted, reduction=21, magnitude=magnitude, rival=rival, label=f"{name} {layout} {dtype}"
                )


def check_empty():
    with fastcnn.use_backend("triton"):
        y = fastcnn.ops.pointwise_conv2d(torch.zeros(0, 4, 3, 3), torch.ones(2, 4, 1, 1), gate=torch.zeros(0, 4))
    assert y.shape == (0, 2, 3, 3)


@needs_triton
def test_in_the_interpreter():
    run_checks(__name__)
