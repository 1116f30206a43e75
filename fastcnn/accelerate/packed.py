# SPDX-License-Identifier: Apache-2.0
"""The program as the CPU runs it: dense k x k and grouped convolutions on oneDNN with weights in its own blocked order.

ATen reorders such a weight in every call, 9 MB for a 3x3 of 512 channels. The blocked copy serves this machine alone, so
it is made at the first call, is no part of the state_dict, and is made again when a weight changes. 1x1 and depthwise
convolutions stay on kernels of ours. The operators are those that torch.compile's freezing emits; where torch has none,
or oneDNN is switched off, the program runs as it is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, fx

from .buffers import grow
from .plan import plan
from .program import ACTIVATION, CONV, Conv, is_op, shape, tensor_of

_KINDS: dict[str, tuple[str, list[float]]] = {
    "identity": ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
    "hardswish": ("hardswish", []),
    "hardsigmoid": ("hardsigmoid", []),
    "silu": ("swish", []),
    "sigmoid": ("sigmoid", []),
}
_FEW_CHANNELS = 4  # our own kernel reads a picture in NCHW


class Packed(NamedTuple):
    """A program that shares the weights of the one it was made from, and those it holds in another order."""

    program: fx.GraphModule
    weights: list[Tensor]
    versions: list[int]

    def current(self) -> bool:
        """Whether the weights are those that were packed."""
        return [_version(weight) for weight in self.weights] == self.versions


def _version(weight: Tensor) -> int:
    """Changes when the weight is written to; what was made in inference mode has none."""
    return -1 if weight.is_inference() else weight._version


def pack(program: fx.GraphModule) -> Packed:
    """``program`` for this machine's CPU, on the same weights. A weight that is replaced by another object is not noticed."""
    given = [tensor_of(program, node) for node in program.graph.nodes if node.op == "get_attr"]
    planned = plan(program)
    if planned is not None:
        program = planned.program
    onednn = _available()
    chosen = {node for node in program.graph.nodes if onednn and is_op(node, CONV) and _serves(program, Conv.of(node))}
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    tensors: dict[str, Tensor] = {}
    for i, node in enumerate(program.graph.nodes):
        if node in chosen:
            conv = Conv.of(node)
            tensors[f"packed_{i}"] = _reorder(conv, tensor_of(program, conv.weight))
            copied[node] = _call(graph, conv, copied, graph.create_node("get_attr", f"packed_{i}"))
        elif node.op == "output":
            graph.output(fx.map_arg(node.args[0], copied.__getitem__))
        else:
            copied[node] = graph.node_copy(node, copied.__getitem__)
            if node.op == "get_attr":
                tensors[node.target] = tensor_of(program, node)
        if node in copied:
            copied[node].meta = dict(node.meta)
    graph.eliminate_dead_code()
    used = {node.target for node in graph.nodes if node.op == "get_attr"}
    found = _module({name: tensor for name, tensor in tensors.items() if name in used}, graph)
    grow(found)
    return Packed(_bound(found), given, [_version(weight) for weight in given])


def _available() -> bool:
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    )


def _serves(program: fx.GraphModule, conv: Conv) -> bool:
    weight = tensor_of(program, conv.weight)
    if weight is None or weight.dtype != torch.float32 or weight.device.type != "cpu":
        return False
    left, right, top, bottom = conv.padding
    _, per_group, kernel_h, kernel_w = weight.shape
    depthwise = per_group == 1 and conv.groups > 1
    dense = (kernel_h, kernel_w) != (1, 1) or conv.groups > 1
    even = left == right >= 0 and top == bottom >= 0
    return dense and even and not depthwise and per_group * conv.groups > _FEW_CHANNELS


def _reorder(conv: Conv, weight: Tensor) -> Tensor:
    known = shape(conv.x) if "val" in conv.x.meta else ()
    size = [extent if isinstance(extent, int) else 1 for extent in known] or None
    with torch.inference_mode():
        return torch.ops.mkldnn._reorder_convolution_weight(weight.detach().contiguous(), _pads(conv), list(conv.stride),
                                                            list(conv.dilation), conv.groups, size)  # fmt: skip


def _pads(conv: Conv) -> list[int]:
    return [conv.padding[2], conv.padding[0]]


def _call(graph: fx.Graph, conv: Conv, copied: dict[fx.Node, fx.Node], weight: fx.Node) -> fx.Node:
    op = torch.ops.mkldnn._convolution_pointwise
    kind, scalars = _KINDS[conv.activation]
    bias = None if conv.bias is None else copied[conv.bias]
    window = (weight, bias, _pads(conv), list(conv.stride), list(conv.dilation), conv.groups)
    if conv.residual is None:
        return graph.call_function(op.default, (copied[conv.x], *window, kind, scalars, ""))
    unary = kind if kind == "relu" else None  # the only one that torch takes behind a sum
    y = graph.call_function(op.binary, (copied[conv.x], copied[conv.residual], *window, "add", 1.0, unary, [], ""))
    return y if conv.activation in ("identity", "relu") else graph.call_function(ACTIVATION, (y, conv.activation))


def _module(tensors: dict[str, Tensor], graph: fx.Graph) -> fx.GraphModule:
    """The graph on these very tensors, each under one short name."""
    renamed = {name: f"tensor_{i}" for i, name in enumerate(tensors)}
    for node in graph.nodes:
        if node.op == "get_attr":
            node.target = renamed[node.target]
    root = torch.nn.Module()
    for name, tensor in tensors.items():
        object.__setattr__(root, renamed[name], tensor)
    return fx.GraphModule(root, graph)


def _bound(module: fx.GraphModule) -> fx.GraphModule:
    """Tensors as plain attributes: a Module's own look-up of a parameter takes ten times as long, hundreds of times a call."""
    module.recompile()
    for tensors in (module._parameters, module._buffers):
        for name in list(tensors):
            object.__setattr__(module, name, tensors.pop(name))
    return module
