# SPDX-License-Identifier: Apache-2.0
"""run_plan as an operator of torch: its shapes without data, gradients, calls from several threads."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fastcnn.accelerate.plan.op import AVAILABLE
from tests.plan.checked import threads
from tests.plan.sample import run, sample, sample_inputs

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="the CPU library is not built")


def test_shapes_without_data() -> None:
    """On the meta device, and as opcheck compares them with the results."""
    plan = sample()
    real = run(plan.program)
    meta = torch.ops.fastcnn.run_plan([x.to("meta") for x in sample_inputs()], *plan[:3])
    assert [(y.shape, y.stride(), y.dtype) for y in meta] == [(y.shape, y.stride(), y.dtype) for y in real]
    torch.library.opcheck(
        torch.ops.fastcnn.run_plan, (sample_inputs(), *plan[:3]), test_utils=("test_schema", "test_faketensor")
    )


def test_a_gradient_is_an_error() -> None:
    vector, _ = run(sample().program, [x.requires_grad_() for x in sample_inputs()])
    with pytest.raises(RuntimeError, match="run_plan: is for inference only and has no gradient"):
        vector.sum().backward()


def test_calls_from_several_threads() -> None:
    inputs = [sample_inputs(images) for images in (1, 2, 3, 5, 8, 13)]
    with threads(2):
        wanted = [run(sample().program, each) for each in inputs]
        with ThreadPoolExecutor(4) as pool:
            for _ in range(20):
                for got, exact in zip(pool.map(lambda x: run(sample().program, x), inputs), wanted, strict=True):
                    assert all(map(torch.allclose, got, exact))
