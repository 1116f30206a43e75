# SPDX-License-Identifier: Apache-2.0
"""Says what will be built and drives CMake: build_plan.py decides, CMakeLists.txt describes the build."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import setuptools
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))
from build_plan import CMAKE_NEEDED, find_tool, job_count, numbers, plan_build  # noqa: E402

SETUPTOOLS_NEEDED = (77,)


def say(text: str) -> None:
    print(f"fastcnn: {text}", flush=True)


class BuildLibraries(setuptools.Command):
    """Compiles the shared libraries into fastcnn/lib of the wheel, or of the source tree for an editable install."""

    user_options: list = []
    editable_mode = False

    def initialize_options(self) -> None:
        self.build_lib = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self) -> None:
        plan, target = plan_build(), (ROOT if self.editable_mode else Path(self.build_lib)) / "fastcnn/lib"
        if plan.cuda.error:
            raise SystemExit(f"fastcnn: {plan.cuda.error}")
        target.mkdir(parents=True, exist_ok=True)
        info = {
            "cpu": {"not_built": plan.reason, "needs": plan.needs},
            "cuda": {"not_built": plan.reason or plan.cuda.reason},
        }
        if plan.reason:
            change = f". To change that: {plan.needs}" if plan.needs else ""
            say(
                f"no compiled library: {plan.reason}; every op will run through its slower plain-torch reference{change}"
            )
        else:
            self.compile(plan, target, info)
        _replace(target / "build_info.json", json.dumps(info, indent=1).encode())

    def compile(self, plan: SimpleNamespace, target: Path, info: dict) -> None:
        jobs, why = job_count()
        say(f"CPU library: yes, {plan.compiler}, torch {plan.torch[1]} in {plan.torch[0]}")
        say(f"CUDA library: {'yes, ' + plan.cuda.nvcc if plan.cuda.nvcc else 'no, ' + plan.cuda.reason}")
        if plan.cuda.warning:
            say(f"warning: {plan.cuda.warning}")
        say(f"jobs: {jobs} ({why})")
        folder, started = ROOT / "build/setup", time.monotonic()
        options = {
            "FASTCNN_TORCH": plan.torch[0],
            "CMAKE_MAKE_PROGRAM": find_tool("ninja"),
            "FASTCNN_CUDA": "ON" if plan.cuda.nvcc else "OFF",
        }
        if plan.cuda.nvcc:
            options["CMAKE_CUDA_COMPILER"] = plan.cuda.nvcc
        asked = os.environ.get("FASTCNN_CUDA_ARCHS")
        archs = f"-DFASTCNN_CUDA_ARCHS={asked}" if asked else "-UFASTCNN_CUDA_ARCHS"  # not what an earlier build asked for
        moved = _cached(folder, "CMAKE_HOME_DIRECTORY") != str(ROOT)  # a copied tree: CMake would refuse the cache
        # another toolkit: CMake would start anew, without the options given here
        changed = plan.cuda.nvcc and _cached(folder, "CMAKE_CUDA_COMPILER") not in (None, plan.cuda.nvcc)
        if moved or changed:
            shutil.rmtree(folder, ignore_errors=True)
        cmake = find_tool("cmake", CMAKE_NEEDED)
        _call([cmake, "-G", "Ninja", "-S", str(ROOT), "-B", str(folder), archs, *(f"-D{k}={v}" for k, v in options.items())])
        _call([cmake, "--build", str(folder), "--parallel", str(jobs)])
        for device, built in json.loads((folder / "build_info.json").read_text(encoding="utf-8")).items():
            info[device] = built | {"python": platform.python_version()}
            _replace(target / f"libfastcnn_{device}.so", (folder / f"libfastcnn_{device}.so").read_bytes())
        say(f"built {', '.join(d for d in info if 'not_built' not in info[d])} in {time.monotonic() - started:.0f} s")

    def get_source_files(self) -> list[str]:
        return []

    def get_outputs(self) -> list[str]:
        return []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


def _cached(folder: Path, name: str) -> str | None:
    cache = folder / "CMakeCache.txt"
    found = cache.is_file() and re.search(rf"^{name}:\w+=(.*)$", cache.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else None


def _call(command: list[str]) -> None:
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise SystemExit(
            f"fastcnn: the build failed, {' '.join(command[:2])} ended with {done.returncode}; "
            "its messages stand above (pip -v shows them). "
            "FASTCNN_CUDA=0 builds without CUDA"
        )


def _replace(path: Path, content: bytes) -> None:
    # a new file, never the old one overwritten: a process may have it mapped
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(content)
    os.replace(fresh, path)


class Build(build):
    sub_commands = [*build.sub_commands, ("build_libraries", None)]

    def run(self) -> None:
        shutil.rmtree(
            self.build_lib, ignore_errors=True
        )  # a module that was removed since must not come back in the wheel
        super().run()


class Distribution(setuptools.Distribution):
    def has_ext_modules(self) -> bool:
        return plan_build().reason is None


if __name__ == "__main__":
    if numbers(setuptools.__version__) < SETUPTOOLS_NEEDED:
        raise SystemExit(
            f"fastcnn: building needs setuptools >= 77, this is {setuptools.__version__}: pip install -U setuptools"
        )
    setuptools.setup(
        # mounted: the import name triton_kernels belongs to another project
        packages=[*setuptools.find_packages(str(ROOT), include=["fastcnn", "fastcnn.*"]), "fastcnn.triton_kernels"],
        package_dir={"fastcnn.triton_kernels": "triton_kernels"},
        cmdclass={"build": Build, "build_libraries": BuildLibraries},
        distclass=Distribution,
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )
