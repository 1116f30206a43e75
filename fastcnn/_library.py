# SPDX-License-Identifier: Apache-2.0
"""The dispatcher namespace ``fastcnn``: its schemas, the compiled libraries that serve it, and what to say when one cannot be loaded.

``import fastcnn`` never fails because of a compiled library. Without one, the schemas are defined from ``schemas.txt`` here, and every op runs
through its plain-torch reference, after one warning that names the reason and the command that fixes it. ``FASTCNN_REQUIRE_EXT=1`` turns that
warning into an ImportError.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import sys
import warnings
from pathlib import Path

import torch

NAMESPACE = "fastcnn"
LIBRARY_FOLDER = Path(os.environ.get("FASTCNN_LIBRARY_FOLDER") or Path(__file__).parent / "lib")
FIX = "pip install --force-reinstall --no-deps --no-cache-dir --no-binary fastcnn fastcnn"
ISAS = ("plain", "avx2", "avx512")


def schemas() -> dict[str, str]:
    """Op name -> schema, from ``schemas.txt``."""
    lines = (Path(__file__).parent / "schemas.txt").read_text(encoding="utf-8").splitlines()
    return {line.split("(", 1)[0]: line for line in lines if line[:1].isalpha()}


class CompiledLibrary:
    """One shared library: whether it is loaded, why not, and what it was built from (``build_info.json`` beside it)."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.path = LIBRARY_FOLDER / f"libfastcnn_{device}.so"
        self.build: dict = {}
        self.reason: str | None = None

    @property
    def loaded(self) -> bool:
        return self.reason is None

    def load(self, required_schemas: str) -> None:
        info = LIBRARY_FOLDER / "build_info.json"
        if info.is_file():
            self.build = json.loads(info.read_text(encoding="utf-8")).get(self.device, {})
        if not self.path.is_file():
            self.reason = self.build.get("not_built") or "it was not built when this copy was installed"
            return
        if self.build.get("schemas", required_schemas) != required_schemas:
            self.reason = "it was built for other op schemas than this version of fastcnn has"
            return
        try:
            torch.ops.load_library(str(self.path))
        except (OSError, ImportError, RuntimeError) as error:
            cause = error.__cause__ or error  # torch wraps the loader's own words
            self.reason = f"{type(cause).__name__}: {cause}"

    def describe(self) -> str:
        built = self.build or {}
        return (f"built for torch {built.get('torch', '?')}, Python {built.get('python', '?')}, {built.get('platform', '?')}; here: "
                f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}-{sys.platform}")


def _warn_not_loaded(library: CompiledLibrary) -> None:
    text = (f"fastcnn: the compiled {library.device} library is not in use ({library.reason}).\n"
            f"  {library.describe()}.\n"
            f"  Every op still works, through its slower plain-torch reference. To fix it: {FIX}\n"
            f"  `fastcnn info` tells more; FASTCNN_REQUIRE_EXT=1 makes this an error.")
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
        warnings.warn(f"fastcnn: FASTCNN_CPU_ISA={wanted} is not what this machine or build has; {isa_active()} is used", RuntimeWarning,
                      stacklevel=2)


def _ask(symbol: str) -> str | None:
    if not CPU.loaded:
        return None
    function = getattr(ctypes.CDLL(str(CPU.path)), symbol)
    function.restype = ctypes.c_char_p
    return function().decode()


def isa_active() -> str | None:
    """The instruction set whose kernels run in this process, None without the compiled library."""
    return _ask("fastcnn_isa_active")


def isa_machine() -> str | None:
    """The best instruction set that both this processor and the build have."""
    return _ask("fastcnn_isa_machine")


SCHEMAS = schemas()
_SCHEMA_TEXT = "\n".join(SCHEMAS.values())
CPU = CompiledLibrary("cpu")
CUDA = CompiledLibrary("cuda")
CPU.load(_SCHEMA_TEXT)
if CPU.loaded:
    if torch.version.cuda is None:
        CUDA.reason = "this torch was built without CUDA"
    else:
        CUDA.load(_SCHEMA_TEXT)
else:
    CUDA.reason = "the CPU library, which defines the ops, is not loaded"
    _warn_not_loaded(CPU)
LIB = torch.library.Library(NAMESPACE, "FRAGMENT")
if not CPU.loaded:
    for _schema in SCHEMAS.values():
        LIB.define(_schema)
_check_isa_request()
