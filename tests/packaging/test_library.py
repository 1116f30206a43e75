# SPDX-License-Identifier: Apache-2.0
"""The compiled library itself: what it depends on, and that no instruction set leaks into another's code."""

import re
import shutil
import subprocess

import pytest

from fastcnn._library import CPU, CUDA
from tests.packaging.tools import ROOT


def _objects(isa):
    for build in (ROOT / "build/setup", CPU.path.resolve().parent):
        found = sorted((build / f"CMakeFiles/fastcnn_{isa}.dir/csrc/cpu").glob("*.o"))
        if found:
            return found
    pytest.skip("the build folder of the library is not here")


def _run(*command):
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not here")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512"])
def test_an_instruction_set_defines_only_its_own_symbols(isa):
    """The linker merges equal weak symbols: an inline function outside the namespace brings AVX-512 to any machine."""
    for path in _objects(isa):
        for line in _run("nm", "-C", "--defined-only", str(path)).splitlines():
            kind, name = line.split(maxsplit=2)[1:] if line[0] != " " else line.split(maxsplit=1)
            shared = kind in "TDBRWVu" and not name.startswith(
                "DW.ref."
            )  # DW.ref: a pointer to the unwinder, data without code
            assert not shared or f"fastcnn::{isa}::" in name, f"{path.name}: {kind} {name}"


@pytest.mark.parametrize("library", [CPU, CUDA], ids=lambda library: library.device)
def test_dependencies(library):
    """Nothing but torch's stable part, the CUDA runtime and the C++ runtime; no path of the machine that built it."""
    if not library.path.is_file():
        pytest.skip(f"the {library.device} library was not built: {library.reason}")
    dynamic = _run("readelf", "-d", str(library.path))
    needed = {re.sub(r"\.so.*", "", name) for name in re.findall(r"NEEDED.*\[(.+)\]", dynamic)}
    assert needed <= {
        "libtorch_cpu",
        "libtorch_cuda",
        "libcudart",
        "libstdc++",
        "libm",
        "libgcc_s",
        "libc",
        "ld-linux-x86-64",
        "ld-linux-aarch64",
    }
    assert "RUNPATH" not in dynamic and "RPATH" not in dynamic


def test_only_the_stable_abi_of_torch_is_called():
    """C++ names of torch change between releases; the C functions of the stable ABI do not."""
    undefined = _run("nm", "-D", "-C", "--undefined-only", str(CPU.path)).split("\n")
    assert [line for line in undefined if re.search(r"\b(at|c10|torch)::", line)] == []


def test_nothing_is_exported_but_what_python_asks():
    exported = [line.split()[-1] for line in _run("nm", "-D", "--defined-only", str(CPU.path)).splitlines()]
    assert sorted(n for n in exported if "fastcnn" in n) == ["fastcnn_isa_active", "fastcnn_isa_machine", "fastcnn_plan_bf16"]
