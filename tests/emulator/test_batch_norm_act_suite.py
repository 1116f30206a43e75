# SPDX-License-Identifier: Apache-2.0
"""Tests of tests/ops for activation and batch_norm_act, unchanged, on the emulated CUDA kernels."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest

from tests.emulator import backend, norm_entries  # noqa: F401  (registers its entries)

SUITE = {
    "activation": ["nan_inf_zero_and_denormals", "gradient_on_both_sides_of_each_knot", "gradcheck",
                   "strides_are_those_that_torch_gives"],
    "batch_norm_act": ["gradients_of_some_inputs_only", "other_ranks_are_those_of_torch",
                       "strided_and_misaligned_inputs_change_nothing", "a_nan_stays_in_its_channel_and_an_infinity_too",
                       "an_empty_batch_leaves_the_running_statistics", "vectors_in_half_precision_and_autocast",
                       "value_of_the_variance_when_the_first_pixels_mislead"],
}  # fmt: skip

for _file, _tests in SUITE.items():
    _module = importlib.import_module(f"tests.ops.test_{_file}")
    for _test in _tests:
        globals()[f"test_{_file}_{_test}"] = getattr(_module, f"test_{_test}")


@pytest.fixture(autouse=True)
def on_the_emulator(emulated) -> Iterator[None]:
    with backend.emulator(emulated):
        yield
