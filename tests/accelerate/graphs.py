# SPDX-License-Identifier: Apache-2.0
"""The graph of a small net before and after a rewrite, and what a test asserts of both."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable
from copy import deepcopy

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from fastcnn.accelerate.capture import capture
from fastcnn.accelerate.program import ACTIVATION, Notes, aten, sweep
from fastcnn.accelerate.rewrites.normalise import normalise
from tests.accelerate.captured import Rewrite, disturbed


class Function(nn.Module):
    """A function of one or more tensors as a module."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


class Each(nn.Module):
    """Each of these modules or functions, of the same inputs: many spellings in one graph, which is captured once."""

    def __init__(self, each: Iterable[nn.Module | Callable]) -> None:
        super().__init__()
        self.each = nn.ModuleList(one if isinstance(one, nn.Module) else Function(one) for one in each)

    def forward(self, *inputs: Tensor) -> tuple:
        return tuple(one(*inputs) for one in self.each)


def dialect(module: nn.Module, *example: Tensor) -> fx.GraphModule:
    """``module`` as the rewrites see it."""
    program = capture(module, example).program
    normalise(program, Notes())
    return program


def ops(program: fx.GraphModule) -> Counter:
    """How often each operator stands in the graph: ``conv_bn_act``, ``aten.mul`` ..., an activation by its kind."""
    found: Counter = Counter()
    for node in program.graph.nodes:
        if node.op != "call_function" or node.target in (operator.getitem, aten.sym_size.int):
            continue
        if node.target is ACTIVATION:
            found[node.args[1]] += 1
        elif isinstance(node.target, torch._ops.OpOverload):
            space, _, name = node.target._schema.name.partition("::")
            found[name if space == "fastcnn" else f"aten.{name}"] += 1
        else:
            found[node.target.__name__] += 1
    return found


def reasons(program: fx.GraphModule) -> str:
    """Why nodes were left, a line each."""
    return "\n".join(node.meta["left"] for node in program.graph.nodes if "left" in node.meta)


def assert_equal(program: fx.GraphModule, module: nn.Module, *example: Tensor) -> None:
    """In fp64 to 1e-12 of the largest value, for the example's batch and others; every node knows its shape."""
    program.graph.lint()
    for batch in (len(example[0]), 5, 1):
        generator = torch.Generator().manual_seed(batch)
        inputs = [3 * torch.randn(batch, *each.shape[1:], dtype=each.dtype, generator=generator) for each in example]
        with torch.no_grad():
            wanted, got = tree_leaves(module(*inputs)), tree_leaves(program(*inputs))
        assert len(wanted) == len(got)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12 * float(b.abs().max()))
    assert all("val" in node.meta for node in program.graph.nodes if node.op == "call_function")


def check(rewrite: Rewrite, module: nn.Module | Callable, *example: Tensor, count: int, present: dict[str, int],
          absent: tuple[str, ...] = (), prepare: tuple[Rewrite, ...] = ()) -> fx.GraphModule:  # fmt: skip
    """The graph of ``module`` after ``prepare`` and ``rewrite``.

    ``rewrite`` replaces ``count`` patterns, and none when it runs again; ``present`` stands afterwards as often as said,
    ``absent`` does not, and the values are the module's. With a count of 0 the graph stays as it was.
    """
    module = disturbed(deepcopy(module if isinstance(module, nn.Module) else Function(module)))
    example = tuple(each.double() for each in example)
    program = dialect(module, *example)
    for each in prepare:
        each(program, Notes())
    before = ops(program)
    assert rewrite(program, Notes()) == count
    sweep(program)
    found = ops(program)
    assert {name: found[name] for name in present} == present
    assert [name for name in absent if found[name]] == []
    if count == 0:
        assert found == before
    assert_equal(program, module, *example)
    assert rewrite(program, Notes()) == 0, "a second run must find nothing"
    return program
