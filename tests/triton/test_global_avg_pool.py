# SPDX-License-Identifier: Apache-2.0
"""Global average pooling in Triton's interpreter, forward and backward."""

import torch

import fastcnn
from fastcnn.testing import DTYPES, LAYOUTS
from tests.cross import exact

from .compare import compare, draw
from .interpreter import needs_triton, run_checks

SHAPES = ((2, 3, 5, 7), (1, 70, 1, 1), (2, 24, 7, 7), (1, 2, 47, 49), (1, 5, 60, 70))


def check_forward_and_backward():
    for shape in SHAPES:
        for number, dtype in enumerate(DTYPES):
            for layout in {"nchw", "channels_last", LAYOUTS[2 + number % 3]}:
                x = draw(*shape, dtype=dtype) + 1
                compare(
                    f"{shape} {layout}",
                    fastcnn.ops.global_avg_pool,
                    exact.global_avg_pool,
                    {"x": x},
                    layout,
                    shape[2] * shape[3],
                )


def check_empty():
    with fastcnn.use_backend("triton"):
        assert fastcnn.ops.global_avg_pool(torch.zeros(0, 3, 2, 2)).shape == (0, 3, 1, 1)


@needs_triton
def test_in_the_interpreter():
    run_checks(__name__)
