# SPDX-License-Identifier: Apache-2.0
"""tune() around kernels that run, in Triton's interpreter: every configuration that it may choose gives the result."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

import fastcnn
from fastcnn import tuning
from tests.triton.interpreter import needs_triton, run_checks


def _inputs(depthwise: bool) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(1, 24, 6, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    return x.float(), torch.randn(24, 1 if depthwise else 24, *((3, 3) if depthwise else (1, 1)))


def _call(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    with fastcnn.use_backend("triton"):
        if weight.shape[1] == 1:
            return fastcnn.ops.depthwise_conv2d(x, weight, padding=1)
        return fastcnn.ops.conv_bn_act(x, weight)


def check_every_configuration_computes_the_same() -> None:
    for depthwise, kind in ((False, "gemm"), (True, "depthwise")):
        x, weight = _inputs(depthwise)
        wanted = F.conv2d(x, weight, padding=weight.shape[2] // 2, groups=24 if depthwise else 1)
        with tempfile.TemporaryDirectory() as folder:
            os.environ["FASTCNN_TUNING_FILE"] = str(Path(folder) / "tuning.json")
            tuning._stored.cache_clear(), tuning._found_on.cache_clear()
            results, clock = [], iter(range(1000, 0, -1))

            def seconds(run) -> float:
                """Later configurations are faster; each is run on the very tensors of the call."""
                run()
                return float(next(clock))

            tuned = fastcnn.tune(lambda *a: results.append(_call(*a)), x, weight, seconds=seconds)
            assert [t.key.split()[:2] for t in tuned] == [[kind, "float32"]], tuned
            count = round(tuned[0].table_seconds - tuned[0].seconds)
            assert count >= 2 and tuned[0].table_seconds == 1000.0
            torch.testing.assert_close(results[0], wanted, rtol=1e-5, atol=1e-5)
            stored = json.loads(Path(os.environ["FASTCNN_TUNING_FILE"]).read_text())
            assert stored == {tuning._name(x.device): {tuned[0].key: list(tuned[0].config)}}
            for place in range(count + 1):  # each in turn is the fastest
                clock = iter([0.0 if i == place else 1.0 for i in range(count + 1)])
                fastcnn.tune(lambda *a: results.append(_call(*a)), x, weight, seconds=lambda run: next(clock))
                torch.testing.assert_close(results[-1], wanted, rtol=1e-5, atol=1e-5)
                # and what the file says serves calls from now on
                torch.testing.assert_close(_call(x, weight), wanted, rtol=1e-5, atol=1e-5)


def check_the_gradient_of_a_weight_is_tuned_too() -> None:
    x, weight = _inputs(False)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FASTCNN_TUNING_FILE"] = str(Path(folder) / "tuning.json")
        tuning._stored.cache_clear(), tuning._found_on.cache_clear()
        weight.requires_grad_()

        def train(x: torch.Tensor) -> None:
            with fastcnn.use_backend("triton"):
                fastcnn.ops.conv_bn_act(x, weight).sum().backward()

        tuned = fastcnn.tune(train, x, seconds=lambda run: float(run() is None))
        assert [t.key.split()[0] for t in tuned] == ["gemm", "gemm_weight"]
        wanted = torch.autograd.grad(F.conv2d(x, weight).sum(), weight)[0]
        torch.testing.assert_close(weight.grad, wanted, rtol=1e-4, atol=1e-4)


def check_a_call_without_a_choice_tunes_nothing() -> None:
    with fastcnn.use_backend("triton"):
        assert fastcnn.tune(fastcnn.ops.hardswish, torch.zeros(8), seconds=lambda run: 1.0) == []


@needs_triton
def test_in_the_interpreter():
    run_checks(__name__)
