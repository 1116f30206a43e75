# SPDX-License-Identifier: Apache-2.0
"""The tests of the ops kill wrong ops: each mutant of mutants.py, by a test that passes without the mutation."""

import json
import subprocess
import sys

import pytest

from fastcnn import _library
from tests.cross.mutants import MUTANTS, MUTANTS_AT_LENGTH


def verdicts(names):
    run = subprocess.run(
        [sys.executable, "-m", "tests.cross.mutants", *names], capture_output=True, text=True, timeout=3600
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return {line["name"]: line for line in map(json.loads, run.stdout.splitlines())}


@pytest.fixture(scope="module")
def short():
    return verdicts(MUTANTS)


@pytest.fixture(scope="module")
def long():
    return verdicts(MUTANTS_AT_LENGTH)


def check(verdict):
    assert verdict["killer"] is not None, f"{verdict['name']} survived {verdict['ran']} tests"
    assert "::" in verdict["killer"], verdict["killer"]


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_killed(name, short):
    check(short[name])


@pytest.mark.long
@pytest.mark.parametrize("name", MUTANTS_AT_LENGTH)
def test_further_mutant_is_killed(name, long):
    check(long[name])


def test_every_op_has_a_mutant():
    assert {mutant.op for mutant in (MUTANTS | MUTANTS_AT_LENGTH).values()} == set(_library.SCHEMAS)
