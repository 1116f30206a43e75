# SPDX-License-Identifier: Apache-2.0
"""The tests of the Triton kernels notice planted bugs: the sources of mutants.py, run by the check that is named."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.tools import ROOT
from tests.triton import interpreter
from tests.triton.mutants import MUTANTS, MUTANTS_AT_LENGTH, SASS, Mutant

pytestmark = interpreter.needs_triton


def _planted(mutant: Mutant, folder: Path) -> dict[str, str]:
    shutil.copytree(ROOT / "triton_kernels", folder / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    changed = folder / "kernels" / mutant.file
    changed.write_text(mutant.apply(changed.read_text(encoding="utf-8")), encoding="utf-8")
    return {interpreter.SOURCES: str(folder / "kernels"), "TRITON_CACHE_DIR": str(folder / "cache")}


def _seen_in_machine_code(mutant: Mutant, environment: dict[str, str]) -> tuple[bool, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not long", "-k", mutant.check,
         mutant.module],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": path, **environment}, capture_output=True, text=True, timeout=900,
        check=False,
    )  # fmt: skip
    return done.returncode == 1 and "1 failed" in done.stdout and "AssertionError" in done.stdout, done.stdout


def _is_noticed(mutant: Mutant, folder: Path) -> tuple[bool, str]:
    environment = _planted(mutant, folder)
    if mutant.module == SASS:
        return _seen_in_machine_code(mutant, environment)
    done = interpreter.start(f"tests.triton.{mutant.module}", mutant.check, **environment)
    output = done.stdout + done.stderr
    crashed = done.returncode < 0  # it wrote beside a tensor
    return crashed or (done.returncode == 1 and "AssertionError" in done.stderr), output


def test_every_mutant_can_be_planted():
    for name, mutant in {**MUTANTS, **MUTANTS_AT_LENGTH}.items():
        text = (ROOT / "triton_kernels" / mutant.file).read_text(encoding="utf-8")
        assert mutant.apply(text) != text, name
        path = ROOT / (mutant.module if mutant.module == SASS else f"tests/triton/{mutant.module}.py")
        assert f"def {mutant.check}(" in path.read_text(encoding="utf-8"), name


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_noticed(name, tmp_path):
    noticed, output = _is_noticed(MUTANTS[name], tmp_path)
    assert noticed, f"{name}:\n{output[-3000:]}"


@pytest.mark.long
@pytest.mark.parametrize("name", MUTANTS_AT_LENGTH)
def test_further_mutant_is_noticed(name, tmp_path):
    noticed, output = _is_noticed(MUTANTS_AT_LENGTH[name], tmp_path)
    assert noticed, f"{name}:\n{output[-3000:]}"


@pytest.mark.long
@pytest.mark.parametrize("module", sorted({m.module for m in {**MUTANTS, **MUTANTS_AT_LENGTH}.values()} - {SASS}))
def test_the_checks_pass_on_copied_sources(module, tmp_path):
    """What fails above fails because of the bug."""
    nothing = Mutant("__init__.py", "SPDX", "SPDX", module, "")
    checks = {m.check for m in {**MUTANTS, **MUTANTS_AT_LENGTH}.values() if m.module == module}
    done = interpreter.start(f"tests.triton.{module}", *sorted(checks), **_planted(nothing, tmp_path))
    assert done.returncode == 0 and all(f"{check}:" in done.stdout for check in checks), done.stderr[-3000:]
