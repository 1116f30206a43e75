# SPDX-License-Identifier: Apache-2.0
"""Batch norm + residual + activation in Triton's interpreter: eval, training, backward, running statistics."""

import functools

import torch

import fastcnn
from fastcnn.testing import arrange, assert_close_fp64
from tests.cross import exact

from .compare import HALF_AND_SINGLE, compare, draw
from .interpreter import needs_triton, run_checks

# channel tails, one pixel, more elements than one chunk of either layout
CASES = (
    ("relu", (2, 24, 5, 3), "channels_last", True),
    ("hardswish", (2, 5, 7, 3), "nchw", True),
    ("silu", (16, 70, 1, 1), "channels_last", False),
    ("identity", (2, 3, 33, 35), "nchw", True),
    ("relu6", (1, 3, 4, 5), "sliced", False),
    ("sigmoid", (2, 16, 6, 6), "transposed", True),
)


def _vectors(channels: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {
        "running_mean": draw(channels, dtype=dtype),
        "running_var": torch.rand(channels, dtype=torch.float64).add(0.5).to(dtype),
        "weight": draw(channels, dtype=dtype),
        "bias": draw(channels, dtype=dtype),
    }


def _exact(x, running_mean, running_var, weight, bias, training, activation, residual=None):
    z = exact.batch_norm(x, running_mean, running_var, weight, bias, training, 1e-3)
    return exact.activation(z if residual is None else z + residual, activation)


def check_eval_and_training():
    for number, (activation, shape, layout, has_residual) in enumerate(CASES):
        for dtype in HALF_AND_SINGLE:
            for training in (False, True):
                inputs = {"x": draw(*shape, dtype=dtype) + 1}
                if has_residual:
                    inputs["residual"] = draw(*shape, dtype=dtype)
                vectors = _vectors(shape[1], torch.float32 if number % 2 else dtype)
                inputs |= {"weight": vectors.pop("weight"), "bias": vectors.pop("bias")}
                op = functools.partial(fastcnn.ops.batch_norm_act, training=training, eps=1e-3, activation=activation)
                wanted = functools.partial(_exact, training=training, activation=activation)
                label = f"{activation} {shape} {layout} training={training}"
                compare(label, op, wanted, inputs, layout, shape[0] * shape[2] * shape[3], vectors)


def check_running_statistics():
    for shape, layout in (((2, 3, 33, 35), "nchw"), ((5, 70, 9, 3), "channels_last")):
        for dtype in (torch.float64, torch.float32, torch.float16):
            values = draw(*shape, dtype=dtype) + 3
            vectors = _vectors(shape[1], dtype)
            mean, var = vectors["running_mean"].clone(), vectors["running_var"].clone()
            wanted = exact.running(values.double(), mean.double(), var.double(), 0.3)
            with fastcnn.use_backend("triton"):
                fastcnn.ops.batch_norm_act(arrange(values, layout), mean, var, training=True, momentum=0.3)
            count = shape[0] * shape[2] * shape[3]
            for name, got, expected in zip(("mean", "variance"), (mean, var), wanted):
                assert_close_fp64(
                    got, expected, reduction=count, magnitude=4.0, label=f"{shape} {layout}: running {name}"
                )


def check_eps():
    x, mean, var = draw(2, 6, 3, 4, dtype=torch.float32), torch.randn(6), torch.rand(6) + 0.1
    for eps in (1e-5, 0.5):
        wanted = exact.batch_norm(x.double(), mean.double(), var.double(), None, None, False, eps)
        with fastcnn.use_backend("triton"):
            y = fastcnn.ops.batch_norm_act(x, mean, var, eps=eps)
        assert_close_fp64(y, wanted, magnitude=10.0, label=f"eps {eps}")


def check_what_is_not_asked_for():
    x = torch.randn(2, 4, 3, 3)
    with fastcnn.use_backend("triton"):
        plain = fastcnn.ops.batch_norm_act(x, torch.zeros(4), torch.ones(4), eps=0.0, activation="relu")
        empty = fastcnn.ops.batch_norm_act(x[:0], torch.zeros(4), torch.ones(4))
        found = torch.ops.fastcnn.batch_norm_act_backward(
            x, x, torch.zeros(4), torch.ones(4), None, None, None, True, "identity", [False, False, False, False]
        )
    torch.testing.assert_close(plain, x.relu(), rtol=1e-6, atol=0)
    assert empty.shape == (0, 4, 3, 3) and [g.numel() for g in found] == [0, 0, 0, 0]


@needs_triton
def test_in_the_interpreter():
    run_checks(__name__)
