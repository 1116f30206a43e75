# SPDX-License-Identifier: Apache-2.0
"""Programs with words replaced at random: an error by name or a result, never a crash."""

from __future__ import annotations

import random

import pytest

from fastcnn.accelerate.plan.op import AVAILABLE
from tests.plan.checked import threads
from tests.plan.sample import flip, run, sample, sample_inputs

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="the CPU library is not built")


def fuzz(seeds: range) -> int:
    """How many of the programs ran; all others were refused by name."""
    ran = 0
    inputs = sample_inputs()
    with threads(2):
        for seed in seeds:
            program = flip(sample().program, random.Random(seed))
            try:
                results = run(program, inputs)
            except RuntimeError as error:
                assert "fastcnn: run_plan: " in str(error), f"seed {seed}: {error}"
            else:
                assert [tuple(each.shape) for each in results] == [(3, 7), (3, 20, 5, 4)]
                ran += 1
    return ran


def test_words_at_random() -> None:
    assert 100 < fuzz(range(2000)) < 1900


@pytest.mark.long
def test_more_words_at_random() -> None:
    assert fuzz(range(2000, 52000)) > 1000
