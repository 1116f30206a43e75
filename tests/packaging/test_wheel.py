# SPDX-License-Identifier: Apache-2.0
"""Wheels, sdists and editable installs, built from a copy of the tree and imported from where they were installed."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from tests.packaging.tools import (
    HERE,
    IN_SOURCE_FOLDER,
    ONE_CALL,
    copy_source,
    environment,
    python,
    warning_text,
    warns_once,
)

USES_THE_KERNEL = (
    ONE_CALL + "; import fastcnn.triton_kernels; print(fastcnn._library.serves('hardswish')['cpu'], fastcnn.__file__)"
)
CPU_ONLY = {"FASTCNN_CUDA": "0"}


def run(*command, cwd=None, **env):
    done = subprocess.run(
        [str(c) for c in command],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(**env),
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def pip_wheel(source, target, *options, **env):
    log = run(sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--wheel-dir", target, *options, source, **env)
    (wheel,) = target.glob("*.whl")
    return wheel, [line.strip() for line in log.splitlines() if line.strip().startswith("fastcnn: ")]


def unpack(wheel, target):
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", target, wheel)
    return target


def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def new_environment(folder):
    """A virtual environment that sees the packages of this one behind its own, and no setuptools of its own."""
    run(sys.executable, "-m", "venv", folder)
    outer = Path(torch.__file__).parents[1]
    (next(folder.glob("lib/python*/site-packages")) / "outer.pth").write_text(f"{outer}\n")
    there = folder / "bin/python"
    run(there, "-m", "pip", "uninstall", "-y", "setuptools")
    return there, outer


def no_compiler(tmp_path):
    (tmp_path / "bin").mkdir()
    return {"PATH": str(tmp_path / "bin")}


def test_without_a_compiler_the_wheel_is_pure_and_says_why(tmp_path):
    source = copy_source(tmp_path / "source")
    wheel, said = pip_wheel(source, tmp_path / "dist", "--no-build-isolation", **no_compiler(tmp_path))
    assert wheel.name == "fastcnn-0.1.0-py3-none-any.whl"
    assert said == [
        "fastcnn: no compiled library: no C++ compiler was found; every op will run through its slower plain-torch "
        "reference. "
        "To change that: install g++ (or set CXX)"
    ]
    assert {
        "fastcnn/lib/build_info.json",
        "fastcnn/triton_kernels/hardswish.py",
        "fastcnn/schemas.txt",
        "fastcnn/models/metadata.json",
    } <= names(wheel)
    site = unpack(wheel, tmp_path / "site")
    done = python(USES_THE_KERNEL, site)
    fix = f"install g++ (or set CXX), then: {IN_SOURCE_FOLDER}"
    warns_once(done, warning_text("no C++ compiler was found", f"here: {HERE}", fix))
    assert done.stdout == f"reference {site}/fastcnn/__init__.py\n"


@pytest.mark.parametrize("isolation", [True, False], ids=["isolated", "not-isolated"])
@pytest.mark.long
def test_a_wheel_with_the_cpu_library(tmp_path, isolation):
    source = copy_source(tmp_path / "a folder with späces")
    wheel, said = pip_wheel(source, tmp_path / "dist", *([] if isolation else ["--no-build-isolation"]), **CPU_ONLY)
    assert re.fullmatch(r"fastcnn-0\.1\.0-cp310-abi3-linux_\w+\.whl", wheel.name)
    folder = Path(torch.__file__).parent
    assert said[0].startswith("fastcnn: CPU library: yes, ") and said[0].endswith(
        f"torch {torch.__version__} in {folder}"
    )
    assert said[1] == "fastcnn: CUDA library: no, FASTCNN_CUDA=0 was set"
    assert re.fullmatch(r"fastcnn: jobs: \d+ \(.*\)", said[2]) and re.fullmatch(r"fastcnn: built cpu in \d+ s", said[3])
    site = unpack(wheel, tmp_path / "site")
    done = python(USES_THE_KERNEL, site, FASTCNN_REQUIRE_EXT="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"kernel {site}/fastcnn/__init__.py\n", "")
    built = json.loads((site / "fastcnn/lib/build_info.json").read_text())
    assert (
        built["cpu"]["torch"] == torch.__version__
        and "schemas" in built["cpu"]
        and built["cuda"] == {"not_built": "FASTCNN_CUDA=0 was set"}
    )
    code = b"".join(p.read_bytes() for p in (site / "fastcnn/lib").iterdir())
    assert str(tmp_path).encode() not in code, "the build folder's name is in the wheel"


@pytest.mark.parametrize("isolation", [True, False], ids=["isolated", "not-isolated"])
@pytest.mark.long
def test_an_editable_install(tmp_path, isolation):
    source = copy_source(tmp_path / "source")
    there, outer = new_environment(tmp_path / "venv")
    options = [] if isolation else ["--no-build-isolation"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    install = (there, "-m", "pip", "install", "--no-deps", *options, "-e", source)
    run(*install, **CPU_ONLY, FASTCNN_TORCH=str(outer / "torch"), PATH=path)
    assert {p.name for p in (source / "fastcnn/lib").iterdir()} == {"build_info.json", "libfastcnn_cpu.so"}
    code = USES_THE_KERNEL + "; print(fastcnn.triton_kernels.__file__)"
    out = run(there, "-c", code, cwd=tmp_path, FASTCNN_REQUIRE_EXT="1")
    assert out == f"kernel {source}/fastcnn/__init__.py\n{source}/triton_kernels/__init__.py\n"
    assert run(there.with_name("fastcnn"), "--version", cwd=tmp_path) == "fastcnn 0.1.0\n"
    (source / "fastcnn/lib/libfastcnn_cpu.so").unlink()
    done = subprocess.run(
        [there, "-c", "import fastcnn"],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=tmp_path,
        check=True,
    )
    assert f"To fix it: {there} -m pip install --no-deps -e {source}\n" in done.stderr


@pytest.mark.parametrize("isolation", [True, False], ids=["isolated", "not-isolated"])
@pytest.mark.long
def test_python_m_build(tmp_path, isolation):
    pytest.importorskip("build")
    source = copy_source(tmp_path / "source")
    (source / "tests").mkdir()
    (source / "tests/test_x.py").touch()
    (source / "fastcnn/lib").mkdir()
    (source / "fastcnn/lib/libfastcnn_cpu.so").write_text("of another build")
    options = [] if isolation else ["--no-isolation"]
    run(
        sys.executable,
        "-m",
        "build",
        *options,
        "--outdir",
        tmp_path / "dist",
        cwd=source,
        **CPU_ONLY,
        VIRTUAL_ENV=sys.prefix,
    )
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with tarfile.open(sdist) as archive:
        inside = {name.split("/", 1)[-1] for name in archive.getnames()}
    wanted = {
        "setup.py",
        "build_plan.py",
        "CMakeLists.txt",
        "Makefile",
        "LICENSE",
        "README.md",
        "csrc/cpu/hardswish.cpp",
        "csrc/cuda/hardswish.cuh",
        "csrc/common/epilogue.h",
        "triton_kernels/hardswish.py",
        "tests/test_x.py",
        "fastcnn/schemas.txt",
    }
    assert wanted <= inside and not any(name.endswith((".so", ".pyc")) for name in inside)
    assert "fastcnn/lib/libfastcnn_cpu.so" in names(wheel) and "-cp310-abi3-" in wheel.name
    site = unpack(wheel, tmp_path / "site")
    assert python(USES_THE_KERNEL, site, FASTCNN_REQUIRE_EXT="1").stdout == f"kernel {site}/fastcnn/__init__.py\n"


@pytest.mark.long
def test_the_fix_command_of_a_folder_install_works(tmp_path):
    source = copy_source(tmp_path / "source")
    there, outer = new_environment(tmp_path / "venv")
    run(there, "-m", "pip", "install", "--no-deps", "--no-build-isolation", source, **no_compiler(tmp_path))
    warned = subprocess.run(
        [there, "-c", "import fastcnn"], capture_output=True, text=True, env=environment(), cwd=tmp_path, check=True
    ).stderr
    command = re.search(r"To fix it: install g\+\+ \(or set CXX\), then: (.+)\n", warned)[1]
    assert command == f"{there} -m pip install --no-deps --force-reinstall {source}"
    env = environment(FASTCNN_TORCH=str(outer / "torch"), FASTCNN_CUDA="0", PATH=os.environ["PATH"])
    subprocess.run(command, shell=True, check=True, capture_output=True, cwd=tmp_path, env=env)
    assert run(there, "-W", "error", "-c", USES_THE_KERNEL, cwd=tmp_path).startswith("kernel ")


@pytest.mark.long
def test_the_cuda_library_builds_and_loads_without_a_gpu(tmp_path):
    if torch.version.cuda is None or shutil.which("nvcc") is None:
        pytest.skip("the CUDA library needs nvcc and a CUDA build of torch")
    source = copy_source(tmp_path / "source")
    wheel, said = pip_wheel(source, tmp_path / "dist", FASTCNN_CUDA="1", FASTCNN_CUDA_ARCHS="80;90")
    assert any(line.startswith("fastcnn: CUDA library: yes, ") for line in said)
    site = unpack(wheel, tmp_path / "site")
    ask = "json.dumps([fastcnn._library.info()['cuda'], fastcnn._library.serves('hardswish')['cuda']])"
    done = python(f"{ONE_CALL}; import json; print({ask})", site, FASTCNN_REQUIRE_EXT="1")
    assert (done.returncode, done.stderr) == (0, "")
    info, serves = json.loads(done.stdout)
    assert serves == "kernel"
    assert info["built"] and info["archs"] == ["80", "90", "90+PTX"] and info["reason"] is info["fix"] is None
    assert info["toolkit"].split(".")[0] == torch.version.cuda.split(".")[0]
