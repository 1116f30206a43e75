# SPDX-License-Identifier: Apache-2.0
"""Installations that lack something: what the user reads, and that every op still works."""

import ctypes
import json
import subprocess
import sys

import pytest
import torch

from fastcnn import _library
from fastcnn._library import CPU, SCHEMAS
from tests.packaging.tools import HERE, IN_SOURCE_FOLDER, ONE_CALL, install_copy, python, warning_text, warns_once

BUILD = {"torch": "2.10.0", "python": "3.10.1", "platform": "x86_64-linux"}
BUILT_FOR = f"built for torch 2.10.0, Python 3.10.1, x86_64-linux; here: {HERE}"


@pytest.fixture
def library():
    assert CPU.loaded, CPU.reason
    return CPU.path.resolve()


def write_build_info(folder, **cpu):
    (folder / "build_info.json").write_text(json.dumps({"cpu": cpu, "cuda": {}}))


def test_no_library_gives_one_warning_and_working_ops(tmp_path):
    install_copy(tmp_path)
    done = python(
        ONE_CALL + "; print(fastcnn._library.info()['ops']['hardswish']['cpu'], fastcnn._library.isa_active())",
        tmp_path,
    )
    warns_once(done, warning_text("it was not built when this copy was installed", f"here: {HERE}", IN_SOURCE_FOLDER))
    assert done.stdout == "reference None\n"


def test_the_warning_can_be_made_an_error(tmp_path):
    install_copy(tmp_path)
    done = python("import fastcnn", tmp_path, FASTCNN_REQUIRE_EXT="1")
    text = warning_text("it was not built when this copy was installed", f"here: {HERE}", IN_SOURCE_FOLDER)
    assert done.returncode == 1 and done.stderr.endswith(text.replace("RuntimeWarning", "ImportError"))


def test_what_was_missing_at_build_time_is_repeated_at_run_time(tmp_path):
    folder = install_copy(tmp_path)
    write_build_info(folder, not_built="no C++ compiler was found", needs="install g++ (or set CXX)")
    fix = f"install g++ (or set CXX), then: {IN_SOURCE_FOLDER}"
    warns_once(python(ONE_CALL, tmp_path), warning_text("no C++ compiler was found", f"here: {HERE}", fix))


def test_a_library_with_an_undefined_symbol(tmp_path):
    install_copy(tmp_path / "site")
    folder = tmp_path / "older"
    folder.mkdir()
    (folder / "old.cpp").write_text(
        'extern "C" void symbol_of_another_torch(); static int called = (symbol_of_another_torch(), 1);'
    )
    path = folder / "libfastcnn_cpu.so"
    subprocess.run(["g++", "-shared", "-fPIC", "-o", path, folder / "old.cpp"], check=True)
    write_build_info(folder, **BUILD)
    done = python(ONE_CALL, tmp_path / "site", FASTCNN_LIBRARY_FOLDER=str(folder))
    fix = "unset FASTCNN_LIBRARY_FOLDER, or build the libraries of this version into that folder"
    warns_once(done, warning_text(f"OSError: {path}: undefined symbol: symbol_of_another_torch", BUILT_FOR, fix))


def test_a_file_that_is_no_library(tmp_path):
    folder = install_copy(tmp_path)
    (folder / "libfastcnn_cpu.so").write_bytes(b"\x7fELF cut off")
    done = python(ONE_CALL, tmp_path)
    warns_once(
        done, warning_text(f"OSError: {folder}/libfastcnn_cpu.so: file too short", f"here: {HERE}", IN_SOURCE_FOLDER)
    )


def test_a_library_of_another_version_is_not_loaded(tmp_path, library):
    folder = install_copy(tmp_path, library)
    old = {**SCHEMAS, "hardswish": "hardswish(Tensor x, bool inplace) -> Tensor"}
    del old["se_scale"]
    write_build_info(folder, **BUILD, schemas="\n".join(old.values()))
    reason = "it was built for other op schemas than this version of fastcnn has: hardswish, se_scale"
    warns_once(python(ONE_CALL, tmp_path), warning_text(reason, BUILT_FOR, IN_SOURCE_FOLDER))


@pytest.mark.parametrize(
    "content", ["{", "[]", '"text"', '{"cpu": null}', "\udcff"], ids=["cut", "list", "text", "null", "not utf-8"]
)
def test_a_damaged_build_info_does_not_stop_the_import(tmp_path, monkeypatch, content):
    (tmp_path / "build_info.json").write_text(content, errors="surrogateescape")
    monkeypatch.setattr(_library, "LIBRARY_FOLDER", tmp_path)
    broken = _library.CompiledLibrary("cpu")
    broken.load(SCHEMAS)
    assert broken.reason == "it was not built when this copy was installed" and broken.describe() == f"here: {HERE}"


def test_a_path_with_spaces_and_unicode(tmp_path, library):
    site = tmp_path / "ein Päckchen 包 'mit' Leerzeichen"
    install_copy(site, library)
    done = python(ONE_CALL + "; print(fastcnn._library.isa_active())", site)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{_library.isa_machine()}\n", "")


def test_without_a_home_folder(tmp_path, library):
    install_copy(tmp_path, library)
    done = python(ONE_CALL, tmp_path, HOME=None, XDG_CACHE_HOME=None)
    assert (done.returncode, done.stderr) == (0, "")


def _obey_permissions() -> None:
    # root passes over permission bits by CAP_DAC_OVERRIDE; dropped here, the program that is started has it no more
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)


def test_read_only_site_packages(tmp_path, library):
    install_copy(tmp_path, library)
    folders = [tmp_path, *(p for p in tmp_path.rglob("*") if p.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    before = sorted(tmp_path.rglob("*"))
    try:
        probe = f"import sys, os; sys.exit(os.access({str(tmp_path)!r}, os.W_OK))"
        if python(probe, tmp_path, preexec=_obey_permissions).returncode:
            pytest.skip("this user writes to read-only folders, and may not give that up")
        done = python(ONE_CALL, tmp_path, preexec=_obey_permissions, PYTHONDONTWRITEBYTECODE=None)
        assert (done.returncode, done.stderr) == (0, "") and sorted(tmp_path.rglob("*")) == before
    finally:
        for folder in folders:
            folder.chmod(0o755)


@pytest.mark.parametrize(
    "error",
    ["ModuleNotFoundError: No module named 'triton'", "AttributeError: AttrsDescriptor"],
    ids=["absent", "broken"],
)
def test_without_triton(tmp_path, library, error):
    install_copy(tmp_path, library)
    kind, _, text = error.partition(": ")
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton/__init__.py").write_text(f"raise {kind}({text!r})")
    code = (
        "; import json; print(json.dumps(fastcnn._library.info()['triton']))\n"
        "from fastcnn.backends import BackendUnavailable\n"
        "try: fastcnn.use_backend('triton')\n"
        "except BackendUnavailable as error: print(error)"
    )
    done = python(ONE_CALL + code, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    info, message = done.stdout.splitlines()
    assert json.loads(info) == {"available": False, "version": None, "reason": error}
    assert message == f"use_backend: triton is not available: {error}"


def test_importing_fastcnn_does_not_import_triton(tmp_path, library):
    install_copy(tmp_path, library)
    others = {"triton", "timm", "torchvision", "PIL", "rich"}
    code = f"import sys, fastcnn, fastcnn.triton_kernels; print(sorted({others} & sys.modules.keys()))"
    count = (
        "; from torch.utils.flop_counter import flop_registry; print(torch.ops.fastcnn.conv_bn_act in flop_registry)"
    )
    assert python(code + "; import torch" + count, tmp_path).stdout == "[]\nTrue\n"


def test_a_wrong_instruction_set_is_named(tmp_path, library):
    install_copy(tmp_path, library)
    done = python("import fastcnn", tmp_path, FASTCNN_CPU_ISA="sse9")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ImportError: FASTCNN_CPU_ISA must be one of plain, avx2, avx512, got 'sse9'"


def installed(tmp_path, monkeypatch, origin):
    package = tmp_path / "site/fastcnn"
    package.mkdir(parents=True)
    (tmp_path / "site/fastcnn-0.1.0.dist-info").mkdir()
    (tmp_path / "site/fastcnn-0.1.0.dist-info/METADATA").write_text("Name: fastcnn\nVersion: 0.1.0\n")
    if origin is not None:
        (tmp_path / "site/fastcnn-0.1.0.dist-info/direct_url.json").write_text(
            json.dumps({"url": origin.as_uri(), "dir_info": {}})
        )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(_library, "__file__", str(package / "_library.py"))
    return _library.reinstall_command()


def test_the_fix_for_a_copy_from_a_folder(tmp_path, monkeypatch):
    source = tmp_path / "my source"
    source.mkdir()
    command = installed(tmp_path, monkeypatch, source)
    assert command == f"{sys.executable} -m pip install --no-deps --force-reinstall '{source}'"


@pytest.mark.parametrize("origin", [None, "gone", "fastcnn-0.1.0-cp310-abi3-linux_x86_64.whl"])
def test_the_fix_for_a_copy_whose_source_is_unknown(tmp_path, monkeypatch, origin):
    if origin and origin != "gone":
        (tmp_path / origin).touch()
    assert installed(tmp_path, monkeypatch, origin and tmp_path / origin) == IN_SOURCE_FOLDER


def test_the_fix_for_a_source_tree(tmp_path, monkeypatch):
    (tmp_path / "build_plan.py").touch()
    monkeypatch.setattr(_library, "__file__", str(tmp_path / "fastcnn/_library.py"))
    assert _library.reinstall_command() == f"{sys.executable} -m pip install --no-deps -e {tmp_path}"


def test_the_cuda_library_says_what_it_needs(monkeypatch):
    cuda = _library.CompiledLibrary("cuda")
    cuda.reason = "nvcc was not found"
    monkeypatch.setattr(_library, "reinstall_command", lambda: "pip install .")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert cuda.fix() == "with nvcc of CUDA 13.0 on PATH or in CUDA_HOME: FASTCNN_CUDA=1 pip install ."
    monkeypatch.setattr(torch.version, "cuda", None)
    first = "for an NVIDIA GPU, install a CUDA build of torch and nvcc of the same version"
    assert cuda.fix() == f"{first}, then: FASTCNN_CUDA=1 pip install ."
