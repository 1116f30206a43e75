# SPDX-License-Identifier: Apache-2.0
"""House rules: one stem per op in every tree, sizes, the licence line, nothing of anybody's machine."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

import fastcnn.ops  # noqa: F401  (registers the pages)
from fastcnn._library import SCHEMAS
from fastcnn.ops._register import REFERENCES, overload

ROOT = Path(__file__).resolve().parents[1]
STEMS = sorted({re.sub("_(backward|train|concat)$", "", op) for op in SCHEMAS})
CODE = (".py", ".h", ".cpp", ".cuh", ".cu")
NOT_AN_OP = {"csrc/cpu": {"gemm", "isa", "library", "parallel", "run_plan", "tensor"}, "csrc/cuda": {"epilogue", "vec"}}
NOT_A_MODEL = {"__init__", "blocks", "features", "inception_blocks", "inputs", "registry", "weights"}


def _source_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:
        found = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:  # an unpacked sdist
        tops = ("csrc", "fastcnn", "triton_kernels", "tests", "benchmarks")
        found = [p for top in tops for p in (ROOT / top).rglob("*") if "__pycache__" not in p.parts] + [
            p for p in ROOT.iterdir()
        ]
    return sorted(
        p
        for p in found
        if p.is_file() and p.suffix in (*CODE, ".txt", ".toml", ".md", ".json", ".in", "") and p.name != "LICENSE"
    )


FILES = _source_files()
CODE_FILES = [p for p in FILES if p.suffix in CODE]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _budget(path: Path) -> int:
    if path.suffix != ".py":
        return 400
    is_model = path.parent == ROOT / "fastcnn/models" and path.stem not in NOT_A_MODEL
    return 150 if is_model else 300


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize(
    "place", ["csrc/cpu/{}.cpp", "fastcnn/ops/{}.py", "tests/ops/test_{}.py", "benchmarks/ops/bench_{}.py"]
)
def test_every_op_has_its_file_in_every_tree(stem, place):
    assert (ROOT / place.format(stem)).is_file()


@pytest.mark.parametrize(("folder", "pattern"), [
    ("csrc/cpu", r"(.+?)(\.kernel)?\.cpp"), ("csrc/cuda", r"(.+)\.cuh?"),
    ("triton_kernels", r"([^_].*)\.py"), ("fastcnn/ops", r"([^_].*)\.py"),
    ("tests/ops", r"test_(.+)\.py"), ("benchmarks/ops", r"bench_(.+)\.py"),
])  # fmt: skip
def test_no_file_without_an_op(folder, pattern):
    names = [m[1] for p in FILES if p.parent == ROOT / folder and (m := re.fullmatch(pattern, p.name))]
    known = [*STEMS, *NOT_AN_OP.get(folder, ())]
    assert [n for n in names if not any(n == stem or n.startswith(f"{stem}_") for stem in known)] == []


def test_every_header_is_included():
    text = "\n".join(p.read_text(encoding="utf-8") for p in CODE_FILES)
    headers = [p for p in CODE_FILES if p.suffix in (".h", ".cuh")]
    assert [_name(p) for p in headers if not re.search(rf'#include "(.*/)?{re.escape(p.name)}"', text)] == []


@pytest.mark.parametrize("op", SCHEMAS)
def test_every_op_has_a_reference_and_a_fake(op):
    assert overload(op) in REFERENCES
    assert torch._library.simple_registry.singleton.find(f"fastcnn::{op}").fake_impl.kernel is not None


def test_sizes():
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in CODE_FILES}
    assert {_name(p): f"{n} lines, at most {_budget(p)}" for p, n in lengths.items() if n > _budget(p)} == {}


def test_the_licence_line_comes_first():
    scripts = [p for p in FILES if p.name in ("CMakeLists.txt", "Makefile")] + CODE_FILES
    first = {p: p.read_text(encoding="utf-8").split("\n", 1)[0] for p in scripts if p.stat().st_size}
    assert [_name(p) for p, line in first.items() if "SPDX-License-Identifier: Apache-2.0" not in line] == []


def test_nothing_of_a_machine_or_a_registry():
    folders = "|".join(["opt", "work", "root", "home", "tmp"])
    hosts = "|".join([r"pypi\.org", r"pythonhosted\.org", r"npmjs\.", r"deb\.debian\."])
    found = {}
    for path in FILES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if re.search(rf"(?<![\w.$)}}])/({folders})/\w|{hosts}", line) and path != Path(__file__):
                found[f"{_name(path)}:{number}"] = line.strip()
    assert found == {}


def test_triton_kernels_stand_alone():
    text = {p: p.read_text(encoding="utf-8") for p in CODE_FILES if p.parent == ROOT / "triton_kernels"}
    assert [
        _name(p)
        for p, code in text.items()
        if re.search(r"^\s*(import|from) fastcnn|torch\.library", code, re.MULTILINE)
    ] == []
