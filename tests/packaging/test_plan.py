# SPDX-License-Identifier: Apache-2.0
"""What the build decides on machines that lack something, and what it says."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.packaging.tools import ROOT

TORCH = Path(torch.__file__).parent


@pytest.fixture
def plan(monkeypatch):
    for name in ("FASTCNN_TORCH", "FASTCNN_CUDA", "CXX", "CUDA_HOME", "CUDA_PATH", "CUDACXX", "MAX_JOBS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    spec = importlib.util.spec_from_file_location("build_plan", ROOT / "build_plan.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fake_torch(folder, version="2.12.0", cuda="13.0"):
    (folder / "include/torch/csrc/stable").mkdir(parents=True)
    (folder / "include/torch/csrc/stable/library.h").touch()
    (folder / "lib").mkdir()
    (folder / "lib/libtorch_cuda.so").touch()
    (folder / "version.py").write_text(f"__version__ = '{version}'\ncuda: Optional[str] = {cuda!r}\n")
    return folder


def fake_program(folder, name, prints):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\necho '{prints}'\n")
    (folder / name).chmod(0o755)
    return folder / name


def no_torch(plan, monkeypatch):
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(plan, "_site_folders", lambda: [])


def test_torch_is_found_and_not_imported():
    code = "import sys, build_plan as p; f, v, c = p.find_torch(); print(f, v, c, 'torch' in sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(TORCH), torch.__version__, str(torch.version.cuda), "False"]


def test_torch_is_found_behind_the_isolation_of_pip(plan, monkeypatch):
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: None)
    if not (Path(plan.sysconfig.get_path("purelib")) / "torch").is_dir():
        monkeypatch.setenv("VIRTUAL_ENV", str(TORCH.parents[3]))
    assert plan.find_torch() == (TORCH, torch.__version__, torch.version.cuda)


def test_torch_is_found_in_the_activated_environment(plan, monkeypatch, tmp_path):
    folder = fake_torch(tmp_path / "lib/python3.12/site-packages/torch", cuda=None)
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(plan.sysconfig, "get_paths", lambda: {})
    monkeypatch.setattr(plan.sys, "prefix", str(tmp_path))
    monkeypatch.setattr(plan.site, "getusersitepackages", lambda: str(tmp_path))
    assert plan.find_torch() == (None, "no torch was found", None)
    plan.find_torch.cache_clear()
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path))
    assert plan.find_torch() == (folder, "2.12.0", None)


def test_the_users_torch_comes_first(plan, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTCNN_TORCH", str(fake_torch(tmp_path / "torch")))
    assert plan.find_torch() == (tmp_path / "torch", "2.12.0", "13.0")
    plan.find_torch.cache_clear()
    monkeypatch.setenv("FASTCNN_TORCH", str(tmp_path))
    assert plan.find_torch() == (None, f"FASTCNN_TORCH={tmp_path} is not the folder of a torch >= 2.10", None)


def test_an_old_torch_is_named(plan, monkeypatch, tmp_path):
    no_torch(plan, monkeypatch)
    folder = fake_torch(tmp_path / "torch", version="2.9.1+cu128")
    monkeypatch.setattr(plan, "_site_folders", lambda: [tmp_path])
    assert plan.find_torch() == (
        None,
        f"torch 2.9.1+cu128 in {folder} is too old, 2.10 is the first that will do",
        None,
    )


def test_no_torch_is_a_build_requirement_and_else_a_reason(plan, monkeypatch):
    no_torch(plan, monkeypatch)
    assert "torch>=2.10" in plan._machine_requirements()
    found = plan.plan_build()
    assert (found.reason, found.needs) == ("no torch was found", "pip install 'torch>=2.10' (or set FASTCNN_TORCH)")


def test_torch_is_not_fetched_when_one_is_there_or_nothing_could_be_compiled(plan, monkeypatch, tmp_path):
    assert not any(r.startswith("torch") for r in plan._machine_requirements())
    plan.find_torch.cache_clear()
    plan.plan_build.cache_clear()
    no_torch(plan, monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert plan._machine_requirements() == []


def test_no_compiler(plan, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = plan.plan_build()
    assert (found.reason, found.needs) == ("no C++ compiler was found", "install g++ (or set CXX)")
    plan.plan_build.cache_clear()
    monkeypatch.setenv("CXX", "ccache no-such-compiler")
    assert plan.plan_build().reason == "no C++ compiler was found"


def test_a_cmake_that_does_not_run_or_is_too_old_is_asked_for(plan, monkeypatch, tmp_path):
    fake_program(tmp_path, "c++", "")
    fake_program(tmp_path, "cmake", "cmake version 3.18.4")
    broken = fake_program(tmp_path, "ninja", "")
    broken.write_text("#!/bin/sh\nexit 1\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(plan.sysconfig, "get_path", lambda name, **_: str(tmp_path / "scripts"))
    assert plan._machine_requirements() == ["cmake>=3.22", "ninja"]
    assert plan.plan_build().reason == "cmake >= 3.22 and ninja were not found"
    fake_program(tmp_path / "scripts", "cmake", "cmake version 4.1.0")
    fake_program(tmp_path / "scripts", "ninja", "1.13")
    assert plan._machine_requirements() == [] and plan.find_tool("ninja") == str(tmp_path / "scripts/ninja")


def test_no_nvcc(plan, monkeypatch, tmp_path):
    torch_found = fake_torch(tmp_path / "torch"), "2.12.0", "13.0"
    monkeypatch.setattr(plan.shutil, "which", lambda name: None)
    found = plan.plan_cuda(torch_found)
    assert (found.nvcc, found.error) == (None, None)
    assert found.reason == "nvcc was not found on PATH, in CUDA_HOME or in /usr/local/cuda"
    monkeypatch.setenv("FASTCNN_CUDA", "1")
    assert plan.plan_cuda(torch_found).error == f"FASTCNN_CUDA=1, but the CUDA library cannot be built: {found.reason}"


def test_a_torch_without_cuda(plan, tmp_path):
    assert (
        plan.plan_cuda((fake_torch(tmp_path / "torch", cuda=None), "2.12.0+cpu", None)).reason
        == "torch 2.12.0+cpu has no CUDA"
    )


def test_cuda_switched_off_and_misspelt(plan, monkeypatch, tmp_path):
    torch_found = fake_torch(tmp_path / "torch"), "2.12.0", "13.0"
    monkeypatch.setenv("FASTCNN_CUDA", "0")
    assert plan.plan_cuda(torch_found).reason == "FASTCNN_CUDA=0 was set"
    monkeypatch.setenv("FASTCNN_CUDA", "yes")
    assert plan.plan_cuda(torch_found).error == "FASTCNN_CUDA must be auto, 0 or 1, got 'yes'"


@pytest.mark.parametrize(("release", "kind"), [("12.4", "error"), ("13.2", "warning"), ("13.0", None)])
def test_the_toolkit_must_have_the_major_version_of_torch(plan, monkeypatch, tmp_path, release, kind):
    folder = fake_torch(tmp_path / "torch")
    nvcc = fake_program(tmp_path / "cuda/bin", "nvcc", f"Cuda compilation tools, release {release}, V{release}.88")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    found = plan.plan_cuda((folder, "2.12.0", "13.0"))
    both = f"{nvcc} is CUDA {release}, torch 2.12.0 in {folder} is built with CUDA 13.0"
    if kind == "error":
        assert found.nvcc is None
        assert (
            found.error
            == f"{both}: the major versions must be the same. Set CUDA_HOME to a CUDA 13.0 toolkit, or FASTCNN_CUDA=0"
        )
    else:
        assert found.nvcc == str(nvcc) and found.error is None
        assert found.warning == (f"{both}: a differing minor version works in practice" if kind else None)


def test_jobs_follow_memory_and_the_user(plan, monkeypatch):
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setattr(plan, "_memory_gb", lambda: 1000.0)
    assert plan.job_count()[0] == cores
    monkeypatch.setattr(plan, "_memory_gb", lambda: 3.0)
    assert plan.job_count() == (1, f"{cores} cores, 3.0 GB of memory free, 2.5 GB each; MAX_JOBS=n overrides")
    monkeypatch.setenv("MAX_JOBS", "7")
    assert plan.job_count() == (7, "MAX_JOBS")
    monkeypatch.setenv("MAX_JOBS", "0")
    with pytest.raises(SystemExit, match="^fastcnn: MAX_JOBS must be a whole number from 1 up, got '0'$"):
        plan.job_count()


def test_memory_is_what_the_control_group_leaves(plan, monkeypatch):
    files = {
        "/proc/meminfo": "MemAvailable:   16000000 kB\n",
        "/proc/self/cgroup": "0::/box/inner\n",
        "/sys/fs/cgroup/box/memory.max": "4000000000\n",
        "/sys/fs/cgroup/box/memory.current": "1000000000\n",
        "/sys/fs/cgroup/box/inner/memory.max": "max\n",
    }
    monkeypatch.setattr(plan.Path, "read_text", lambda self, encoding=None: files[str(self)])
    monkeypatch.setattr(plan.Path, "is_file", lambda self: str(self) in files)
    assert plan._memory_gb() == 3.0
