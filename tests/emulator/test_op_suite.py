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
from tests.emulator import backend, build, norm_entries, pool_entries  # noqa: F401  (both register theirs)

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
    "activation": ["nan_inf_zero_and_denormals", "gradient_on_both_sides_of_each_knot", "gradcheck",
                   "strides_are_those_that_torch_gives"],
    "batch_norm_act": ["gradients_of_some_inputs_only", "other_ranks_are_those_of_torch",
                       "strided_and_misaligned_inputs_change_nothing", "a_nan_stays_in_its_channel_and_an_infinity_too",
                       "an_empty_batch_leaves_the_running_statistics", "vectors_in_half_precision_and_autocast",
                       "value_of_the_variance_when_the_first_pixels_mislead"],
    "global_avg_pool": ["value_and_gradient", "value_over_a_hundred_thousand_pixels",
                        "value_of_bfloat16_is_summed_in_float32", "gradcheck_twice", "strided_and_misaligned_inputs",
                        "gradients_of_any_stride", "a_nan_stays_in_its_plane"],
    "max_pool2d": ["value_and_gradient", "value_and_gradient_with_ties", "a_nan_stays_in_its_windows",
                   "strided_and_misaligned_inputs", "gradients_of_any_stride", "without_a_batch"],
    "se_scale": ["value_and_gradients", "strided_and_misaligned_inputs_change_nothing",
                 "a_nan_stays_in_its_sample", "weights_in_float32_beside_a_half_x", "some_gradients_only_and_flops"],
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
    monkeypatch.delitem(backend.ENTRIES, "hardswish")
    with pytest.raises(BackendUnavailable, match="^hardswish: emulator does not serve this call: it has no kernel for"):
        fastcnn.ops.hardswish(x)


def test_every_op_with_kernels_has_an_entry():
    """Each op with a .cuh of its own and its gradient; the convolution's entry launches those of batch_norm_act."""
    stems = {path.stem for path in (build.ROOT / "csrc/cuda").glob("*.cu") if path.with_suffix(".cuh").is_file()}
    ops = {stem.removesuffix("_backward") for stem in stems}
    wanted = {name for op in ops for name in (op, f"{op}_backward")} - {"channel_shuffle_backward"}  # its own inverse
    assert wanted <= set(backend.ENTRIES)
