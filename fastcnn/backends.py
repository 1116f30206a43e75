# SPDX-License-Identifier: Apache-2.0
"""Which backend serves a call, and how to ask for another: for tests, comparisons and bug reports."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves

from . import _dispatch, _library, _triton, ops
from ._library import CPU, CUDA, NAMESPACE, SCHEMAS
from .ops._checks import ACTIVATIONS, pair
from .ops._register import REFERENCES, overload

_TORCH_OPS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)


class Backend(NamedTuple):
    """What explain and use_backend ask of a backend."""

    missing: Callable[[], str | None]  # why it is not on this machine
    at_home: Callable[[torch.device], bool]
    has: Callable[[str], bool]  # a kernel for the op
    kernel: Callable[[torch._ops.OpOverload], Callable]  # what use_backend calls
    detail: Callable[[Tensor], str]


BACKENDS = {
    "cuda": Backend(
        lambda: CUDA.reason,
        lambda device: device.type == "cuda",
        lambda op: op not in _triton.REGISTERED and _library.has_kernel(op, "CUDA"),
        lambda op: _dispatch.compiled(op),
        lambda x: "compiled kernel",
    ),
    "triton": Backend(
        lambda: _triton.why_not(),
        lambda device: _triton.runs_on(device),
        lambda op: op in _triton.OPS,
        lambda op: _triton.launcher(_name_of(op)),
        lambda x: f"Triton {_triton.version()}",
    ),
    "cpu": Backend(
        lambda: CPU.reason,
        lambda device: device.type == "cpu",
        lambda op: _library.has_kernel(op, "CPU"),
        lambda op: op,
        lambda x: "plain, the build that has float64" if x.dtype is torch.float64 else str(_library.isa_active()),
    ),
    "reference": Backend(
        lambda: None,
        lambda device: True,
        lambda op: True,
        lambda op: REFERENCES[op],
        lambda x: f"plain torch on {x.device.type}",
    ),
}


class BackendUnavailable(RuntimeError):
    """The backend asked for cannot serve: not built, not installed, or not for this op or device."""


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` found. ``rejected`` has every other backend with the reason it does not serve the call."""

    op: str
    backend: str | None  # None where the call is refused, with the reason in ``detail``
    detail: str
    rejected: dict[str, str]

    def __str__(self) -> str:
        return "\n".join(
            [
                f"{self.op}: {self.backend or 'refused'} ({self.detail})",
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
    found = _arguments(op, name, args, kwargs)
    if found.get("training") and not isinstance(op, _TORCH_OPS):
        name = f"{name}_train"
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
    if reasons["cuda"] is None:
        choice = _dispatch.choose(name, _dispatch.arch_of(x.device.index), _asked(name, found))
        if choice.backend is None:
            return Explanation(name, None, choice.why, dict.fromkeys(BACKENDS, "the call is refused"))
        others = [backend for backend in BACKENDS if backend != choice.backend]
        rejected = {b: reasons[b] or f"{choice.backend} comes first: {choice.why}" for b in others}
        return Explanation(name, choice.backend, f"{BACKENDS[choice.backend].detail(x)}: {choice.why}", rejected)
    chosen = next(backend for backend, reason in reasons.items() if reason is None)
    return Explanation(
        name,
        chosen,
        BACKENDS[chosen].detail(x),
        {b: reason or f"{chosen} comes first" for b, reason in reasons.items() if b != chosen},
    )


def _arguments(op: str | Callable, name: str, args: tuple, kwargs: dict) -> dict[str, Any]:
    """By name, of a call of the page or of the op; empty when they do not fit, which the call itself will say."""
    if isinstance(op, _TORCH_OPS) or not hasattr(ops, name):
        return dict(zip((argument.name for argument in overload(name)._schema.arguments), args)) | kwargs
    try:
        bound = inspect.signature(op if callable(op) else getattr(ops, name)).bind_partial(*args, **kwargs)
    except TypeError:
        return {}
    bound.apply_defaults()
    return bound.arguments


def _asked(name: str, found: dict[str, Any]) -> list[Any]:
    """The arguments that the op's rule asks for."""
    names = _dispatch.RULES[name].names
    missing = [argument for argument in names if found.get(argument) is None]
    if missing:
        raise ValueError(f"explain: {name} must be given {' and '.join(missing)}, which decide what serves it")
    return [pair(name, "stride", found["stride"], 1) if a == "stride" else found[a] for a in names]


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
        reason = BACKENDS[backend].missing()
        if reason is not None:
            raise BackendUnavailable(f"use_backend: {backend} is not available: {reason}")
        self.backend = backend

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace != NAMESPACE:
            return func(*args, **kwargs)
        name = _name_of(func)
        x = next(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        reason = _why_not(self.backend, name, x.device)
        if reason is not None:
            raise BackendUnavailable(f"{name}: {self.backend} does not serve this call: {reason}")
        return BACKENDS[self.backend].kernel(func)(*args, **kwargs)


def _why_not(name: str, op: str, device: torch.device) -> str | None:
    backend = BACKENDS[name]
    if not backend.at_home(device):
        return f"x is on {device.type}"
    return backend.missing() or (None if backend.has(op) else f"it has no kernel for {op}")


def _name_of(op: torch._ops.OpOverload) -> str:
    return op._schema.name.split("::")[1]


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
