# SPDX-License-Identifier: Apache-2.0
"""One call of an op under Triton, with its gradients, against the same in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import fastcnn
from fastcnn.testing import arrange, assert_close_fp64, assert_format

HALF_AND_SINGLE = (torch.float32, torch.float16)


def draw(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, dtype=torch.float64) * scale).to(dtype)


def compare(label: str, op: Callable[..., Tensor], exact: Callable[..., Tensor], inputs: dict[str, Tensor],
            layout: str = "nchw", reduction: int = 1, fixed: dict[str, Tensor] | None = None) -> None:  # fmt: skip
    """``op(**inputs, **fixed)`` and its gradient for every input, the first of which gives the memory format."""
    fixed = fixed or {}

    def run(function: Callable[..., Tensor], values: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        y = function(**values)
        if grads.get("y") is None:
            grads["y"] = torch.randn(y.shape, dtype=torch.float64).to(next(iter(inputs.values())).dtype)
        grad = grads["y"].double() if y.dtype is torch.float64 else arrange(grads["y"], layout)
        found = torch.autograd.grad(y, [values[name] for name in inputs], grad)
        return {"result": y, **{f"gradient of {name}": g for name, g in zip(inputs, found)}}, y

    grads: dict[str, Tensor] = {}
    every = {**inputs, **fixed}
    leaves = {
        n: arrange(v, layout if v.dim() == 4 else "nchw").detach().requires_grad_(n in inputs) for n, v in every.items()
    }
    wanted, _ = run(exact, {n: v.detach().double().requires_grad_(n in inputs) for n, v in every.items()})
    with fastcnn.use_backend("triton"):
        got, y = run(op, leaves)
    with fastcnn.use_backend("reference"):
        rival, _ = run(op, leaves)
    x = next(iter(leaves.values()))
    assert_format(y, x, label)
    for name, value in got.items():
        assert value.dtype is rival[name].dtype, f"{label}: {name}"
        if name != "result":  # the strides of gradients are those of the fakes, which the references share
            strides = f"{value.stride()}, not {rival[name].stride()}"
            assert value.stride() == rival[name].stride(), f"{label}: {name}: strides {strides}"
        assert_close_fp64(
            value, wanted[name].detach(), reduction=reduction, rival=rival[name], label=f"{label}: {name}"
        )
