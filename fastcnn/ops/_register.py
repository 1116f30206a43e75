# SPDX-License-Identifier: Apache-2.0
"""How an op page ties its pieces to the dispatcher: reference, fake, FLOP formula, autograd, autocast."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._library import LIB, NAMESPACE
from ._flops import register_flops

REFERENCES: dict[torch._ops.OpOverload, Callable] = {}
INFERENCE_ONLY: set[str] = set()  # ops without a backward
_AUTOCAST_KEYS = (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA"))


def overload(name: str) -> torch._ops.OpOverload:
    """``torch.ops.fastcnn.<name>.default``: calling the overload saves the packet's look-up."""
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def register(name: str, reference: Callable, fake: Callable, flops: Callable | None = None) -> torch._ops.OpOverload:
    """Gives the op its plain-torch kernel for every device without a compiled one, its shape function and its FLOP count; returns the op.

    ``flops`` takes the op's arguments with every tensor replaced by its shape, and ``out_shape=``; one multiply-add counts as 2.
    """
    op = overload(name)
    LIB.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(op, _on_one_device(op, fake), lib=LIB)
    if flops is not None:
        register_flops(op.overloadpacket, flops)
    REFERENCES[op] = reference
    return op


def _on_one_device(op: torch._ops.OpOverload, fake: Callable) -> Callable:
    """A meta tensor beside real ones reaches the fake, whose empty result would pass for data."""

    @functools.wraps(fake)
    def checked(*arguments: Any) -> Any:
        devices = {value.device for value in arguments if isinstance(value, Tensor)}
        if len(devices) > 1:
            raise RuntimeError(f"{op.name()}: every tensor must be on one device, got {', '.join(sorted(map(str, devices)))}")
        return fake(*arguments)

    return checked


def register_autograd(op: torch._ops.OpOverload, backward: Callable, differentiable: Callable, *, outputs: Sequence[int] = (),
                      drop: Callable[..., Sequence[int]] = lambda *inputs: ()) -> None:
    """Ties the forward op to its backward.

    Args:
        backward: ``backward(needs, inputs, outputs, grads)`` -> one gradient or None per input. ``needs`` are the inputs' needs_input_grad,
            ``inputs`` the op's arguments (a dropped tensor is None), ``outputs`` the kept outputs, ``grads`` one per output (None when unused).
        differentiable: the op in plain torch, ``differentiable(*inputs)`` -> output or tuple. It serves ``create_graph=True``: second and higher
            derivatives go through it, so they are right, if slow.
        outputs: positions of the outputs that the backward wants kept.
        drop: ``drop(*inputs)`` -> positions of tensor inputs whose values the backward does not read; they are not kept alive.
    """

    def setup(ctx: Any, inputs: tuple, output: Any) -> None:
        dropped = drop(*inputs)
        ctx.slots = [i for i, value in enumerate(inputs) if isinstance(value, Tensor) and i not in dropped]
        ctx.constants = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.dropped_like = [(i, inputs[i].shape, inputs[i].dtype, inputs[i].device) for i in dropped if inputs[i] is not None]
        results = output if isinstance(output, tuple) else (output,)
        ctx.save_for_backward(*(inputs[i] for i in ctx.slots), *(results[i] for i in outputs))
        ctx.mark_non_differentiable(*results[1:])  # saved statistics: only the first output has a gradient
        ctx.set_materialize_grads(False)

    def run(ctx: Any, *grads: Tensor | None) -> tuple:
        arguments = list(ctx.constants)
        saved = ctx.saved_tensors
        for slot, value in zip(ctx.slots, saved):
            arguments[slot] = value
        if torch.is_grad_enabled():
            for slot, shape, dtype, device in ctx.dropped_like:  # its gradient does not depend on its value
                arguments[slot] = torch.zeros(shape, dtype=dtype, device=device, requires_grad=True)
            return _differentiate(differentiable, ctx.needs_input_grad, arguments, grads)
        if all(grad is None for grad in grads):
            return (None,) * len(arguments)
        return tuple(backward(ctx.needs_input_grad, arguments, saved[len(ctx.slots):], grads))

    torch.library.register_autograd(op, run, setup_context=setup, lib=LIB)


def _differentiate(function: Callable, needs: Sequence[bool], arguments: list, grads: Sequence[Tensor | None]) -> tuple:
    # a view per argument, so that a tensor passed twice gets a gradient per place
    arguments = [value.view_as(value) if isinstance(value, Tensor) else value for value in arguments]
    results = function(*arguments)
    results = results if isinstance(results, tuple) else (results,)
    used = [(result, grad) for result, grad in zip(results, grads) if grad is not None and result.requires_grad]
    wanted = [i for i, need in enumerate(needs) if need and isinstance(arguments[i], Tensor)]
    found: list[Tensor | None] = [None] * len(arguments)
    if used and wanted:
        gradients = torch.autograd.grad([r for r, _ in used], [arguments[i] for i in wanted], [g for _, g in used], create_graph=True,
                                        allow_unused=True)
        for i, gradient in zip(wanted, gradients):
            found[i] = gradient
    return tuple(found)


def no_double_backward(op: torch._ops.OpOverload) -> None:
    """A backward op called directly under grad mode: a named error instead of a silent missing gradient."""

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(f"{op.name()}: has no derivative of its own; differentiate the forward op twice instead (create_graph=True)")

    torch.library.register_autograd(op, refuse, lib=LIB)


def inference_only(op: torch._ops.OpOverload, instead: str) -> None:
    """An op without a backward: asking for a gradient through it is an error that says what to call ``instead``."""
    name = op._schema.name.split("::")[1]
    INFERENCE_ONLY.add(name)

    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(f"{name}: is for inference only and has no gradient; for training use {instead}")

    torch.library.register_autograd(op, refuse, lib=LIB)


def register_autocast(op: torch._ops.OpOverload, cast: Sequence[int]) -> None:
    """Under autocast, casts the tensor arguments at these positions to the autocast dtype and leaves every other (BN vectors) as it is."""

    def implementation(device: str, key: str) -> Callable:
        exclude = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def run(*arguments: Any) -> Any:
            dtype = torch.get_autocast_dtype(device)
            lowered = [value.to(dtype) if i in cast and _is_castable(value) else value for i, value in enumerate(arguments)]
            with torch._C._ExcludeDispatchKeyGuard(exclude):
                return op(*lowered)

        return run

    for device, key in _AUTOCAST_KEYS:
        LIB.impl(op._schema.name.split("::")[1], implementation(device, key), key)


def _is_castable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dtype is not torch.float64
