# SPDX-License-Identifier: Apache-2.0
"""Which backend serves a call, and how to ask for another: for tests, comparisons and bug reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves

from . import _library, _triton
from ._library import CPU, CUDA, NAMESPACE, SCHEMAS
from .ops._checks import ACTIVATIONS
from .ops._register import REFERENCES

BACKENDS = ("cuda", "triton", "cpu", "reference")


class BackendUnavailable(RuntimeError):
    """The backend asked for cannot serve: not built, not installed, or not for this op or device."""


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` found. ``rejected`` has every other backend with the reason it does not serve the call."""

    op: str
    backend: str
    detail: str
    rejected: dict[str, str]

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{self.op}: {self.backend} ({self.detail})",
                *(f"  not {name}: {why}" for name, why in self.rejected.items()),
            ]
        )


def explain(op: str | Callable, *args: Any, **kwargs: Any) -> Explanation:
    """The backend that would serve this call, and why each other one would not. The op is not run.

    Args:
        op: a function of ``fastcnn.ops``, one of ``torch.ops.fastcnn``, or its name.
        args, kwargs: those of the call; the tensors among them tell the device and dtype.
    Raises: ValueError for an op that is not fastcnn's, or a call without a tensor.

    >>> print(fastcnn.explain("hardswish", torch.ones(1, device="meta")).backend)
    fake
    """
    name = _op_name(op)
    x = next((leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)), None)
    if x is None:
        raise ValueError(f"explain: {name} must be given the arguments of the call, one tensor at least")
    if x.device.type == "meta":
        return Explanation(
            name, "fake", "meta tensors have a shape and no data", dict.fromkeys(BACKENDS, "x is on meta")
        )
    forced = next(
        (mode.backend for mode in reversed(_get_current_dispatch_mode_stack()) if isinstance(mode, use_backend)), None
    )
    if forced is not None:
        return Explanation(
            name, forced, "use_backend", {b: f"use_backend({forced!r}) is active" for b in BACKENDS if b != forced}
        )
    reasons = {backend: _why_not(backend, name, x.device) for backend in BACKENDS}
    if x.device.type == "cpu":
        reasons["triton"] = reasons["triton"] or "on the CPU its interpreter runs under use_backend('triton') only"
    chosen = next(backend for backend, reason in reasons.items() if reason is None)
    return Explanation(
        name,
        chosen,
        _detail(chosen, x),
        {b: reason or f"{chosen} comes first" for b, reason in reasons.items() if b != chosen},
    )


class use_backend(TorchDispatchMode):
    """Sends every fastcnn op inside the ``with`` block to one backend; gradients and autocast work as ever.

    Args:
        backend: "cuda", "triton", "cpu" or "reference" (plain torch, on any device).
    Raises: ValueError for another name; BackendUnavailable here when the backend is not on this machine, and at the
        call when it has no kernel for that op or device.

    >>> with fastcnn.use_backend("reference"):
    ...     fastcnn.ops.hardswish(torch.tensor([3.])).tolist()
    [3.0]
    """

    def __init__(self, backend: str) -> None:
        super().__init__()
        if backend not in BACKENDS:
            raise ValueError(f"use_backend: backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        reason = _missing(backend)
        if reason is not None:
            raise BackendUnavailable(f"use_backend: {backend} is not available: {reason}")
        self.backend = backend

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace != NAMESPACE:
            return func(*args, **kwargs)
        if self.backend == "reference":
            return REFERENCES[func](*args, **kwargs)
        name = func._schema.name.split("::")[1]
        x = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        reason = _why_not(self.backend, name, x.device)
        if reason is not None:
            raise BackendUnavailable(f"{name}: {self.backend} does not serve this call: {reason}")
        return _triton.launcher(name)(*args, **kwargs) if self.backend == "triton" else func(*args, **kwargs)


def _missing(backend: str) -> str | None:
    """Why the backend is not on this machine at all."""
    if backend == "triton":
        return _triton.why_not()
    return {"cpu": CPU, "cuda": CUDA}[backend].reason if backend in ("cpu", "cuda") else None


def _why_not(backend: str, op: str, device: torch.device) -> str | None:
    if backend == "reference":
        return None
    at_home = _triton.runs_on(device) if backend == "triton" else device.type == backend
    if not at_home:
        return f"x is on {device.type}"
    reason = _missing(backend)
    if reason is not None:
        return reason
    known = op in _triton.OPS if backend == "triton" else _library.has_kernel(op, backend.upper())
    return None if known else f"it has no kernel for {op}"


def _detail(backend: str, x: Tensor) -> str:
    if backend == "cpu":
        return "plain, the build that has float64" if x.dtype is torch.float64 else str(_library.isa_active())
    return {
        "cuda": "compiled kernel",
        "triton": f"Triton {_triton.version()}",
        "reference": f"plain torch on {x.device.type}",
    }[backend]


def _op_name(op: str | Callable) -> str:
    names: Iterator[str] = iter(
        [op] if isinstance(op, str) else [getattr(op, "__name__", ""), getattr(op, "_opname", "")]
    )
    for name in (n.removesuffix(".default") for n in names):
        if name in SCHEMAS:
            return name
        if name in ACTIVATIONS:  # relu, silu, ... are the op `activation`
            return "activation"
    raise ValueError(f"explain: op must be one of {', '.join(SCHEMAS)}, got {op!r}")
