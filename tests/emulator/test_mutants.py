# SPDX-License-Identifier: Apache-2.0
"""The tests of the emulated kernels notice planted bugs: the sources of mutants.py, compiled and tested."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.emulator import build
from tests.emulator.mutants import MUTANTS, MUTANTS_AT_LENGTH
from tests.emulator.test_sanitizers import environment as sanitizing  # noqa: F401  (a fixture)


def survives(mutant, folder, environment) -> str | None:
    """What pytest prints where no test fails."""
    for part in ("csrc", "tests/emulator"):
        shutil.copytree(build.ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    changed = folder / mutant.file
    changed.write_text(mutant.apply(changed.read_text(encoding="utf-8")), encoding="utf-8")
    environment = {
        **environment,
        "FASTCNN_EMULATOR_SOURCES": str(folder),
        "FASTCNN_EMULATOR_FOLDER": str(folder / "built"),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    shown = ["--capture=no"] if mutant.sanitize else []  # the report of a process that it ends
    tests = [str(build.ROOT / "tests/emulator" / name) for name in mutant.tests]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not long", *shown, *tests],
        cwd=build.ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert "does not compile" not in done.stdout, done.stdout[-3000:]
    if mutant.sanitize:
        return None if "ERROR: AddressSanitizer" in done.stderr or "runtime error" in done.stderr else done.stdout
    crashed = done.returncode < 0  # a write out of bounds, or an address that wrapped round
    return None if crashed or (done.returncode == 1 and "1 failed" in done.stdout) else done.stdout + done.stderr


def check(name, mutant, tmp_path, request):
    environment = dict(request.getfixturevalue("sanitizing") if mutant.sanitize else os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([str(build.ROOT), environment.get("PYTHONPATH", "")])
    output = survives(mutant, tmp_path, environment)
    assert output is None, f"{name} survived:\n{output[-3000:]}"


def test_every_mutant_still_changes_its_file():
    for name, mutant in (MUTANTS | MUTANTS_AT_LENGTH).items():
        text = (build.ROOT / mutant.file).read_text(encoding="utf-8")
        assert mutant.apply(text) != text, name


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_noticed(name, tmp_path, request):
    check(name, MUTANTS[name], tmp_path, request)


@pytest.mark.long
@pytest.mark.parametrize("name", MUTANTS_AT_LENGTH)
def test_further_mutant_is_noticed(name, tmp_path, request):
    check(name, MUTANTS_AT_LENGTH[name], tmp_path, request)
