# SPDX-License-Identifier: Apache-2.0
"""A program at one size of its inputs: the shape of every result, and what it computes of sizes as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

_BATCHES = (37, 41)  # what differs between the two depends on the batch


def _binary(a: Tensor, b: Tensor | float) -> Tensor:
    return a.new_empty(torch.broadcast_shapes(a.shape, b.shape)) if isinstance(b, Tensor) else torch.empty_like(a)


def _cat(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    extents = list(parts[0].shape)
    extents[dim] = sum(part.shape[dim] for part in parts)
    return parts[0].new_empty(extents)


# Of these torch's own shape functions import its compiler first, half a second: a load and a first call take less.
_SHAPES = {
    torch.ops.aten.add.Tensor: _binary,
    torch.ops.aten.mul.Tensor: _binary,
    torch.ops.aten.cat.default: _cat,
    torch.ops.aten.linear.default: lambda x, weight, bias=None: x.new_empty((*x.shape[:-1], weight.shape[0])),
}


def at_sizes(
    program: fx.GraphModule, shapes: Sequence[Sequence[int | None]], dtypes: Sequence[torch.dtype]
) -> fx.GraphModule:
    """A copy on the same weights, with ``meta["val"]`` on every result whose shape behind the first extent is fixed.

    Args:
        shapes: of the inputs; a first extent of None is a batch that may change.
        dtypes: of the inputs.
    Raises: what an operator raises of a size that it cannot take.
    """
    fixed = all(shape[0] is not None for shape in shapes if shape)
    runs = {batch: _propagate(program, shapes, dtypes, batch) for batch in (_BATCHES[:1] if fixed else _BATCHES)}
    graph = fx.Graph()
    copied: dict[fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "output":
            graph.output(fx.map_arg(node.args[0], copied.__getitem__))
            continue
        values = [run[node] for run in runs.values()]
        if all(type(each) in (int, bool) for each in values) and len(set(values)) == 1:
            copied[node] = values[0]
            continue
        copied[node] = graph.node_copy(node, copied.__getitem__)
        copied[node].meta = {key: each for key, each in node.meta.items() if key != "val"}
        if len({_image(run[node], batch) for batch, run in runs.items()}) == 1:
            copied[node].meta["val"] = values[0]
    return fx.GraphModule(program, graph)


def _image(value: Any, batch: int) -> Any:
    """The shape of an image of it."""
    if isinstance(value, Tensor):
        return (value.shape[:1] == (batch,), *value.shape[1:])
    return tuple(_image(each, batch) for each in value) if isinstance(value, (list, tuple)) else type(value)


def _propagate(
    program: fx.GraphModule, shapes: Sequence[Sequence[int | None]], dtypes: Sequence[torch.dtype], batch: int
) -> dict[fx.Node, Any]:
    values = _Values(program)
    with torch.no_grad():
        values.run(*(
            torch.empty([batch if extent is None else extent for extent in shape], dtype=dtype, device="meta")
            for shape, dtype in zip(shapes, dtypes, strict=True)
        ))  # fmt: skip
    return values.found


class _Values(fx.Interpreter):
    """Runs a program on the meta device: 2 to 5 times as fast as fake tensors."""

    def __init__(self, program: fx.GraphModule) -> None:
        super().__init__(program)
        self.found: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        found = self.found[n] = super().run_node(n)
        return found

    def get_attr(self, target: str, args: tuple, kwargs: dict) -> Any:
        found = super().get_attr(target, args, kwargs)
        return found.detach().to("meta") if isinstance(found, Tensor) else found

    def call_function(self, target: Any, args: tuple, kwargs: dict) -> Any:
        if target in _SHAPES and len({each.dtype for each in tree_leaves(args) if isinstance(each, Tensor)}) == 1:
            return _SHAPES[target](*args)
        return super().call_function(target, args, kwargs | {"device": "meta"} if "device" in kwargs else kwargs)
