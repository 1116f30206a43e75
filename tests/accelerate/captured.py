# SPDX-License-Identifier: Apache-2.0
"""Small nets as programs, and what a before/after test of a rewrite asks of them."""

from collections import Counter
from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from fastcnn.accelerate.capture import capture
from fastcnn.accelerate.program import Notes, sweep
from fastcnn.accelerate.rewrites.normalise import normalise

Rewrite = Callable[[fx.GraphModule, Notes], int]


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def disturbed(net: nn.Module) -> nn.Module:
    """In eval and fp64, with statistics and affine terms that hide no mistake."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
            for parameter in module.parameters():
                nn.init.normal_(parameter)
    return net.double().eval()


def rewritten(net: nn.Module, x: Tensor, *rewrites: Rewrite) -> tuple[fx.GraphModule, list[int], Counter]:
    """``net`` captured, normalised and rewritten; how often each rewrite applied; what stands.

    Fails where the program does not compute what ``net`` does, for the batch of ``x`` and for others.
    """
    net = disturbed(deepcopy(net))
    program = capture(net, (x.double(),)).program
    normalise(program, Notes())
    counts = [rewrite(program, Notes()) for rewrite in rewrites]
    sweep(program)
    for batch in (1, 2, 3):
        pixels = torch.randn(batch, *x.shape[1:], dtype=torch.float64)
        with torch.no_grad():
            wanted, got = tree_leaves(net(pixels.clone())), tree_leaves(program(pixels.clone()))
        assert len(wanted) == len(got)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    return program, counts, operators(program)


def operators(program: fx.GraphModule) -> Counter:
    """The calls of a program by name, without namespace and overload."""
    return Counter(str(node.target).split(".")[1] for node in program.graph.nodes if hasattr(node.target, "_schema"))


def reasons(program: fx.GraphModule) -> list[str]:
    """Why nodes were left."""
    return [node.meta["left"] for node in program.graph.nodes if "left" in node.meta]
