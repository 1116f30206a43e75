# SPDX-License-Identifier: Apache-2.0
"""A program's graph as JSON and back. What comes back has called nothing: names are names of lists, not of Python.

Values: None, bool, int, float, str and list stand for themselves; everything else is an object with one key, its tag:
``{"tuple": [...]}``, ``{"dict": {...}}``, ``{"ordered": {...}}`` (an OrderedDict), ``{"node": name}``,
``{"float": "inf" | "-inf" | "nan"}``, ``{"dtype": name}``, ``{"layout": name}``, ``{"memory_format": name}``,
``{"device": "cuda:0"}``.
"""

from __future__ import annotations

import keyword
import math
import re
import reprlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from .targets import Refused, allowed, kind_of_call, name_of

DTYPES = {
    name: getattr(torch, name)
    for name in "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()
}  # fmt: skip
_TAGGED: dict[str, dict[str, Any]] = {
    "float": {"inf": math.inf, "-inf": -math.inf, "nan": math.nan},
    "dtype": DTYPES,
    "layout": {"strided": torch.strided},
    "memory_format": {
        name: getattr(torch, name)
        for name in "contiguous_format preserve_format channels_last channels_last_3d".split()
    },
}
_DEEPEST = 24
_LARGEST_INT = 2**63 - 1
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NO_NAME = re.compile(r"[0-9]+|[A-Za-z0-9_]+(-[A-Za-z0-9_]+)+")  # torch.fx reads these by getattr, in quotes
_TYPES = {torch.dtype: "dtype", torch.layout: "layout", torch.memory_format: "memory_format"}


def encode(value: Any, depth: int = 0) -> Any:
    """Raises: Refused for a value that has no JSON form."""
    if depth > _DEEPEST:
        raise Refused(f"a value nested deeper than {_DEEPEST}")
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, list):  # fx keeps lists as a subclass of its own
        return [encode(each, depth + 1) for each in value]
    if type(value) is tuple or isinstance(value, torch.Size):
        return {"tuple": [encode(each, depth + 1) for each in value]}
    if type(value) in (dict, OrderedDict):
        strange = [key for key in value if type(key) is not str]
        if strange:
            raise Refused(f"the key {strange[0]!r}, wanted a str")
        tag = "dict" if type(value) is dict else "ordered"
        return {tag: {key: encode(each, depth + 1) for key, each in value.items()}}
    if type(value) is float and not math.isfinite(value):
        return {"float": repr(value)}
    if type(value) is torch.device:
        return {"device": str(value)}
    if type(value) in _TYPES:
        tag, name = _TYPES[type(value)], str(value).removeprefix("torch.")
        if name in _TAGGED[tag]:
            return {tag: name}
    elif value is None or type(value) in (bool, float, str) or (type(value) is int and abs(value) <= _LARGEST_INT):
        return value
    raise Refused(f"a value of type {type(value).__name__} ({str(value)[:60]}), which has no JSON form here")


def decode(value: Any, nodes: Mapping[str, fx.Node], depth: int = 0) -> Any:
    """Of what json.loads gave; ``nodes`` are those that may be meant.

    Raises: Refused.
    """
    if depth > _DEEPEST:
        raise Refused(f"a value nested deeper than {_DEEPEST}")
    if isinstance(value, list):
        return [decode(each, nodes, depth + 1) for each in value]
    if not isinstance(value, dict):
        if type(value) is int and abs(value) > _LARGEST_INT:
            raise Refused("a number that is no 64-bit integer")
        if type(value) is float and not math.isfinite(value):
            raise Refused('a number beyond float64, wanted {"float": "inf"}')
        return value
    if len(value) != 1:
        raise Refused(f"an object with the keys {short(list(value))}, wanted one tag")
    ((tag, inner),) = value.items()
    if tag == "tuple" and isinstance(inner, list):
        return tuple(decode(each, nodes, depth + 1) for each in inner)
    if tag in ("dict", "ordered") and isinstance(inner, dict):
        found = {key: decode(each, nodes, depth + 1) for key, each in inner.items()}
        return found if tag == "dict" else OrderedDict(found)
    if isinstance(inner, str):
        if tag == "node":
            if inner not in nodes:
                raise Refused(f"refers to {short(inner)}, which is no earlier node")
            return nodes[inner]
        if tag == "device" and re.fullmatch(r"[a-z]{1,20}(:[0-9]{1,3})?", inner):
            try:
                return torch.device(inner)
            except RuntimeError:
                raise Refused(f"the device {inner!r}, which this torch does not know") from None
        if inner in _TAGGED.get(tag, ()):
            return _TAGGED[tag][inner]
    raise Refused(f"the tag {short(tag)} with {short(inner)}, which means nothing here")


def encode_spec(spec: TreeSpec | None) -> Any:
    """As the value that it is the structure of, with "*" for each leaf.

    Not by torch's treespec_loads, which imports the module that a file names for an enum.

    Raises: Refused for anything but list, tuple, dict with str keys, OrderedDict.
    """
    if spec is None:
        return None
    tree = tree_unflatten(["*"] * spec.num_leaves, spec)
    try:
        return encode(tree)
    except Refused as error:
        raise Refused(f"a structure with {error}; wanted list, tuple, dict with str keys or OrderedDict") from None


def decode_spec(value: Any) -> TreeSpec | None:
    """Raises: Refused."""
    if value is None:
        return None
    leaves, spec = tree_flatten(decode(value, {}))
    if any(leaf != "*" for leaf in leaves):
        raise Refused('a structure with a leaf that is not "*"')
    return spec


def encode_graph(graph: fx.Graph) -> list[dict[str, Any]]:
    """The nodes in order.

    Raises: Refused, naming the node.
    """
    return [_at(f"node {node.name!r}", _encode_node, node) for node in graph.nodes]


def _encode_node(node: fx.Node) -> dict[str, Any]:
    entry: dict[str, Any] = {"op": node.op, "name": node.name}
    if node.op == "placeholder":
        if node.args or node.kwargs:
            raise Refused("is an input with a default")
        return entry | {"target": node.target} | _input(node)
    if node.op == "get_attr":
        entry["target"] = node.target
    elif node.op == "output":
        entry["value"] = encode(node.args[0])
    elif node.op == "call_function":
        entry |= {"target": name_of(node.target), "args": encode(list(node.args)), "kwargs": encode(dict(node.kwargs))}
    else:
        raise Refused(f"is a {node.op}, wanted placeholder, get_attr, call_function or output")
    if node.meta.get("layer"):
        entry["layer"] = str(node.meta["layer"])
    return entry


def _input(node: fx.Node) -> dict[str, Any]:
    val = node.meta.get("val")
    if isinstance(val, Tensor):
        node_input = {"shape": [n if type(n) is int else None for n in val.shape], "dtype": val.dtype}
    elif "input" in node.meta:
        node_input = {"shape": list(node.meta["input"]["shape"]), "dtype": node.meta["input"]["dtype"]}
    else:
        return {}
    return {"shape": node_input["shape"], "dtype": encode(node_input["dtype"])["dtype"]}


def decode_graph(entries: Any, weights: set[str]) -> fx.Graph:
    """The graph of these nodes; every ``get_attr`` is one of ``weights``. No node has ``meta["val"]``; inputs have
    ``meta["input"] = {"shape": tuple with None for what may change, "dtype": dtype}`` when the saved program had it.

    Raises: Refused, naming the node.
    """
    graph, nodes, kinds = fx.Graph(), {}, {}
    if not isinstance(entries, list) or not entries:
        raise Refused(f"nodes must be a list, got {short(entries)}")
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise Refused(f"node {i} must be an object with a name, got {short(entry)}")
        name, place = entry["name"], f"node {i} ({short(entry['name'])})"
        if not is_name(name) or name in nodes:
            raise Refused(f"{place} must have a name of its own made of letters, digits and _")
        if (entry.get("op") == "output") != (i == len(entries) - 1):
            raise Refused(f"{place}: the output must be the last node, and the last node the output")
        node = _at(place, _decode_node, graph, entry, nodes, kinds, weights)
        if node.name != name:
            raise Refused(f"{place} has a name that Python or torch.fx keeps for itself")
        nodes[name] = node
    return graph


_KEYS = {
    "placeholder": {"target", "shape", "dtype"},
    "get_attr": {"target", "layer"},
    "call_function": {"target", "args", "kwargs", "layer"},
    "output": {"value", "layer"},
}


def _decode_node(graph: fx.Graph, entry: dict, nodes: dict, kinds: dict, weights: set[str]) -> fx.Node:
    op, name, layer = entry.get("op"), entry["name"], entry.get("layer")
    if not isinstance(op, str) or op not in _KEYS:
        raise Refused(f"op must be one of {', '.join(_KEYS)}, got {short(op)}")
    strange = sorted(entry.keys() - _KEYS[op] - {"op", "name"})
    missing = sorted(_KEYS[op] - entry.keys() - {"layer", "shape", "dtype"})
    if strange or missing or ("layer" in entry and (not isinstance(layer, str) or not layer)):
        raise Refused(f"a {op} with unknown keys {strange}, missing keys {missing}, layer {short(layer)}")
    target, kind = entry.get("target"), "Tensor"
    if op == "placeholder":
        # torch.fx calls an input that has the name of a builtin input_1, and its argument input.
        if not is_name(target) or not re.fullmatch(f"{target}(_[0-9]+)?", name):
            raise Refused(f"target must be the name without the number that torch.fx adds, got {short(target)}")
        node = graph.create_node(op, target, name=name)
        if entry.keys() > {"op", "name", "target"}:
            node.meta["input"] = _decode_input(entry)
    elif op == "get_attr":
        if not isinstance(target, str) or target not in weights:
            raise Refused(f"target must be a weight of this file, got {short(target)}")
        node = graph.create_node(op, target, name=name)
    elif op == "output":
        node = graph.create_node(op, "output", (decode(entry["value"], nodes),), name=name)
    else:
        if not isinstance(target, str) or target not in allowed():
            raise Refused(f"target must be an operator that a saved program may call, got {short(target)}")
        args, kwargs = decode(entry["args"], nodes), decode(entry["kwargs"], nodes)
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise Refused(
                f"args must be a list and kwargs a dict, got {short(entry['args'])}, {short(entry['kwargs'])}"
            )
        kind = kind_of_call(target, args, kwargs, kinds)
        node = graph.create_node(op, allowed()[target], tuple(args), kwargs, name=name)
    if layer:
        node.meta["layer"] = layer
    kinds[node] = kind
    return node


def _decode_input(entry: dict) -> dict[str, Any]:
    shape, dtype = entry.get("shape"), entry.get("dtype")
    if not isinstance(shape, list) or not all(n is None or (type(n) is int and 0 <= n <= _LARGEST_INT) for n in shape):
        raise Refused(f"shape must be a list of sizes and null, got {short(shape)}")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise Refused(f"dtype must be one of {', '.join(DTYPES)}, got {short(dtype)}")
    return {"shape": tuple(shape), "dtype": DTYPES[dtype]}


def is_name(text: Any) -> bool:
    """Whether it can stand in generated Python as a name that nothing else has."""
    if not isinstance(text, str) or not _NAME.fullmatch(text):
        return False
    return text[:2] != "__" and text != "self" and not keyword.iskeyword(text)


def is_path(text: Any) -> bool:
    """Whether it is a dotted name of a weight: names, numbers (Sequential), words with dashes (torchvision's RegNet)."""
    return isinstance(text, str) and all(is_name(part) or _NO_NAME.fullmatch(part) for part in text.split("."))


def _at(place: str, function: Callable, *args: Any) -> Any:
    try:
        return function(*args)
    except Refused as error:
        raise Refused(f"{place}: {error}") from None


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def short(value: Any) -> str:
    """For a message: of what somebody else wrote, however long or deep."""
    return _SHORT.repr(value)
