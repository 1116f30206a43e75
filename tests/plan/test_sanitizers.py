# SPDX-License-Identifier: Apache-2.0
"""Plans under ASan and UBSan, every buffer on its own, and their threads under TSan; no torch in that process."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
import torch

from fastcnn import _library
from tests.plan import harness
from tests.plan.checked import compare
from tests.plan.draws import DRAWS
from tests.plan.harness import LANES, Case, build, run_cases, write_case
from tests.plan.sample import decode, flip, sample, sample_inputs
from tests.plan.trials import LAYOUTS, inputs_of, plan_of

pytestmark = pytest.mark.skipif(shutil.which(harness.COMPILER) is None, reason="no C++ compiler")

MACHINE = _library.isa_machine() or "plain"
HERE = [isa for isa in LANES if _library.ISAS.index(isa) <= _library.ISAS.index(MACHINE)]
MODES = ("run", "late", "fewer", "serial", "callers", "steps")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "plan"


class Drawn:
    """Cases of every kind in a folder of their own, and how to check what came of them."""

    def __init__(self, folder: Path, isa: str, count: int, seed: str) -> None:
        self.cases: list[Case] = []
        self.trials = []
        for kind, draw in DRAWS.items():
            for i in range(count):
                rng = random.Random(f"{seed} {kind} {i}")
                torch.manual_seed(i)
                trial = draw(rng, rng.randint(1, 40), rng.randint(1, 11), rng.randint(1, 11))
                layout, maps = rng.choice(LAYOUTS), trial.draw(rng.choice((0, 1, 2, 3, 5)))
                plan = plan_of(trial, layout, LANES[isa])
                case = write_case(folder / f"{kind}{i}", plan, inputs_of(trial, maps, layout), decode(plan.program)[1])
                self.cases.append(case)
                self.trials.append((f"{kind} {i}", trial, maps, layout))

    def check(self) -> None:
        for case, (label, trial, maps, layout) in zip(self.cases, self.trials, strict=True):
            results = case.results()
            assert not isinstance(results, str), f"{label}: {results}"
            try:
                compare(trial, maps, results, layout)
            except AssertionError as error:
                raise AssertionError(f"{label}: {error}") from error


def check_cases(
    folder: Path, tmp_path: Path, isa: str, sanitizer: str, count: int, runs: list[tuple[str, int]]
) -> None:
    program = build(isa, sanitizer, folder)
    drawn = Drawn(tmp_path, isa, count, f"{isa} {sanitizer}")
    for mode, threads in runs:
        run_cases(program, mode, threads, drawn.cases)
        drawn.check()


def check_flipped(folder: Path, tmp_path: Path, isa: str, seeds: range) -> None:
    program = build(isa, "address", folder)
    plan = sample(LANES[isa])
    values = decode(plan.program)[1]
    inputs = sample_inputs(3)
    cases = [
        write_case(tmp_path / f"flipped{seed}", plan, inputs, values, flip(plan.program, random.Random(seed)))
        for seed in seeds
    ]
    for mode in ("run", "steps"):
        run_cases(program, mode, 2, cases)
        errors = [found for case in cases if isinstance(found := case.results(), str)]
        assert all(error.startswith("fastcnn: run_plan: ") for error in errors)
        assert 0 < len(errors) < len(cases)


def test_memory(folder: Path, tmp_path: Path) -> None:
    check_cases(folder, tmp_path, HERE[-1], "address", 8, [("run", 2), ("steps", 2)])
    check_flipped(folder, tmp_path, HERE[-1], range(150))


@pytest.mark.long
@pytest.mark.parametrize("isa", LANES)
def test_memory_on_every_instruction_set(folder: Path, tmp_path: Path, isa: str) -> None:
    if isa not in HERE:
        pytest.skip(f"the {isa} kernels do not run here")
    check_cases(folder, tmp_path, isa, "address", 60, [(mode, threads) for mode in MODES for threads in (1, 2, 3)])
    check_flipped(folder, tmp_path, isa, range(150, 3150))


@pytest.mark.long
@pytest.mark.parametrize("threads", [2, 4])
def test_threads(folder: Path, tmp_path: Path, threads: int) -> None:
    run_cases(build(HERE[-1], "thread", folder), "barrier", threads, [])
    check_cases(folder, tmp_path, HERE[-1], "thread", 25, [(mode, threads) for mode in MODES])


@pytest.mark.long
def test_a_race_is_noticed(folder: Path) -> None:
    """The barrier's test without the barrier."""
    with pytest.raises(AssertionError, match="data race"):
        run_cases(build(HERE[-1], "thread", folder), "race", 2, [])


@pytest.mark.long
def test_an_overrun_is_noticed(folder: Path, tmp_path: Path) -> None:
    """A case whose input is shorter than its strides say."""
    plan = sample(LANES[HERE[-1]])
    case = write_case(tmp_path / "short", plan, sample_inputs(3), decode(plan.program)[1])
    raw = case.path.read_bytes()
    case.path.write_bytes((4).to_bytes(8, "little") + raw[8:])  # a batch of four, of inputs for three
    with pytest.raises(AssertionError, match="heap-buffer-overflow"):
        run_cases(build(HERE[-1], "address", folder), "steps", 1, [case])
