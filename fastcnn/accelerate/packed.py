# SPDX-License-Identifier: Apache-2.0
"""The program as the CPU runs it: plans, and between them convolutions on oneDNN with weights in its own order.

Both hold the weights in an order that serves this machine alone, so that is made at the first call, is no part of the
state_dict, and is made again when a weight changes. A plan is for one size of the image: where sizes may change, each has
its own, made at the first call of that size, on weights that are packed once.

What no plan serves runs on the operators. ATen reorders the weight of a dense k x k or grouped convolution in every call,
9 MB for a 3x3 of 512 channels; the operators that torch.compile's freezing emits take a reordered one. 1x1 and depthwise
convolutions stay on kernels of ours. Where torch has no such operators, or oneDNN is switched off, the program stays.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from .buffers import grow
from .plan import AVAILABLE, Blob, BlobFull, Planned, at_sizes, lanes, plan
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
SIZES = 8  # of the image, of which plans are kept

Shapes = tuple[tuple[int | None, ...], ...]  # of the inputs; a first extent of None is a batch that may change


@dataclass
class Form:
    """What runs for one size of the inputs. ``reason``: why there are no plans; ``planned`` is None then.

    ``source`` is what it was made from, with the shapes of this size where they are known.
    """

    program: fx.GraphModule
    source: fx.GraphModule
    planned: Planned | None
    reason: str | None
    used: int = 0


class Packed:
    """The forms of a program, which share its weights and those packed from them.

    A weight that is replaced by another object is not noticed; one that is written to is, by :meth:`current`.

    Args:
        dtypes: of the inputs.
        reason: why nothing is to be planned, or None.
        grows: the size of the inputs may change.
    """

    def __init__(self, program: fx.GraphModule, dtypes: Sequence[torch.dtype], reason: str | None = None,
                 grows: bool = False) -> None:  # fmt: skip
        self.source = program
        self._dtypes = dtypes
        self.weights = [tensor_of(program, node) for node in program.graph.nodes if node.op == "get_attr"]
        self._versions = [_version(weight) for weight in self.weights]
        self._reason = reason if AVAILABLE else "no compiled CPU library"
        self._grows = grows
        self._blob = self._new_blob()
        self._forms: dict[tuple, Form] = {}
        self._lock = threading.Lock()
        self._clock = itertools.count(1)

    def current(self) -> bool:
        """Whether the weights are those that were packed."""
        return [_version(weight) for weight in self.weights] == self._versions

    def at(self, shapes: Shapes) -> Form:
        """The form for inputs of these shapes, made here when needed."""
        form = self._forms.get(shapes)
        if form is None:
            with self._lock:
                form = self._forms.get(shapes) or self._make(shapes)
                form.used = next(self._clock)
                self._forms[shapes] = form
                if len(self._forms) > SIZES:
                    del self._forms[min(self._forms, key=lambda each: self._forms[each].used)]
        form.used = next(self._clock)
        return form

    def latest(self) -> Form | None:
        """The one that was used last."""
        return max(list(self._forms.values()), key=lambda form: form.used, default=None)

    def bytes(self) -> int:
        """Of the weights packed for plans."""
        return 4 * self._blob.size

    def _make(self, shapes: Shapes) -> Form:
        program = self.source
        if self._reason is not None:
            return Form(_reordered(program), program, None, self._reason)
        if self._grows or not _knows_shapes(program, self._dtypes):
            try:
                program = at_sizes(program, shapes, self._dtypes)
            except Exception as error:  # noqa: BLE001  (the operators run, and refuse what they cannot take in their words)
                why = str(error).partition("\n")[0][:200]
                reason = f"the shapes in it cannot be told: {type(error).__name__}: {why}"
                return Form(_reordered(program), program, None, reason)
        try:
            planned = plan(program, self._blob)
        except BlobFull:
            self._blob = self._new_blob()
            self._forms = {}
            planned = plan(program, self._blob)
        return Form(_reordered(planned.program), program, planned, None)

    def _new_blob(self) -> Blob:
        return Blob(lanes(), self.weights, self._grows)


def _version(weight: Tensor) -> int:
    """Changes when the weight is written to; what was made in inference mode has none."""
    return -1 if weight.is_inference() else weight._version


def _knows_shapes(program: fx.GraphModule, dtypes: Sequence[torch.dtype]) -> bool:
    """Whether every result has a fake tensor, from a capture in these dtypes."""
    given = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"]
    if any(val is None or val.dtype != dtype for val, dtype in zip(given, dtypes, strict=True)):
        return False
    return all("val" in node.meta for node in program.graph.nodes if node.op == "call_function")


def _reordered(program: fx.GraphModule) -> fx.GraphModule:
    """``program`` with oneDNN's weights where that serves, sharing all others."""
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
    return _bound(found)


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
