# SPDX-License-Identifier: Apache-2.0
"""The dispatcher namespace ``fastcnn``: its schemas, the compiled libraries, and what to say when one cannot be loaded.

``import fastcnn`` never fails because of a compiled library. Without one, the schemas are defined from ``schemas.txt``
here, and every op runs through its plain-torch reference, after one warning that names the reason and the command that
fixes it. ``FASTCNN_REQUIRE_EXT=1`` turns that warning into an ImportError.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from . import _triton

NAMESPACE = "fastcnn"
LIBRARY_FOLDER = Path(os.environ.get("FASTCNN_LIBRARY_FOLDER") or Path(__file__).parent / "lib")
ISAS = ("plain", "avx2", "avx512")
NOT_BUILT = "it was not built when this copy was installed"


def schemas() -> dict[str, str]:
    """Op name -> schema, from ``schemas.txt``."""
    lines = (Path(__file__).parent / "schemas.txt").read_text(encoding="utf-8").splitlines()
    return {line.split("(", 1)[0]: line for line in lines if line[:1].isalpha()}


class CompiledLibrary:
    """One shared library: whether it is loaded, why not, and what it was built from (``build_info.json`` beside it)."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.path = LIBRARY_FOLDER / f"libfastcnn_{device}.so"
        self.build: dict[str, Any] = {}
        self.reason: str | None = None

    @property
    def loaded(self) -> bool:
        return self.reason is None

    def load(self, required: dict[str, str]) -> None:
        self.build = self._build_info()
        if not self.path.is_file():
            asked = "FASTCNN_LIBRARY_FOLDER" in os.environ
            self.reason = f"{self.path} does not exist" if asked else self.build.get("not_built") or NOT_BUILT
            return
        built_for = self.build.get("schemas")
        if built_for is not None and built_for != "\n".join(required.values()):
            other = sorted({line.split("(", 1)[0] for line in {*required.values()} ^ {*built_for.splitlines()}})
            self.reason = f"it was built for other op schemas than this version of fastcnn has: {', '.join(other)}"
            return
        try:
            torch.ops.load_library(str(self.path))
        except (OSError, ImportError, RuntimeError) as error:
            cause = error.__cause__ or error  # torch wraps the loader's own words
            self.reason = f"{type(cause).__name__}: {cause}"

    def _build_info(self) -> dict[str, Any]:
        # a development tree has a link to the library in its build folder, where CMake left the file
        for folder in (LIBRARY_FOLDER, self.path.resolve().parent):
            try:
                built = json.loads((folder / "build_info.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):  # absent or damaged: nothing is known about the build
                continue
            if isinstance(built, dict) and isinstance(built.get(self.device), dict):
                return built[self.device]
        return {}

    def describe(self) -> str:
        built = self.build
        here = f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}-{sys.platform}"
        if "torch" not in built:
            return f"here: {here}"
        python, machine = built.get("python", "?"), built.get("platform", "?")
        return f"built for torch {built['torch']}, Python {python}, {machine}; here: {here}"

    def fix(self) -> str | None:
        """The command that gets this library loaded, None when it is."""
        if self.loaded:
            return None
        if "FASTCNN_LIBRARY_FOLDER" in os.environ:
            return "unset FASTCNN_LIBRARY_FOLDER, or build the libraries of this version into that folder"
        if self.device == "cpu":
            needs = self.build.get("needs")
            return f"{needs}, then: {reinstall_command()}" if needs else reinstall_command()
        command = f"FASTCNN_CUDA=1 {reinstall_command()}"
        if torch.version.cuda is None:
            return f"for an NVIDIA GPU, install a CUDA build of torch and nvcc of the same version, then: {command}"
        return f"with nvcc of CUDA {torch.version.cuda} on PATH or in CUDA_HOME: {command}"


def reinstall_command() -> str:
    """What rebuilds this very copy: a source tree in place, a copy that pip made of a folder or archive from there."""
    from importlib.metadata import PackageNotFoundError, distribution
    from urllib.parse import unquote, urlparse

    pip = f"{shlex.quote(sys.executable)} -m pip install --no-deps"
    package = Path(__file__).resolve().parent
    if (package.parent / "build_plan.py").is_file():
        return f"{pip} -e {shlex.quote(str(package.parent))}"
    try:
        installed = distribution("fastcnn")
        origin = json.loads(installed.read_text("direct_url.json") or "{}").get("url", "")
        ours = Path(str(installed.locate_file("fastcnn"))).resolve() == package
    except (PackageNotFoundError, ValueError):
        origin, ours = "", False
    source = Path(unquote(urlparse(origin).path))
    if ours and origin.startswith("file:") and source.exists() and source.suffix != ".whl":
        return f"{pip} --force-reinstall {shlex.quote(str(source))}"
    return f"in the source folder of fastcnn: {pip} --force-reinstall ."


def _warn_not_loaded(library: CompiledLibrary) -> None:
    text = (
        f"fastcnn: the compiled {library.device} library is not in use ({library.reason}).\n"
        f"  {library.describe()}.\n"
        f"  Every op still works, through its slower plain-torch reference. To fix it: {library.fix()}\n"
        f"  `fastcnn info` tells more; FASTCNN_REQUIRE_EXT=1 makes this an error."
    )
    if os.environ.get("FASTCNN_REQUIRE_EXT") == "1":
        raise ImportError(text)
    warnings.warn(text, RuntimeWarning, stacklevel=2)


def _check_isa_request() -> None:
    wanted = os.environ.get("FASTCNN_CPU_ISA")
    if wanted is None:
        return
    if wanted not in ISAS:
        raise ImportError(f"FASTCNN_CPU_ISA must be one of {', '.join(ISAS)}, got {wanted!r}")
    if CPU.loaded and isa_active() != wanted:
        warnings.warn(
            f"fastcnn: FASTCNN_CPU_ISA={wanted} is not what this machine or build has; {isa_active()} is used",
            RuntimeWarning,
            stacklevel=2,
        )


def ask(symbol: str) -> str | None:
    """What a function without arguments of the CPU library answers, None without the library."""
    if not CPU.loaded:
        return None
    function = getattr(ctypes.CDLL(str(CPU.path)), symbol)
    function.restype = ctypes.c_char_p
    return function().decode()


def isa_active() -> str | None:
    """The instruction set whose kernels run in this process, None without the compiled library."""
    return ask("fastcnn_isa_active")


def isa_machine() -> str | None:
    """The best instruction set that both this processor and the build have."""
    return ask("fastcnn_isa_machine")


def has_kernel(op: str, key: str) -> bool:
    """Whether a kernel stands at this dispatch key, compiled or, for CUDA, of Triton."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{op}", key)


def serves(op: str) -> dict[str, str]:
    """Device -> "kernel", "triton" or "reference": what a tensor there gets."""
    cuda = ("triton" if op in _triton.REGISTERED else "kernel") if has_kernel(op, "CUDA") else "reference"
    return {"cpu": "kernel" if has_kernel(op, "CPU") else "reference", "cuda": cuda}


def info() -> dict[str, Any]:
    """What `fastcnn info` shows: versions, what was built and is loaded, why not, the fix, what serves each op."""
    from . import __version__

    best = isa_machine()
    return {
        "version": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": {
            "built": CPU.loaded,
            "reason": CPU.reason,
            "fix": CPU.fix(),
            "isas_built": CPU.build.get("isas", []),
            "isa_machine": list(ISAS[: ISAS.index(best) + 1]) if best else [],
            "isa_active": isa_active() or "reference",
        },
        "cuda": {
            "built": CUDA.loaded,
            "reason": CUDA.reason,
            "fix": CUDA.fix(),
            "archs": CUDA.build.get("archs", []),
            "toolkit": CUDA.build.get("toolkit"),
        },
        "triton": {"available": _triton.why_not() is None, "version": _triton.version(), "reason": _triton.why_not()},
        "ops": {op: serves(op) for op in SCHEMAS if not op.endswith("_backward")},
    }


SCHEMAS = schemas()
CPU = CompiledLibrary("cpu")
CUDA = CompiledLibrary("cuda")
CPU.load(SCHEMAS)
if not CPU.loaded:
    CUDA.reason = "the CPU library, which defines the ops, is not loaded"
    _warn_not_loaded(CPU)
elif torch.version.cuda is None:
    CUDA.reason = "this torch was built without CUDA"
else:
    CUDA.load(SCHEMAS)
    if not CUDA.loaded and CUDA.path.is_file():
        _warn_not_loaded(CUDA)
LIB = torch.library.Library(NAMESPACE, "FRAGMENT")
if not CPU.loaded:
    for _schema in SCHEMAS.values():
        LIB.define(_schema)
if torch.version.cuda is not None:
    _triton.register(LIB)
_check_isa_request()
