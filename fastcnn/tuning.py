# SPDX-License-Identifier: Apache-2.0
"""Tuning and compiling the Triton kernels ahead of time: the only places where either happens on purpose.

What :func:`tune` finds is kept in a file of the user's cache folder, by GPU, Triton version, kernel and class of
shapes, and read when a process first launches a Triton kernel. Without it the table in triton_kernels/_configs.py
serves.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from . import _triton


class Tuned(NamedTuple):
    """One kernel and class of shapes: the fastest configuration, its time in seconds and that of the table's own."""

    key: str
    config: tuple[int, ...]
    seconds: float
    table_seconds: float


def cache_file() -> Path:
    """FASTCNN_TUNING_FILE, else ``fastcnn/tuning.json`` in XDG_CACHE_HOME or ``~/.cache``."""
    asked = os.environ.get("FASTCNN_TUNING_FILE")
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(asked) if asked else Path(folder) / "fastcnn" / "tuning.json"


@functools.cache
def _stored() -> dict[str, dict[str, list[int]]]:
    path = cache_file()
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        return _damaged(path, f"{type(error).__name__}: {error}")
    good = isinstance(stored, dict) and all(
        isinstance(part, dict)
        and all(isinstance(config, list) and all(type(n) is int for n in config) for config in part.values())
        for part in stored.values()
    )
    return stored if good else _damaged(path, "it is not what fastcnn.tune writes")


def _damaged(path: Path, why: str) -> dict:
    warnings.warn(f"fastcnn: {path} is ignored: {why}", RuntimeWarning, stacklevel=2)
    return {}


@functools.cache
def _found_on(device: torch.device) -> dict[str, list[int]]:
    return _stored().get(_name(device), {})


def _name(device: torch.device) -> str:
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{gpu}, Triton {_triton.version()}"


def connect(launch: ModuleType) -> None:
    """Lets the launchers see what was tuned; called when the first of them is imported."""
    launch.lookup = _found_on


def _store(found: dict[str, dict[str, list[int]]]) -> None:
    """Adds to the file; another process sees the old one or the new one, never half of one."""
    _stored.cache_clear()
    merged = {name: dict(part) for name, part in _stored().items()}
    for name, part in found.items():
        merged.setdefault(name, {}).update(part)
    path = cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False, encoding="utf-8") as fresh:
        json.dump(merged, fresh, indent=1, sort_keys=True)
    os.replace(fresh.name, path)
    _stored.cache_clear()
    _found_on.cache_clear()


def _median_seconds(run: Callable[[], Any]) -> float:
    import triton.testing

    return triton.testing.do_bench(run, return_mode="median") / 1e3


def tune(model_or_op: Callable, *example: Any, seconds: Callable[[Callable[[], Any]], float] | None = None,
         **kwargs: Any) -> list[Tuned]:  # fmt: skip
    """Times the configurations of every Triton kernel that one call launches; the fastest serve from now on.

    Takes minutes: some ten configurations a kernel and shape are compiled. Only forward kernels are met, unless the
    call itself runs a backward. Buffers (running statistics) are as before afterwards. Kernels that C++ or cuDNN serve have nothing to tune (see :func:`explain`).

    Args:
        model_or_op: a module or any function.
        example, kwargs: the arguments of the call, tensors on the GPU to tune for.
        seconds: times a function that launches one kernel; Triton's ``do_bench`` when not given.
    Returns: what was tuned; empty when the call launched no kernel with a choice.
    Raises: ValueError without a tensor that Triton can serve; RuntimeError inside a CUDA-graph capture or a trace.
    """
    _refuse_surroundings("tune")
    tensors = [leaf for leaf in tree_leaves((example, kwargs)) if isinstance(leaf, Tensor)]
    if not tensors or not _triton.runs_on(tensors[0].device):
        got = f"one on {tensors[0].device}" if tensors else "none"
        raise ValueError(f"tune: example must have a tensor on a CUDA device, got {got}")
    launch = _launch("tune")
    with _session(launch, seconds or _median_seconds) as session, _buffers_kept(model_or_op):
        model_or_op(*example, **kwargs)
    results = [Tuned(key, *value) for key, value in session.found.items()]
    _store({_name(tensors[0].device): {result.key: list(result.config) for result in results}})
    return results


@contextlib.contextmanager
def _session(launch: ModuleType, seconds: Callable) -> Iterator[Any]:
    if launch.session is not None:
        raise RuntimeError("tune: another call of tune is running")
    launch.session = launch.Session(seconds)
    try:
        yield launch.session
    finally:
        launch.session = None


@contextlib.contextmanager
def _buffers_kept(model: Callable) -> Iterator[None]:
    buffers = list(model.buffers()) if isinstance(model, torch.nn.Module) else []
    kept = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, old in zip(buffers, kept):
                buffer.copy_(old)


def warmup(model: Callable, *examples: Any) -> int:
    """Runs the model once for each example, so that no Triton kernel is compiled later for their shapes and dtypes.

    Call it before a CUDA-graph capture. Buffers (running statistics) are as before afterwards. Gradients are recorded
    as the grad mode says, not run: for a backward, pass a function that runs one.

    Args:
        model: a module or any function.
        examples: one for each shape: a tensor, or a tuple of arguments.
    Returns: how many kernels were compiled, or loaded from Triton's cache on disk; 0 says that all were there.
    Raises: ValueError without an example; RuntimeError inside a CUDA-graph capture or a trace.
    """
    _refuse_surroundings("warmup")
    if not examples:
        raise ValueError("warmup: examples must have one example at least, got none")
    launch = _launch("warmup") if _triton.why_not() is None else None
    before = launch.compiled if launch else 0
    with _buffers_kept(model):
        for example in examples:
            model(*(example if isinstance(example, tuple) else (example,)))
    devices = {leaf.device for leaf in tree_leaves(examples) if isinstance(leaf, Tensor) and leaf.is_cuda}
    for device in devices:
        torch.cuda.synchronize(device)
    return launch.compiled - before if launch else 0


def _launch(caller: str) -> ModuleType:
    if _triton.why_not() is not None:
        raise RuntimeError(f"{caller}: Triton is not usable: {_triton.why_not()}")
    return _triton.launches()


def _refuse_surroundings(caller: str) -> None:
    if torch.compiler.is_compiling():
        raise RuntimeError(f"{caller}: must be called before torch.compile traces the model, not from inside of it")
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(f"{caller}: must be called before a CUDA-graph capture, not inside of one")
