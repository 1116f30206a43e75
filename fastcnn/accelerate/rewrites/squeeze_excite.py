# SPDX-License-Identifier: Apache-2.0
"""Squeeze-and-excitation in all its spellings as one op: pool, two layers with activations, scale."""

from __future__ import annotations

import operator
from typing import NamedTuple

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from fastcnn.ops._checks import FLOATING

from ..program import (
    ACTIVATION,
    CONV,
    GLOBAL_AVG_POOL,
    SE_SCALE,
    Conv,
    Notes,
    add_tensor,
    aten,
    calls,
    emit,
    is_map,
    is_op,
    only_user,
    replace,
    shape,
    value,
)

_REPEATS = (aten.expand, aten.expand_as)
_LONGEST = 16  # nodes between a pool and its gate; a squeeze-and-excitation has at most ten


class _Layer(NamedTuple):
    """A fully connected layer and the activation behind it."""

    weight: fx.Node
    bias: fx.Node | None
    activation: str


class _Left(Exception):
    """What of a gate is not as se_scale has it."""


def squeeze_excite(program: fx.GraphModule, notes: Notes) -> int:
    """Returns: the number of gates that became ``fastcnn.se_scale``."""
    count = 0
    for node in calls(program, aten.mul.Tensor):
        if len(node.args) != 2 or node.kwargs or not all(isinstance(each, fx.Node) for each in node.args):
            continue
        for x, gate in (node.args, node.args[::-1]):
            if not is_map(x) or value(x).dtype not in FLOATING or not _is_pooled(gate):
                continue
            try:
                layers = _layers(node, x, gate)
            except _Left as reason:
                notes.leave(node, f"scales a map by what was pooled, but {reason}")
                continue
            weights = [each for layer in layers for each in (layer.weight, _bias(program, layer))]
            scaled = emit(program, node, SE_SCALE, (x, *weights, *(layer.activation for layer in layers)))
            replace(program, node, emit(program, node, operator.getitem, (scaled, 0)))
            count += 1
            break
    return count


def _is_pooled(gate: fx.Node) -> bool:
    """Whether ``gate`` is made of a global pool, without another map on the way."""
    waiting, seen = [gate], set()
    while waiting and len(seen) < 2 * _LONGEST:
        node = waiting.pop()
        if is_op(node, GLOBAL_AVG_POOL):
            return True
        is_large = is_map(node) and shape(node)[2:] != (1, 1) and not (node is gate and is_op(node, *_REPEATS))
        if node in seen or is_large or node.op != "call_function":
            continue
        seen.add(node)
        waiting += node.args[:1] if is_op(node, *_REPEATS) else node.all_input_nodes
    return False


def _layers(mul: fx.Node, x: fx.Node, gate: fx.Node) -> tuple[_Layer, _Layer]:
    """The two layers between the pool of ``x`` and ``mul``. Raises _Left where there is anything else."""
    chain, reader = _chain(mul, gate)
    if reader is not None:
        raise _Left(f"what is computed on the way is read elsewhere too, behind {_name(reader)}")
    if chain[-1].args[0] is not x:
        raise _Left("the map that was pooled is another one")
    if not all(_is_vector(node, x) for node in chain[1:]):
        raise _Left("the pooled values change their order on the way")
    if not _same(shape(gate), (*shape(x)[:2], 1, 1)) and not (is_op(gate, *_REPEATS) and _same(shape(gate), shape(x))):
        raise _Left("its gate is not one value for each image and channel")
    layers: list[_Layer] = []
    for node in reversed(chain):
        if is_op(node, ACTIVATION):
            if not layers or layers[-1].activation != "identity":
                raise _Left("an activation follows the pool or another activation")
            layers[-1] = layers[-1]._replace(activation=node.args[1])
        elif is_op(node, aten.linear.default):
            layers.append(_Layer(node.args[1], (*node.args, None)[2], "identity"))
        elif is_op(node, CONV):
            conv = Conv.of(node)
            if (
                shape(conv.weight)[2:] != (1, 1)
                or conv.groups != 1
                or conv.residual is not None
                or max(conv.padding) > 0
            ):
                raise _Left("a layer of it is a grouped, padded or larger convolution, or adds a residual")
            layers.append(_Layer(conv.weight, conv.bias, conv.activation))
    if len(layers) != 2:
        raise _Left(f"its layers are {len(layers)}, and se_scale has two")
    return layers[0], layers[1]


def _chain(mul: fx.Node, gate: fx.Node) -> tuple[list[fx.Node], fx.Node | None]:
    """From ``gate`` to the pool; the first node that others read too. Raises _Left at any other operator."""
    chain, reader, user, node = [], None, mul, gate
    while True:
        chain.append(node)
        if only_user(node) is not user and reader is None:
            reader = node
        if is_op(node, GLOBAL_AVG_POOL):
            return chain, reader
        takes_one = is_op(node, *_REPEATS, aten.reshape.default, ACTIVATION, CONV, aten.linear.default)
        if not takes_one or (is_op(node, *_REPEATS) and node is not gate):
            raise _Left(f"{_name(node)} stands between the pool and the gate")
        user, node = node, node.args[0]


def _is_vector(node: fx.Node, x: fx.Node) -> bool:
    """Whether ``node`` is [N, K], or that with dimensions of 1 behind it, with the N of ``x``."""
    sizes = shape(node)
    return len(sizes) > 1 and _same(sizes, (shape(x)[0], sizes[1], 1, 1)[: len(sizes)])


def _same(first: tuple, second: tuple) -> bool:
    return len(first) == len(second) and all(statically_known_true(a == b) for a, b in zip(first, second, strict=True))


def _bias(program: fx.GraphModule, layer: _Layer) -> fx.Node:
    if layer.bias is not None:
        return layer.bias
    like = value(layer.weight)
    zeros = torch.zeros(like.shape[0], dtype=like.dtype, device=like.device)
    owner = layer.weight.target.rpartition(".")[0] if layer.weight.op == "get_attr" else layer.weight.name
    return add_tensor(program, f"{owner}.bias" if owner else "bias", zeros)


def _name(node: fx.Node) -> str:
    return str(node.target).removesuffix(".default")
