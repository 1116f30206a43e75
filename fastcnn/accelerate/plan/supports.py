# SPDX-License-Identifier: Apache-2.0
"""Which nodes of a program a plan can serve, and why not the others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ..program import BATCH_NORM, CONV, DEPTHWISE, POINTWISE, SE_GATE, SE_SCALE, Conv, arguments, aten, is_op, tensor_of
from .formulas import ARITHMETIC, QUOTIENTS, affine, alpha_of
from .lowering import TABLE

DTYPES = (torch.float32, torch.bfloat16)  # of maps: between plans; within one they are float32
Shapes = dict[fx.Node, tuple[int, ...]]


def reason_against(program: fx.GraphModule, node: fx.Node, shapes: Shapes) -> str | None:
    """None when ``node`` can be a step; else why not. ``shapes`` are those of maps and vectors, without batch."""
    if node.op != "call_function":
        return "no operator"
    if getattr(node.target, "__name__", "") == "getitem":
        first = is_op(node.args[0], SE_SCALE) and node.args[1] == 0
        return None if first else "a result of an operator that the plan has no step for"
    if node.target not in TABLE:
        return "the plan has no step for it"
    return _check(program, node, shapes)


def _check(program: fx.GraphModule, node: fx.Node, shapes: Shapes) -> str | None:
    if node not in shapes:
        return "its result is no map or vector of floats"
    weights = [each for each in node.all_input_nodes if each.op == "get_attr"]
    if any(tensor_of(program, each).dtype not in DTYPES for each in weights):
        return "its weights are not float32 or bfloat16"
    if any(each.op != "get_attr" and each not in shapes for each in node.all_input_nodes):
        return "an operand is no map or vector of floats"
    check = _CHECKS.get(node.target)
    return check(program, node, shapes) if check else None


def _operands(program: fx.GraphModule, node: fx.Node, names: tuple[str, ...], maps: tuple[str, ...]) -> str | None:
    a = arguments(node)
    if any(a[name] is not None and tensor_of(program, a[name]) is None for name in names):
        return "a weight of it is computed"
    if any(a[name] is not None and tensor_of(program, a[name]) is not None for name in maps):
        return "an operand of it is a constant"
    return None


def _conv(program: fx.GraphModule, node: fx.Node, shapes: Shapes) -> str | None:
    a = arguments(node)
    if any(a[name] is not None for name in ("bn_weight", "bn_bias", "running_mean", "running_var")):
        return "its batch norm is not folded"
    if any(each < 0 for each in Conv.of(node).padding) and set(Conv.of(node).padding) != {-1}:
        return "its padding is negative"
    return _operands(program, node, ("weight", "bias"), ("x", "residual"))


def _depthwise(program: fx.GraphModule, node: fx.Node, shapes: Shapes) -> str | None:
    a = arguments(node)
    if any(each < 0 for each in a["padding"]) and set(a["padding"]) != {-1}:
        return "its padding is negative"
    if tensor_of(program, a["weight"]) is not None and a["weight"].meta["val"].shape[0] != shapes[a["x"]][0]:
        return "it has more channels than its input"
    return _operands(program, node, ("weight", "bias"), ("x", "residual"))


def _pointwise(program: fx.GraphModule, node: fx.Node, shapes: Shapes) -> str | None:
    return _operands(program, node, ("weight", "bias", "scale", "shift"), ("x", "residual", "gate"))


def _batch_norm(program: fx.GraphModule, node: fx.Node, shapes: Shapes) -> str | None:
    return _operands(program, node, ("running_mean", "running_var", "weight", "bias"), ("x", "residual"))


def _gate(program: fx.GraphModule, node: fx.Node, shapes: Shapes) -> str | None:
    return _operands(program, node, ("w1", "b1", "w2", "b2"), ("x",))


def _scale(program: fx.GraphModule, node: fx.Node, shapes: Shapes) -> str | None:
    if any(user.args[1] != 0 for user in node.users):
        return "its means are read too"
    return _gate(program, node, shapes)


def _linear(program: fx.GraphModule, node: fx.Node, shapes: Shapes) -> str | None:
    x, weight = node.args[:2]
    if tensor_of(program, weight) is None or any(tensor_of(program, each) is None for each in node.args[2:3] if each):
        return "a weight of it is computed"
    return None if len(shapes.get(x, ())) == 1 else "it is a linear layer of a map"


def _arithmetic(program: fx.GraphModule, node: fx.Node, shapes: Shapes) -> str | None:
    constants = affine(program, node, shapes[node][0])
    if constants is not None:
        return (
            None if shapes.get(constants[0]) == shapes[node] else "it broadcasts in a way that the plan has no step for"
        )
    if is_op(node, *QUOTIENTS, aten.rsub.Scalar) or not all(each in shapes for each in node.args[:2]):
        return "an operand is a number or a constant that the plan has no step for"
    ours, theirs = sorted((shapes[each] for each in node.args[:2]), key=lambda shape: shape != shapes[node])
    spread = len(theirs) == 3 and theirs[1:] == (1, 1) and theirs[0] == ours[0]
    if ours != shapes[node] or not (theirs == ours or spread):
        return "it broadcasts in a way that the plan has no step for"
    return "an operand is scaled" if spread and theirs != ours and alpha_of(node) != 1 else None


def _mean(program: fx.GraphModule, node: fx.Node, shapes: Shapes) -> str | None:
    a = arguments(node)
    over = sorted(each % 4 for each in a["dim"]) if a["dim"] and len(shapes[node.args[0]]) == 3 else []
    return None if over == [2, 3] and a["dtype"] is None else "a mean over other dimensions than the pixels"


def _mean_pool(program: fx.GraphModule, node: fx.Node, shapes: Shapes) -> str | None:
    return None if arguments(node)["divisor_override"] is None else "a pool with a divisor of its own"


def _concat(program: fx.GraphModule, node: fx.Node, shapes: Shapes) -> str | None:
    dim = node.args[1] if len(node.args) > 1 else 0
    whole = dim == 1 and all(isinstance(each, fx.Node) and each in shapes for each in node.args[0])
    return None if whole and len(shapes[node]) == 3 else "a concatenation along another dimension than the channels"


def _slice(program: fx.GraphModule, node: fx.Node, shapes: Shapes) -> str | None:
    a = arguments(node)
    if a["dim"] != 1 or a["step"] != 1 or not isinstance(a["start"] or 0, int):
        return "a slice of another dimension than the channels"
    return None


def _reshape(program: fx.GraphModule, node: fx.Node, shapes: Shapes) -> str | None:
    before, after = shapes[node.args[0]], shapes[node]
    if before == after:
        return None
    if before[0] == after[0] and all(each == 1 for each in (*before[1:], *after[1:])):
        return None
    flat = len(before) == 3 and after == (before[0] * before[1] * before[2],)
    if flat and all(is_op(user, aten.linear.default) for user in node.users):
        return None
    return "a reshape that moves values"


def _contiguous(program: fx.GraphModule, node: fx.Node, shapes: Shapes) -> str | None:
    channels_last = node.kwargs.get("memory_format") is torch.channels_last
    return None if channels_last or len(shapes[node]) == 1 else "it changes the memory format"


_CHECKS: dict[Any, Any] = {
    CONV: _conv,
    DEPTHWISE: _depthwise,
    POINTWISE: _pointwise,
    BATCH_NORM: _batch_norm,
    SE_GATE: _gate,
    SE_SCALE: _scale,
    aten.linear.default: _linear,
    **dict.fromkeys(ARITHMETIC, _arithmetic),
    aten.mean.dim: _mean,
    aten.avg_pool2d.default: _mean_pool,
    aten.cat.default: _concat,
    aten.slice.Tensor: _slice,
    aten.reshape.default: _reshape,
    aten.contiguous.default: _contiguous,
}


def image_shapes(program: fx.GraphModule) -> Shapes:
    """Of every map ``[N, C, H, W]`` and vector ``[N, C]`` of fixed extents in a dtype of plans: its shape without the batch.

    The batch is that of the first input; what has another one, or no pixels, is left out.
    """
    found = {}
    batch = None
    for node in program.graph.nodes:
        if is_op(node, SE_SCALE) and node.args[0] in found:
            found[node] = found[node.args[0]]
        val = node.meta.get("val")
        if node.op == "get_attr" or not isinstance(val, Tensor) or val.dtype not in DTYPES or val.dim() not in (2, 4):
            continue
        if batch is None:
            batch = val.shape[0]
        if not _same(val.shape[0], batch):
            continue
        extents = [extent if isinstance(extent, int) else extent.node.maybe_as_int() for extent in val.shape[1:]]
        if all(extent is not None and extent > 0 for extent in extents):
            found[node] = tuple(extents)
    return found


def _same(a: int | torch.SymInt, b: int | torch.SymInt) -> bool:
    """Without a guard on a symbol."""
    if isinstance(a, torch.SymInt) and isinstance(b, torch.SymInt):
        return a.node.expr == b.node.expr
    return not isinstance(a, torch.SymInt) and not isinstance(b, torch.SymInt) and a == b
