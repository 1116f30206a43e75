# SPDX-License-Identifier: Apache-2.0
"""Bugs to plant in accelerate(), each of a kind that rewrites of networks have had."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from torch import fx

from fastcnn.accelerate.program import (
    ACTIVATION,
    BATCH_NORM,
    CHANNEL_SHUFFLE,
    CONV,
    DEPTHWISE,
    MAX_POOL,
    POINTWISE,
    SE_GATE,
    SE_SCALE,
    SHUFFLE_CONCAT,
    aten,
    calls,
    is_op,
)
from fastcnn.accelerate.rewrites import REWRITES
from tests.accelerate.random_builder import Recipe

RESIDUAL = {CONV: 7, DEPTHWISE: 3, BATCH_NORM: 5, POINTWISE: 3}
PADDING, STRIDE = {CONV: 9, DEPTHWISE: 5}, {CONV: 8, DEPTHWISE: 4}
Change = Callable[[fx.Node], bool]


@dataclass(frozen=True)
class Plant:
    """A bug: ``change`` alters the nodes of ``targets`` before or after a rewrite and tells whether it did.

    ``hint`` is a regular expression that the source of every net holds in which the bug can show.
    """

    name: str
    targets: tuple
    change: Change
    where: str = "last"
    hint: str = ""
    quick: bool = False

    def concerns(self, recipe: Recipe) -> bool:
        return re.search(self.hint, recipe.source) is not None

    def put_in(self, monkeypatch: pytest.MonkeyPatch) -> list[fx.Node]:
        """Returns: the nodes that were altered, to be cleared by the caller."""
        bitten: list[fx.Node] = []
        when, _, name = self.where.partition(" ")
        name = name or "depthwise"  # the last that runs on a CPU
        original = REWRITES[name]

        def spoil(program: fx.GraphModule) -> None:
            bitten.extend(node for node in calls(program, *self.targets) if self.change(node))

        def rewrite(program: fx.GraphModule, notes: object) -> int:
            if when == "before":
                spoil(program)
            count = original(program, notes)
            if when != "before":
                spoil(program)
            return count

        monkeypatch.setitem(REWRITES, name, rewrite)
        return bitten


@dataclass(frozen=True)
class Patch(Plant):
    """A bug in a function of a module: ``spoiled(original)`` takes its place."""

    function: str = ""
    spoiled: Callable = lambda original: original

    def put_in(self, monkeypatch: pytest.MonkeyPatch) -> list[fx.Node]:
        module, _, name = self.function.rpartition(".")
        module = sys.modules[f"fastcnn.accelerate.{module}"]
        bitten: list = []
        wrapped = self.spoiled(getattr(module, name))

        def called(*args: object) -> object:
            bitten.append(name)
            return wrapped(*args)

        monkeypatch.setattr(module, name, called)
        return bitten


def _set(node: fx.Node, index: int, new: object) -> bool:
    if node.args[index] == new:
        return False
    node.update_arg(index, new)
    return True


def _no_eps(node: fx.Node) -> bool:
    return _set(node, 6, 0.0)


def _no_bias(node: fx.Node) -> bool:
    return any(is_op(user, BATCH_NORM) for user in node.users) and _set(node, 2, None)


def _no_residual(node: fx.Node) -> bool:
    return _set(node, RESIDUAL[node.target], None)


def _other_side(node: fx.Node) -> bool:
    index = PADDING[node.target]
    left, right, top, bottom = node.args[index]
    return _set(node, index, (right, left, bottom, top))


def _square_stride(node: fx.Node) -> bool:
    index = STRIDE[node.target]
    return _set(node, index, (node.args[index][1], node.args[index][0]))


def _for_every_reader(node: fx.Node) -> bool:
    """As if the activation's convolution had no other reader."""
    source = node.args[0]
    if not is_op(source, CONV, BATCH_NORM):
        return False
    later = list(node.graph.nodes)
    later = set(later[later.index(node) + 1 :])
    changed = source.replace_all_uses_with(node, delete_user_cb=lambda user: user in later)
    return any(user is not node for user in changed) and bool(set(changed) & later)


def _other_kind(node: fx.Node) -> bool:
    swapped = {"relu6": "relu", "hardswish": "silu", "silu": "hardswish"}
    return node.args[-1] in swapped and _set(node, len(node.args) - 1, swapped[node.args[-1]])


def _other_groups(node: fx.Node) -> bool:
    return _set(node, 1, node.args[0].meta["val"].shape[1] // node.args[1])


def _other_order(node: fx.Node) -> bool:
    if node.target is SHUFFLE_CONCAT:
        return node.args[0] is not node.args[1] and _set(node, 0, node.args[1])
    return node.args[1] == 1 and _set(node, 0, list(node.args[0])[::-1])


def _from_the_first_channel(node: fx.Node) -> bool:
    if node.args[1] != 1 or not isinstance(node.args[2], int) or len(node.args) > 4 or node.args[2] == 0:
        return False
    length = node.meta["val"].shape[1]
    return _set(node, 2, 0) | _set(node, 3, length)


def _other_ceil(node: fx.Node) -> bool:
    return _set(node, 4, not node.args[4])


def _other_gate(node: fx.Node) -> bool:
    last = len(node.args) - 1
    return _set(node, last, "sigmoid" if node.args[last] == "hardsigmoid" else "hardsigmoid")


def _fixed_batch(node: fx.Node) -> bool:
    sizes = list(node.args[1])
    return bool(sizes) and sizes[0] == -1 and _set(node, 1, [2, *sizes[1:]])


def _positive_gamma(original: Callable) -> Callable:
    def scale_and_shift(*args: object) -> object:
        found = original(*args)
        return None if found is None else (found[0].abs(), found[1])

    return scale_and_shift


def _no_mean(original: Callable) -> Callable:
    def scale_and_shift(program: fx.GraphModule, norm: fx.Node) -> object:
        found = original(program, norm)
        bias = norm.args[4] if norm.target is BATCH_NORM else norm.args[2]
        if found is None or bias is None:
            return found
        return found[0], program.get_parameter(bias.target).double()

    return scale_and_shift


def _seen(node: fx.Node) -> bool:
    return True


CONVS = (CONV, DEPTHWISE)
FOLD = "rewrites.fold_batch_norm"
PLANTS = [
    Plant("eps forgotten", (BATCH_NORM,), _no_eps, "before fold_batch_norm", "BatchNorm2d", quick=True),
    Plant("bias of the convolution forgotten", (CONV,), _no_bias, "before fold_batch_norm", "BatchNorm2d"),
    Plant("residual dropped", (*CONVS, POINTWISE, BATCH_NORM), _no_residual, hint=r"add|\+", quick=True),
    Plant("second reader ignored", (ACTIVATION,), _for_every_reader, "before conv_activation", quick=True),
    Plant("another activation", (*CONVS, POINTWISE, BATCH_NORM, ACTIVATION), _other_kind, hint="elu6|ardswish|SiLU|silu"),
    Plant("shuffle groups swapped", (CHANNEL_SHUFFLE,), _other_groups, hint="huffle|transpose|permute|stack"),
    Plant("concatenated the wrong way", (aten.cat.default, SHUFFLE_CONCAT), _other_order, hint="cat|stack"),
    Plant("SAME on the wrong side", CONVS, _other_side, hint="F.pad", quick=True),
    Plant("stride transposed", CONVS, _square_stride, hint=r"\(2, 1\)"),
    Plant("slice from the first channel", (aten.slice.Tensor,), _from_the_first_channel, hint=r"chunk|split|narrow|\[:"),
    Plant("ceil_mode turned round", (MAX_POOL,), _other_ceil, hint="MaxPool2d"),
    Plant("another gate", (SE_SCALE, SE_GATE), _other_gate, hint="fc"),
    Plant("batch size of two", (aten.reshape.default,), _fixed_batch, hint="flatten|view|reshape|mean"),
    Patch("absolute gamma", (), _seen, hint="BatchNorm", function=f"{FOLD}.scale_and_shift", spoiled=_positive_gamma),
    Patch("mean forgotten", (), _seen, hint="BatchNorm", function=f"{FOLD}.scale_and_shift", spoiled=_no_mean),
    Patch("views of what is written are stale", (), _seen, function="capture._join",
          spoiled=lambda original: lambda *groups: None),
]  # fmt: skip
