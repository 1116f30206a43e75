# SPDX-License-Identifier: Apache-2.0
"""Small nets as plans: what each becomes, held against float64 and read step by step."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastcnn.accelerate.api import rewrite
from fastcnn.accelerate.capture import capture
from fastcnn.accelerate.plan import Blob, Planned, lanes, plan
from fastcnn.testing import assert_close_fp64


class Net(nn.Module):
    """Layers by name, and ``compute(net, x)``."""

    def __init__(self, compute: Callable[[Net, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.compute = compute
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


def conv(C: int, O: int, kernel: int = 1, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(C, O, kernel, stride, kernel // 2), nn.ReLU())


def planned(net: nn.Module, shape: tuple[int, ...]) -> Planned:
    """The plans of ``net``, after its results for batches of 1 and 3 have been compared with float64."""
    net = net.eval()
    with torch.no_grad():
        program = capture(net, (torch.randn(2, *shape),), False).program
        rewrite(program, None, "cpu")
    found = plan(program, Blob(lanes()))
    exact = copy.deepcopy(net).double()
    for images in (1, 3):
        x = torch.randn(images, *shape)
        with torch.no_grad():
            for got, wanted, rival in zip(found.program(x), _tuple(exact(x.double())), _tuple(net(x)), strict=True):
                assert_close_fp64(got, wanted, reduction=1024, rival=rival)
    return found


def _tuple(results: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


def names(found: Planned) -> list[str]:
    """Of the steps of the only plan, in order."""
    (only,) = found.plans
    return [note.name for note in only.notes]
