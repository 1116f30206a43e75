# SPDX-License-Identifier: Apache-2.0
"""Calls of the emulated gradients of depthwise_conv2d on CPU tensors, and what float64 says of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcnn.testing import assert_close_fp64, assert_format
from tests.emulator.depthwise import ACTIVATIONS, Problem, padding_of

WANTED = ("x", "weight", "bias")


def geometry(made: Problem) -> tuple:
    case = made.case
    sizes = [case.N, case.C, case.H, case.W, case.out, *case.kernel]
    return sizes, case.stride, padding_of(case), case.dilation, made.channels_last


def addresses(*tensors: Tensor | None) -> list[int]:
    return [0 if t is None else t.data_ptr() for t in tensors]


def gradient_of_z(kernels: ModuleType, made: Problem, grad: Tensor, out: Tensor | None = None) -> Tensor:
    out = made.output() if out is None else out
    inputs = addresses(made.x, made.weight, made.shift, made.residual, grad)
    kind = list(ACTIVATIONS).index(made.activation)
    kernels.gradient_of_z(str(made.x.dtype), inputs, out.data_ptr(), *geometry(made), kind)
    return out


def exact_gradient_of_z(made: Problem, grad: Tensor) -> tuple[Tensor, Tensor]:
    """(grad * act'(z), what an error of z relative to its magnitude can do to it), in float64."""
    z, magnitude = made._replace(activation="identity").exact()
    z.requires_grad_()
    (found,) = torch.autograd.grad(ACTIVATIONS[made.activation](z), z, grad.double())
    # no slope changes faster than its argument, and what it is summed of is as large as 1
    return found, (1 + magnitude) * grad.double().abs()


def results(made: Problem, wanted: Sequence[str] = WANTED, partials: int = 0) -> dict[str, Tensor]:
    """NaN in the shapes and layouts of the gradients; of the partial sums too."""
    accumulator = torch.float64 if made.x.dtype is torch.float64 else torch.float32
    fresh = {
        "x": torch.empty_like(made.x),
        "weight": torch.empty_like(made.weight),
        "bias": torch.empty(made.case.out, dtype=accumulator),
    }
    found = {name: fresh[name] for name in wanted} | {"partials": torch.empty(partials, dtype=accumulator)}
    return {name: t.fill_(float("nan")) for name, t in found.items()}


def partials(kernels: ModuleType, made: Problem, wanted: Sequence[str] = WANTED) -> int:
    return kernels.partials(str(made.x.dtype), *geometry(made), "weight" in wanted, "bias" in wanted)


def backward(
    kernels: ModuleType,
    made: Problem,
    grad: Tensor,
    wanted: Sequence[str] = WANTED,
    prepare: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda found: found,
    tile_only: bool = False,
) -> dict[str, Tensor]:
    found = prepare(results(made, wanted, partials(kernels, made, wanted)))
    kernels.backward(
        str(made.x.dtype), addresses(grad, made.x, made.weight), addresses(*(found.get(name) for name in WANTED)),
        found["partials"].data_ptr(), *geometry(made), tile_only,
    )  # fmt: skip
    return found


def exact_backward(made: Problem, grad: Tensor) -> dict[str, tuple[Tensor, Tensor, int]]:
    """By name: (gradient, the same sum over magnitudes, how many products it sums), in float64."""
    case, padding = made.case, padding_of(made.case)

    def gradients(of: Callable[[Tensor], Tensor]) -> list[Tensor]:
        x, weight = of(made.x).requires_grad_(), of(made.weight).requires_grad_()
        bias = torch.zeros(case.out, dtype=torch.float64, requires_grad=True)
        z = F.conv2d(F.pad(x, padding), weight, bias, case.stride, 0, case.dilation, case.C)
        return torch.autograd.grad(z, (x, weight, bias), of(grad))

    terms = grad.numel() // case.out
    counts = (case.reduction * case.out // case.C, terms, terms)
    both = zip(gradients(lambda t: t.double()), gradients(lambda t: t.double().abs()), counts)
    return dict(zip(WANTED, both))


def check(kernels: ModuleType, made: Problem, grad: Tensor, wanted: Sequence[str] = WANTED) -> dict[str, Tensor]:
    found, exact = backward(kernels, made, grad, wanted), exact_backward(made, grad)
    for name in wanted:
        gradient, magnitude, terms = exact[name]
        assert_close_fp64(
            found[name], gradient, reduction=terms, magnitude=magnitude, label=f"{made.case.name}: grad of {name}"
        )
    if "x" in wanted:
        assert_format(found["x"], made.x, "grad of x")
    return found
