# SPDX-License-Identifier: Apache-2.0
"""A model as a program: torch.export, weights copied, in-place operators replaced, constants computed."""

from __future__ import annotations

import sysconfig
import traceback
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils._pytree import TreeSpec, tree_map_only

from .program import add_tensor, fixed, sweep, tensor_of

_WEIGHTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
# May return their input itself, which their schemas do not say.
_MAY_ALIAS = {
    f"aten::{name}"
    for name in (
        "contiguous reshape flatten to dropout feature_dropout alpha_dropout type_as chunk narrow squeeze view_as "
        "expand_as reshape_as _reshape_alias unflatten movedim swapaxes mT matrix_H positive tensor_split"
    ).split()
}
_RANDOM = torch.Tag.nondeterministic_seeded
# Traced in place of the example's: a batch that equals another extent by chance would be taken for it.
_BATCH = 37
_MOST_CONSTANT = 2**26  # elements that a folded constant may have


class CaptureError(ValueError):
    """A model that torch.export does not take; the message has torch's reason and the line of the model."""


class Captured(NamedTuple):
    """What :func:`capture` found.

    ``program`` takes the flat tensors of the inputs and returns the flat list of the outputs, of which ``constants``
    maps places to values that are no tensors. ``dynamic`` tells whether the batch may change.
    """

    program: fx.GraphModule
    out_spec: TreeSpec
    dynamic: bool


def capture(model: nn.Module, example: tuple[Tensor, ...], dynamic_size: bool = False) -> Captured:
    """``model`` in eval mode on ``example`` as a program; the model is left as it is.

    Raises: CaptureError.
    """
    batches = {x.shape[0] for x in example if x.dim() > 1}
    dynamic = len(batches) == 1
    if dynamic:
        traced = tuple(x[:1].repeat(_BATCH, *[1] * (x.dim() - 1)) if x.dim() > 1 else x for x in example)
        try:
            exported = _export(model, traced, dynamic_size)
            dynamic = _has_dynamic_batch(exported)
        except CaptureError:  # perhaps for the batch's sake alone
            dynamic = False
    if not dynamic:
        exported = _export(model, example, False)
    _inline_regions(exported)
    if not _make_functional(exported.graph):
        exported = exported.run_decompositions({})
    return _program(exported, dynamic)


def _export(model: nn.Module, example: tuple[Tensor, ...], dynamic_size: bool) -> ExportedProgram:
    dims = []
    for x in example:
        dims.append({0: Dim.AUTO} if x.dim() > 1 else {})
        if dynamic_size and x.dim() == 4:
            dims[-1] |= {2: Dim.AUTO, 3: Dim.AUTO}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.export.export(model, example, dynamic_shapes=(tuple(dims),) if _takes_star(model) else tuple(dims),
                                       strict=False)  # fmt: skip
    except Exception as error:
        raise CaptureError(
            f"accelerate: model {type(model).__name__} cannot be captured by torch.export{_place(error)}: "
            f"{type(error).__name__}: {_first_lines(error)}"
        ) from error


def _takes_star(model: nn.Module) -> bool:
    code = getattr(type(model).forward, "__code__", None)
    return bool(code and code.co_flags & 0x04 and code.co_argcount == 1)


def _place(error: BaseException) -> str:
    """The innermost line that is neither torch's nor ours: the model's own."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not _of_a_library(f.filename)]
    return f" (at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line})" if frames else ""


def _of_a_library(filename: str) -> bool:
    path = filename.replace("\\", "/")
    places = ("/torch/", "/fastcnn/accelerate/", sysconfig.get_path("stdlib").replace("\\", "/"))
    own = "/site-packages/" in path and "/torch/" not in path
    return not own and (path.startswith("<") or any(place in path for place in places))


def _first_lines(error: BaseException, most: int = 4) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:most])[:600]


def _has_dynamic_batch(exported: ExportedProgram) -> bool:
    names = set(exported.graph_signature.user_inputs)
    batches = [fixed(node.meta["val"].shape[0]) for node in exported.graph.nodes
               if node.op == "placeholder" and node.name in names and isinstance(node.meta.get("val"), Tensor)
               and node.meta["val"].dim() > 1]  # fmt: skip
    return bool(batches) and all(isinstance(batch, torch.SymInt) for batch in batches)


def _inline_regions(exported: ExportedProgram) -> None:
    """``with torch.no_grad()`` and ``with torch.autocast(enabled=False)`` change nothing here: their nodes join the others."""
    graph = exported.graph
    for node in list(graph.nodes):
        if not isinstance(node.target, torch._ops.HigherOrderOperator):
            continue
        place = next((i for i, each in enumerate(node.args) if isinstance(each, fx.Node) and each.op == "get_attr"), None)
        name = node.target.name()
        if place is None or not (name == "wrap_with_set_grad_enabled" or (name == "wrap_with_autocast" and not node.args[2])):
            raise CaptureError(f"accelerate: model cannot be captured: it runs {name}, which no rewrite can look into")
        inner = getattr(exported.graph_module, node.args[place].target).graph
        copied = dict(zip((n for n in inner.nodes if n.op == "placeholder"), node.args[place + 1 :], strict=True))
        with graph.inserting_before(node):
            for each in inner.nodes:
                if each.op not in ("placeholder", "output"):
                    copied[each] = graph.node_copy(each, copied.__getitem__)
        results = tree_map_only(fx.Node, copied.__getitem__, next(n for n in inner.nodes if n.op == "output").args[0])
        for user in list(node.users):
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(node)
    graph.eliminate_dead_code()


def _program(exported: ExportedProgram, dynamic: bool) -> Captured:
    program = fx.GraphModule(nn.Module(), fx.Graph())
    copied: dict[fx.Node, fx.Node] = {}
    specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    held = {**exported.constants, **exported.state_dict}
    shared: dict[int, fx.Node] = {}
    for node in exported.graph.nodes:
        spec = specs.get(node.name) if node.op == "placeholder" else None
        if spec is not None and spec.kind in _WEIGHTS:
            original = held[spec.target]
            if id(original) not in shared:
                shared[id(original)] = _weight(program, spec.target, original, node)
            copied[node] = shared[id(original)]
        elif node.op == "output":
            outputs = _user_outputs(exported, node)
            program.graph.output(tuple(tree_map_only(fx.Node, copied.__getitem__, outputs)))
        else:
            copied[node] = program.graph.node_copy(node, copied.__getitem__)
            copied[node].meta = {"val": node.meta.get("val"), "layer": _layer(node)}
    _fold_constants(program)
    return Captured(sweep(program), exported.call_spec.out_spec, dynamic)


def _weight(program: fx.GraphModule, name: str, original: Tensor, placeholder: fx.Node) -> fx.Node:
    if next(iter(program.graph.nodes), None) is None:
        anchor = program.graph.create_node("get_attr", "")
        node = _weight(program, name, original, placeholder)
        program.graph.erase_node(anchor)
        return node
    node = add_tensor(program, name, original.detach().clone())
    node.meta = {"val": placeholder.meta["val"], "layer": name.rpartition(".")[0]}
    return node


def _user_outputs(exported: ExportedProgram, node: fx.Node) -> list[Any]:
    specs = exported.graph_signature.output_specs
    return [each for each, spec in zip(node.args[0], specs, strict=True) if spec.kind == OutputKind.USER_OUTPUT]


def _layer(node: fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    return path.removeprefix("L['self'].").removeprefix("L['self']")


def _make_functional(graph: fx.Graph) -> bool:
    """In-place operators become those that return their result; False where a view of what one writes is read later."""
    place = {node: i for i, node in enumerate(graph.nodes)}
    group: dict[fx.Node, list[fx.Node]] = {}  # nodes that may share memory
    for node in list(graph.nodes):
        group[node] = [node]
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None:
            if node.target is not None and getattr(node.target, "__name__", "") == "getitem":
                _join(group, node, node.args[0])
            continue
        if schema.is_mutable:
            if not _replace_in_place(graph, node, place, group):
                return False
        elif schema.name in _MAY_ALIAS or any(r.alias_info is not None for r in schema.returns):
            for read in node.all_input_nodes:
                _join(group, node, read)
    return True


def _join(group: dict[fx.Node, list[fx.Node]], node: fx.Node, other: fx.Node) -> None:
    if group[node] is not group[other]:
        group[other].extend(group[node])
        for member in group[node]:
            group[member] = group[other]


def _replace_in_place(graph: fx.Graph, node: fx.Node, place: dict[fx.Node, int], group: dict) -> bool:
    written = node.args[0]
    packet = getattr(torch.ops.aten, node.target._opname.removesuffix("_"), None)
    if not node.target._opname.endswith("_") or packet is None or not hasattr(packet, node.target._overloadname):
        return False
    target = getattr(packet, node.target._overloadname)
    late = [
        user for member in group[written] if member is not written for user in member.users if place[user] > place[node]
    ]
    same = isinstance(written, fx.Node) and written.meta["val"].dtype == node.meta["val"].dtype
    if late or target._schema.is_mutable or not same or written.meta["val"].shape != node.meta["val"].shape:
        return False
    node.target = target
    written.replace_all_uses_with(node, delete_user_cb=lambda user: place[user] > place[node])
    return True


def _fold_constants(program: fx.GraphModule) -> None:
    """What depends on weights alone (a standardised kernel, a scaled bias) is computed now."""
    constant: dict[fx.Node, Any] = {}
    for node in list(program.graph.nodes):
        if node.op == "get_attr":
            constant[node] = tensor_of(program, node)
            continue
        inputs = node.all_input_nodes
        schema = getattr(node.target, "_schema", None)
        is_getitem = getattr(node.target, "__name__", "") == "getitem"
        if node.op != "call_function" or not inputs or not all(each in constant for each in inputs):
            continue
        if not is_getitem and (schema is None or schema.is_mutable or _RANDOM in node.target.tags):
            continue
        args, kwargs = tree_map_only(fx.Node, constant.__getitem__, (node.args, node.kwargs))
        with torch.no_grad():
            constant[node] = node.target(*args, **kwargs)
    for node, found in constant.items():
        leaves = node.op != "get_attr" and any(user not in constant for user in node.users)
        if leaves and isinstance(found, Tensor) and found.numel() <= _MOST_CONSTANT:
            name = node.meta.get("layer") or ""
            folded = add_tensor(program, f"{name}.{node.name}" if name else node.name, found.clone())
            folded.meta["layer"] = name
            node.replace_all_uses_with(folded)
    program.graph.eliminate_dead_code()


def flat_example(example: Any) -> tuple[Tensor, ...]:
    """The positional tensors of ``example``: one tensor, or a tuple or list of them."""
    found = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    wrong = [type(each).__name__ for each in found if not isinstance(each, Tensor)]
    if wrong or not found:
        got = f"{', '.join(wrong)}" if wrong else "none"
        raise TypeError(f"accelerate: example must be a Tensor or a tuple of Tensors, got {got}")
    return found
