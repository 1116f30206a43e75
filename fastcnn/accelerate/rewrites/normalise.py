# SPDX-License-Identifier: Apache-2.0
"""Every spelling of an operator to one: what the other rewrites have to recognise."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from fastcnn.ops._checks import FLOATING

from ..program import (
    ACTIVATION,
    BATCH_NORM,
    CONV,
    DEPTHWISE,
    GLOBAL_AVG_POOL,
    MAX_POOL,
    Conv,
    Notes,
    arguments,
    aten,
    emit,
    fixed,
    is_map,
    is_op,
    replace,
    shape,
    value,
)

Handler = Callable[[fx.GraphModule, fx.Node, dict[str, Any]], "fx.Node | None"]
HANDLERS: dict[Any, Handler] = {}
_ASSERTIONS = {
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten.sym_constrain_range_for_size.default,
    aten.sym_constrain_range.default,
}


def normalise(program: fx.GraphModule, notes: Notes) -> int:
    """Returns: the number of nodes that were written anew."""
    count = 0
    for node in list(program.graph.nodes):
        if node._erased or node.op != "call_function":
            continue
        if node.target in _ASSERTIONS:  # the inputs are checked against the example's shapes
            program.graph.erase_node(node)
            continue
        handler = HANDLERS.get(node.target) or HANDLERS.get(getattr(node.target, "overloadpacket", None))
        new = handler(program, node, arguments(node)) if handler else None
        if new is not None and new is not node:
            replace(program, node, new)
            count += 1
    program.graph.eliminate_dead_code()
    return count


def handles(*targets: Any) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        for target in targets:
            HANDLERS[target] = handler
        return handler

    return register


def _pair(given: Any, default: int) -> tuple[int, int]:
    values = [given] if isinstance(given, int) else list(given)
    values = values or [default]
    return (values[0], values[-1])


@handles(aten.conv2d.default, aten.conv2d.padding, aten.convolution.default)
def _conv(program: fx.GraphModule, node: fx.Node, given: dict[str, Any]) -> fx.Node | None:
    x, weight = given["input"], given["weight"]
    if given.get("transposed") or not is_map(x) or value(weight).dim() != 4 or value(x).dtype not in FLOATING:
        return None
    if value(weight).dtype != value(x).dtype or min(value(weight).shape) < 1:
        return None
    stride, dilation = _pair(given["stride"], 1), _pair(given["dilation"], 1)
    padding = given["padding"]
    if isinstance(padding, str):
        extra = (
            [0, 0] if padding == "valid" else [d * (k - 1) for d, k in zip(dilation, shape(weight)[2:], strict=True)]
        )
        four = (extra[1] // 2, extra[1] - extra[1] // 2, extra[0] // 2, extra[0] - extra[0] // 2)
    else:
        h, w = _pair(padding, 0)
        four = (w, w, h, h)
    conv = Conv(x, weight, given["bias"], None, stride, four, dilation, given["groups"], "identity")
    return emit(program, node, CONV, conv.args)


@handles(CONV)
def _own_conv(program: fx.GraphModule, node: fx.Node, given: dict[str, Any]) -> fx.Node | None:
    conv = Conv.of(node)
    norm = [given[name] for name in ("running_mean", "running_var", "bn_weight", "bn_bias")]
    if norm[0] is None:
        return None if given["eps"] == 0.0 else emit(program, node, CONV, conv.args)
    plain = emit(program, node, CONV, conv._replace(residual=None, activation="identity").args)
    return emit(program, node, BATCH_NORM, (plain, *norm, conv.residual, given["eps"], conv.activation))


@handles(DEPTHWISE)
def _own_depthwise(program: fx.GraphModule, node: fx.Node, given: dict[str, Any]) -> fx.Node:
    window = (tuple(given[name]) for name in ("stride", "padding", "dilation"))
    conv = Conv(given["x"], given["weight"], given["bias"], given["residual"], *window, shape(given["x"])[1],
                given["activation"])  # fmt: skip
    return emit(program, node, CONV, conv.args)


@handles(aten.batch_norm.default)
def _batch_norm(program: fx.GraphModule, node: fx.Node, given: dict[str, Any]) -> fx.Node | None:
    return None if given["training"] else _eval_norm(program, node, given)


def _eval_norm(program: fx.GraphModule, node: fx.Node, given: dict[str, Any]) -> fx.Node | None:
    mean, var = given["running_mean"], given["running_var"]
    if not is_map(given["input"]) or mean is None or value(given["input"]).dtype not in FLOATING:
        return None
    return emit(program, node, BATCH_NORM, (given["input"], mean, var, given["weight"], given["bias"], None, given["eps"],
                                            "identity"))  # fmt: skip


@handles(aten._native_batch_norm_legit_no_training.default, aten._native_batch_norm_legit.no_stats,
         aten.max_pool2d_with_indices.default)  # fmt: skip
def _first_of_several(program: fx.GraphModule, node: fx.Node, given: dict[str, Any]) -> None:
    first = [user for user in node.users if is_op(user, operator.getitem) and user.args[1] == 0]
    if len(first) != len(node.users) or not first:
        return
    new = _max_pool(program, first[0], given) if "kernel_size" in given else _norm(program, first[0], given)
    for user in first if new is not None else []:
        replace(program, user, new)


def _norm(program: fx.GraphModule, node: fx.Node, given: dict[str, Any]) -> fx.Node | None:
    """Of a map our op, of another tensor or on the batch's own statistics ATen's, in one spelling."""
    given = {"running_mean": None, "running_var": None, "training": False} | given
    if not given["training"] and (new := _eval_norm(program, node, given)) is not None:
        return new
    names = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")
    return emit(program, node, aten.batch_norm.default, (*(given[name] for name in names), False))


_ACTIVATIONS = {
    aten.relu.default: "relu",
    aten.relu6.default: "relu6",
    aten.hardswish.default: "hardswish",
    aten.hardsigmoid.default: "hardsigmoid",
    aten.silu.default: "silu",
    aten.sigmoid.default: "sigmoid",
    torch.ops.fastcnn.hardswish.default: "hardswish",
}


@handles(*_ACTIVATIONS)
def _activation(program: fx.GraphModule, node: fx.Node, given: dict[str, Any]) -> fx.Node | None:
    return _act(program, node, next(iter(given.values())), _ACTIVATIONS[node.target])


@handles(aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default)
def _clamp(program: fx.GraphModule, node: fx.Node, given: dict[str, Any]) -> fx.Node | None:
    low, high = given.get("min_val", given.get("min")), given.get("max_val", given.get("max"))
    kind = {(0, 6): "relu6", (0, None): "relu"}.get((low, high)) if not isinstance(low, fx.Node) else None
    return _act(program, node, given["self"], kind) if kind else None


def _act(program: fx.GraphModule, node: fx.Node, x: fx.Node, kind: str) -> fx.Node | None:
    val = value(x)
    return emit(program, node, ACTIVATION, (x, kind)) if isinstance(val, Tensor) and val.dtype in FLOATING else None


@handles(aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default, aten.mean.dim)
def _global_pool(program: fx.GraphModule, node: fx.Node, given: dict[str, Any]) -> fx.Node | None:
    x = given["self"]
    if not is_map(x) or value(x).dtype not in FLOATING:
        return None
    if "output_size" in given:
        return emit(program, node, GLOBAL_AVG_POOL, (x,)) if list(given["output_size"]) == [1, 1] else None
    if "kernel_size" in given:
        whole = list(shape(x)[2:]) == list(_pair(given["kernel_size"], 1)) and _pair(given["padding"], 0) == (0, 0)
        return emit(program, node, GLOBAL_AVG_POOL, (x,)) if whole and given["divisor_override"] is None else None
    dims = sorted(d % 4 for d in given["dim"] or ())
    if dims != [2, 3] or given["dtype"] not in (None, value(x).dtype):
        return None
    pooled = emit(program, node, GLOBAL_AVG_POOL, (x,))
    return pooled if given["keepdim"] else emit(program, node, aten.reshape.default, (pooled, [-1, shape(x)[1]]))


@handles(aten.max_pool2d.default)
def _max_pool(program: fx.GraphModule, node: fx.Node, given: dict[str, Any]) -> fx.Node | None:
    x, kernel = given["self"], _pair(given["kernel_size"], 1)
    if not is_map(x) or value(x).dtype not in FLOATING or _pair(given["dilation"], 1) != (1, 1):
        return None
    stride = _pair(given["stride"], 0) if given["stride"] else kernel
    return emit(program, node, MAX_POOL, (x, kernel, stride, _pair(given["padding"], 0), given["ceil_mode"]))


@handles(aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.flatten.using_ints, aten.squeeze.dim,
         aten.squeeze.dims, aten.squeeze.default, aten.unsqueeze.default, aten.unflatten.int)  # fmt: skip
def _reshape(program: fx.GraphModule, node: fx.Node, given: dict[str, Any]) -> fx.Node | None:
    x = given["self"]
    sizes = [-1 if isinstance(size, torch.SymInt) else size for size in shape(node)]
    if sizes.count(-1) > 1:  # more than the batch is dynamic: the sizes as they were written
        if node.target in (aten.view.default, aten._unsafe_view.default):
            return emit(program, node, aten.reshape.default, (x, given["size"]))
        return None
    if node.target is aten.reshape.default and list(node.args[1]) == sizes:
        return None
    same = len(sizes) == value(x).dim() and all(a is b or a == b for a, b in zip(shape(x), shape(node), strict=True))
    return x if same else emit(program, node, aten.reshape.default, (x, sizes))


@handles(aten.contiguous.default, aten.clone.default, aten.dropout.default, aten.feature_dropout.default,
         aten.alpha_dropout.default, aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default,
         aten.positive.default, aten.expand.default, aten.expand_as.default, aten.to, aten._to_copy.default,
         aten.type_as.default, torch.ops.aten.view_as.default, torch.ops.aten.reshape_as.default)  # fmt: skip
def _nothing(program: fx.GraphModule, node: fx.Node, given: dict[str, Any]) -> fx.Node | None:
    """What returns its input's values as they are; at the program's end a copy stays a copy."""
    x = next(iter(given.values()))
    if given.get("train") or any(user.op == "output" for user in node.users):
        return None
    before, after = value(x), value(node)
    same = before.dtype == after.dtype and before.device == after.device and len(before.shape) == len(after.shape)
    return x if same and all(bool(a == b) for a, b in zip(before.shape, after.shape, strict=True)) else None


@handles(aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.split.sizes)
def _split(program: fx.GraphModule, node: fx.Node, given: dict[str, Any]) -> None:
    x = next(iter(given.values()))
    dim = given["dim"] % value(x).dim()
    pieces = [fixed(part.shape[dim]) for part in value(node)]
    if not all(isinstance(size, int) for size in pieces):
        return
    for user in list(node.users):
        if is_op(user, operator.getitem):
            start = sum(pieces[: user.args[1]])
            replace(
                program, user, emit(program, user, aten.slice.Tensor, (x, dim, start, start + pieces[user.args[1]]))
            )


_TO_THE_END = 2**63 - 1


@handles(aten.narrow.default, aten.slice.Tensor)
def _slice(program: fx.GraphModule, node: fx.Node, given: dict[str, Any]) -> fx.Node | None:
    x = given["self"]
    dim = given["dim"] % value(x).dim()
    size = shape(x)[dim]
    if given.get("step", 1) != 1:
        return None
    if not isinstance(size, int):  # x[:, ...] slices the batch too, from end to end
        whole = "end" in given and not given["start"] and given["end"] in (None, _TO_THE_END)
        return x if whole else None
    start = given["start"] or 0
    end = start + given["length"] if "length" in given else given["end"]
    if not all(isinstance(bound, (int, type(None))) for bound in (start, end)):
        return None
    start, end, _ = slice(start, end).indices(size)
    if (start, end) == (0, size):
        return x
    args = (x, dim, start, max(start, end))
    return (
        None if node.target is aten.slice.Tensor and node.args == args else emit(program, node, aten.slice.Tensor, args)
    )


@handles(aten.cat.default, aten.concat.default, aten.concatenate.default)
def _cat(program: fx.GraphModule, node: fx.Node, given: dict[str, Any]) -> fx.Node | None:
    parts = list(given["tensors"])
    dim = given["dim"] % value(node).dim()
    if node.target is aten.cat.default and node.args == (parts, dim):
        return None
    return emit(program, node, aten.cat.default, (parts, dim))


@handles(aten.add.Tensor, aten.mul.Tensor)
def _binary(program: fx.GraphModule, node: fx.Node, given: dict[str, Any]) -> fx.Node | None:
    if (
        given.get("alpha", 1) != 1
        or not isinstance(given["self"], fx.Node)
        or (not node.kwargs and len(node.args) == 2)
    ):
        return None
    return emit(program, node, node.target, (given["self"], given["other"]))
