# SPDX-License-Identifier: Apache-2.0
"""The program that the rewrites work on: a torch.fx graph of functional operators, its weights, the shape of every result.

A program is an ``fx.GraphModule``. Weights are ``get_attr`` nodes. ``node.meta["val"]`` is a fake tensor of the result's
shape (the batch may be a symbol), ``node.meta["layer"]`` the module of the original that the node comes from.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map

aten = torch.ops.aten
CONV = torch.ops.fastcnn.conv_bn_act.default
DEPTHWISE = torch.ops.fastcnn.depthwise_conv2d.default
DEPTHWISE_SE_GATE = torch.ops.fastcnn.depthwise_se_gate.default
BATCH_NORM = torch.ops.fastcnn.batch_norm_act.default
ACTIVATION = torch.ops.fastcnn.activation.default
GLOBAL_AVG_POOL = torch.ops.fastcnn.global_avg_pool.default
MAX_POOL = torch.ops.fastcnn.max_pool2d.default
SE_SCALE = torch.ops.fastcnn.se_scale.default
CHANNEL_SHUFFLE = torch.ops.fastcnn.channel_shuffle.default
SHUFFLE_CONCAT = torch.ops.fastcnn.channel_shuffle_concat.default
POINTWISE = torch.ops.fastcnn.pointwise_conv2d.default
SE_GATE = torch.ops.fastcnn.se_gate.default


class Conv(NamedTuple):
    """The arguments of a convolution without batch norm: ``activation(conv(x) + bias + residual)``.

    Until the last rewrite every convolution is a ``CONV`` node of this form, depthwise or not; the four batch norm
    arguments are None and eps is 0. ``padding`` is (left, right, top, bottom).
    """

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    residual: fx.Node | None
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int
    activation: str

    @classmethod
    def of(cls, node: fx.Node) -> Conv:
        x, weight, bias, _, _, _, _, residual, stride, padding, dilation, groups, _, activation = node.args
        return cls(x, weight, bias, residual, tuple(stride), tuple(padding), tuple(dilation), groups, activation)

    @property
    def args(self) -> tuple:
        """As the op takes them."""
        return (self.x, self.weight, self.bias, None, None, None, None, self.residual, self.stride, self.padding,
                self.dilation, self.groups, 0.0, self.activation)  # fmt: skip


def is_op(node: Any, *targets: Any) -> bool:
    """Whether ``node`` is a call of one of these operators (overloads, or packets for any overload)."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return False
    return node.target in targets or getattr(node.target, "overloadpacket", None) in targets


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by name, defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {}
    found = {}
    for i, each in enumerate(schema.arguments):
        given = node.args[i] if i < len(node.args) else node.kwargs.get(each.name, each.default_value)
        found[each.name] = given
    return found


def calls(program: fx.GraphModule, *targets: Any) -> Iterator[fx.Node]:
    """The calls of these operators in order, from a list taken now: the caller may rewrite as it goes."""
    for node in [node for node in program.graph.nodes if is_op(node, *targets)]:
        if not node._erased:
            yield node


def only_user(node: fx.Node) -> fx.Node | None:
    """The one node that reads ``node``, and reads it once; None when there are more, or none."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    return user if sum(used is node for used in _flat_inputs(user)) == 1 else None


def _flat_inputs(node: fx.Node) -> list[fx.Node]:
    found: list[fx.Node] = []
    tree_map(lambda each: found.append(each) if isinstance(each, fx.Node) else None, (node.args, node.kwargs))
    return found


def value(node: fx.Node) -> Any:
    """The fake tensor that stands for the result of ``node``."""
    return node.meta["val"]


def is_map(node: Any) -> bool:
    """Whether ``node`` is a floating tensor ``[N, C, H, W]``."""
    val = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(val, Tensor) and val.dim() == 4 and val.is_floating_point()


def shape(node: fx.Node) -> tuple:
    """Of ``node``'s result; what is dynamic is a ``torch.SymInt``."""
    return tuple(fixed(extent) for extent in value(node).shape)


def fixed(extent: int | torch.SymInt) -> int | torch.SymInt:
    """An extent that tracing has settled is a symbol still, of a constant."""
    constant = extent.node.maybe_as_int() if isinstance(extent, torch.SymInt) else None
    return extent if constant is None else constant


def tensor_of(program: fx.GraphModule, node: Any) -> Tensor | None:
    """The weight behind a ``get_attr`` node, None for any other node and for None."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    found: Any = program
    for part in node.target.split("."):
        found = getattr(found, part)
    return found if isinstance(found, Tensor) else None


_OF_A_MODULE = {"meta", "training"}  # attributes that a GraphModule has beside those of its class


def add_tensor(program: fx.GraphModule, name: str, tensor: Tensor) -> fx.Node:
    """A new weight, called ``name`` or, where another has that, ``name_1`` ...; its ``get_attr`` node, first in the graph."""
    taken = dict(program.named_parameters(remove_duplicate=False)) | dict(program.named_buffers(remove_duplicate=False))
    first, dot, rest = name.partition(".")
    if hasattr(fx.GraphModule, first) or first in _OF_A_MODULE:
        name = f"{first}_{dot}{rest}"
    free = name
    count = 0
    while free in taken:
        count += 1
        free = f"{name}_{count}"
    path, _, leaf = free.rpartition(".")
    if path and not _has_module(program, path):
        program.add_submodule(path, torch.nn.Module())
    owner = program.get_submodule(path)
    owner.register_parameter(leaf, torch.nn.Parameter(tensor.detach(), requires_grad=False))
    first = next(iter(program.graph.nodes))
    with program.graph.inserting_before(first):
        node = program.graph.create_node("get_attr", free)
    mode = fake_mode(program)
    node.meta["val"] = mode.from_tensor(tensor.detach(), static_shapes=True) if mode else tensor.detach()
    node.meta["wanted"] = name
    return node


def _has_module(program: fx.GraphModule, path: str) -> bool:
    try:
        program.get_submodule(path)
    except AttributeError:
        return False
    return True


def fake_mode(program: fx.GraphModule) -> Any:
    """The mode that the program's fake tensors belong to."""
    for node in program.graph.nodes:
        found = getattr(node.meta.get("val"), "fake_mode", None)
        if found is not None:
            return found
    return None


def emit(
    program: fx.GraphModule, before: fx.Node, target: Callable, args: Sequence, like: fx.Node | None = None
) -> fx.Node:
    """A new call in front of ``before``, with its shape; it takes its layer from ``like`` (default: ``before``)."""
    with program.graph.inserting_before(before):
        node = program.graph.call_function(target, tuple(args))
    values = tree_map(lambda each: each.meta["val"] if isinstance(each, fx.Node) else each, tuple(args))
    mode = fake_mode(program)
    guards = mode.shape_env.suppress_guards() if mode and mode.shape_env else contextlib.nullcontext()
    with mode, guards, torch.no_grad():  # without guards: some would settle a symbolic batch on its hint
        node.meta["val"] = _reshaped(*values) if target is aten.reshape.default else target(*values)
    node.meta["layer"] = (like or before).meta.get("layer", "")
    if like is not None and like.target is target and "left" in like.meta:
        node.meta["left"] = like.meta["left"]
    return node


def _reshaped(x: Tensor, sizes: Sequence) -> Tensor:
    """``x.reshape(sizes)`` by arithmetic, so that a symbolic batch stays the same symbol."""
    known = math.prod(size for size in sizes if not isinstance(size, int) or size >= 0)
    if -1 in sizes and isinstance(x.shape[0], torch.SymInt) and math.prod(x.shape[1:]) == known:
        missing = x.shape[0]
    else:
        missing = math.prod(x.shape) // known if -1 in sizes and known else 0
    return x.new_empty([missing if isinstance(size, int) and size == -1 else size for size in sizes])


def replace(program: fx.GraphModule, old: fx.Node, new: fx.Node) -> None:
    """Every reader of ``old`` reads ``new``; ``old`` goes, and with it what only it has read."""
    old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    waiting = [old]
    while waiting:
        node = waiting.pop()
        if node._erased or node.users or node.op in ("placeholder", "output"):
            continue
        inputs = list(node.all_input_nodes)
        program.graph.erase_node(node)
        waiting += inputs


def sweep(program: fx.GraphModule) -> fx.GraphModule:
    """Without what nothing reads, weights included; checked and compiled."""
    program.graph.eliminate_dead_code()
    used = {node.target for node in program.graph.nodes if node.op == "get_attr"}
    for module_name, module in list(program.named_modules()):
        for tensors in (module._parameters, module._buffers):
            for leaf in list(tensors):
                if (f"{module_name}.{leaf}" if module_name else leaf) not in used:
                    del tensors[leaf]
    for node in program.graph.nodes:
        _take_wanted_name(program, node)
    _drop_empty(program)
    program.graph.lint()
    program.recompile()
    return program


def _take_wanted_name(program: fx.GraphModule, node: fx.Node) -> None:
    """A weight that took the place of another takes its name too, once that is gone."""
    wanted = node.meta.pop("wanted", node.target)
    if wanted == node.target or wanted in dict(program.named_parameters(remove_duplicate=False)):
        return
    owner, _, leaf = wanted.rpartition(".")
    module = program.get_submodule(owner)
    if not hasattr(module, leaf):
        module.register_parameter(leaf, module._parameters.pop(node.target.rpartition(".")[2]))
        node.target = wanted


def _drop_empty(module: torch.nn.Module) -> bool:
    """Whether ``module`` holds nothing, after its children that hold nothing are gone."""
    for name, child in list(module.named_children()):
        if _drop_empty(child):
            del module._modules[name]
    return not (module._modules or module._parameters or module._buffers)


class Notes:
    """What the rewrites could not do. A reason stays with the node, also where a later rewrite writes it anew."""

    def leave(self, node: fx.Node, reason: str) -> None:
        """``node`` stays as it is, because of ``reason``; the last reason given counts."""
        node.meta["left"] = reason

    def also(self, node: fx.Node, reason: str) -> None:
        """A further reason, beside what an earlier rewrite has said."""
        said = node.meta.get("left")
        node.meta["left"] = f"{said}; {reason}" if said else reason
