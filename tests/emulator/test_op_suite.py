# SPDX-License-Identifier: Apache-2.0
"""Tests of tests/ops, unchanged, on the emulated CUDA kernels: values, gradients, layouts, what is written around."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
import torch

import fastcnn
from fastcnn import backends
from fastcnn.backends import BackendUnavailable
from tests.emulator import backend

SUITE = {  # file of tests/ops: its tests whose ops are all in backend.ENTRIES
    "hardswish": ["value_and_gradient", "exactly_zero_below_minus_three_and_the_input_above_three",
                  "the_slope_at_the_knots_is_that_of_torch", "gradcheck_twice", "a_gradient_that_is_expanded"],
    "depthwise_conv2d": ["forward_against_float64", "nan_and_inf_reach_their_own_windows_only", "without_a_batch",
                         "layouts_expansion_and_surroundings", "gradients_against_float64",
                         "gradients_through_an_activation"],
    "channel_shuffle": ["value_is_that_of_torch_bit_for_bit", "value_keeps_every_bit_of_a_nan", "value_at_every_tail",
                        "strided_inputs", "other_ranks_are_those_of_torch", "value_of_concat_at_every_tail",
                        "gradcheck_twice_and_the_gradient_is_the_inverse",
                        "value_of_concat_on_halves_and_other_strides", "value_of_concat_is_the_shuffle_of_the_concat"],
}  # fmt: skip

for _file, _tests in SUITE.items():
    _module = importlib.import_module(f"tests.ops.test_{_file}")
    for _test in _tests:
        globals()[f"test_{_file}_{_test}"] = getattr(_module, f"test_{_test}")


@pytest.fixture(autouse=True)
def on_the_emulator(emulated) -> Iterator[None]:
    with backend.emulator(emulated):
        yield
    assert "emulator" not in backends.BACKENDS


def test_the_backend_is_what_runs(monkeypatch):
    ran = []
    module, entry = backend.ENTRIES["hardswish"]
    monkeypatch.setitem(backend.ENTRIES, "hardswish", (module, lambda *args: (ran.append(1), entry(*args))[1]))
    x = torch.randn(7)
    torch.testing.assert_close(fastcnn.ops.hardswish(x), torch.nn.functional.hardswish(x))
    assert ran == [1] and fastcnn.explain("hardswish", x).backend == "emulator"
    with pytest.raises(BackendUnavailable, match="^se_scale: emulator does not serve this call: it has no kernel for"):
        fastcnn.ops.se_scale(torch.ones(1, 2, 2, 2), torch.ones(1, 2), torch.zeros(1), torch.ones(2, 1), torch.ones(2))
