# SPDX-License-Identifier: Apache-2.0
"""The tests of the emulated kernels once more, under ASan and UBSan: torch's own allocations get red zones too."""

import os
import subprocess
import sys

import pytest

from tests.emulator import build

TESTS = build.ROOT / "tests/emulator"
# by file: what the short form runs of it; the long form runs all of each
SHORT = {"test_simt.py": "forward or overrun"}
FILES = sorted(
    path.name for path in TESTS.glob("test_*.py") if path.name not in ("test_sanitizers.py", "test_mutants.py")
)


def runtime(name: str) -> str | None:
    path = subprocess.run(
        [build.COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout
    return path.strip() if os.path.isabs(path) else None


@pytest.fixture(scope="session")
def environment(emulated):
    libraries = [runtime(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so.6")]
    if None in libraries:
        pytest.skip(f"{build.COMPILER} brings no sanitizer runtime")
    return {
        **os.environ,
        "FASTCNN_EMULATOR_SANITIZE": "1",
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": os.pathsep.join([str(build.ROOT), os.environ.get("PYTHONPATH", "")]),
    }


def run(environment, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=build.ROOT, env=environment, capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", SHORT)
def test_clean(environment, name):
    done = run(environment, str(TESTS / name), "-k", SHORT[name], "-m", "not long")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout


@pytest.mark.long
@pytest.mark.parametrize("name", FILES)
def test_all_clean(environment, name):
    done = run(environment, str(TESTS / name))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.mark.parametrize(
    ("call", "report"),
    [
        ("module.block_sum(x, y, 5, int(module.Bug.static_overrun))", "index 2 out of bounds"),
        ("module.reverse(x, y, 5, int(module.Bug.dynamic_overrun))", "heap-buffer-overflow"),
        ("module.reverse(x, y, 6, int(module.Bug.none))", "heap-buffer-overflow"),
        ("module.copy_pairs(x + 4, y, 0)", "is misaligned at"),
    ],
)
def test_reports(environment, call, report):
    script = (
        "import os, pathlib, torch; from tests.emulator import build\n"
        "module = build.module('simt_examples', pathlib.Path(os.environ['FASTCNN_EMULATOR_FOLDER']))\n"
        "keep = [torch.zeros(320), torch.zeros(320)]\n"
        f"x, y = [t.data_ptr() for t in keep]\n{call}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=build.ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0 and report in done.stderr, done.stderr[-4000:]
