# SPDX-License-Identifier: Apache-2.0
"""What must hold for an accelerated net, whatever the net."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves

from fastcnn.accelerate.program import BATCH_NORM, is_op
from tests.accelerate.random_builder import Recipe

FLOOR = 1e-5  # of the size that errors are relative to: an output that cancels to rounding noise has no relative error
NO_REASON = "no fused form of it"  # what the report says where no rewrite gave a reason
BATCH_NORMS = (BATCH_NORM, torch.ops.aten.batch_norm, torch.ops.aten._native_batch_norm_legit_no_training)


def run(net: nn.Module, inputs: tuple[Tensor, ...], memory_format: torch.memory_format | None = None) -> Any:
    """On copies: a net may write to what it is given."""
    kind = memory_format or torch.contiguous_format
    with torch.no_grad():
        return net(*(each.clone(memory_format=kind) for each in inputs))


def assert_equal_outputs(got: Any, exact: Any, dtype: torch.dtype, own: tuple[Any, ...] = (), what: str = "") -> None:
    """Structure, shapes and dtype; every value by the rule of DESIGN.md 6: 1e-9 in fp64, else 1e-5 or 5 times ``own``."""
    flat, spec = tree_flatten(got)
    wanted, wanted_spec = tree_flatten(exact)
    assert spec == wanted_spec, f"{what}: the structure is {spec}, wanted {wanted_spec}"
    rivals = [tree_leaves(each) for each in own]
    for i, (ours, reference) in enumerate(zip(flat, wanted, strict=True)):
        where = f"{what}, output {i}"
        assert ours.shape == reference.shape, f"{where}: {list(ours.shape)}, wanted {list(reference.shape)}"
        assert ours.dtype == dtype, f"{where}: {ours.dtype}, wanted {dtype}"
        if not reference.numel():
            continue
        allowed = (1e-9 if dtype == torch.float64 else 1e-5) * max(reference.abs().max().item(), FLOOR)
        allowed = max([allowed, *(5 * (rival[i].double() - reference).abs().max().item() for rival in rivals)])
        error = (ours.double() - reference).abs().max().item()
        assert error <= allowed, f"{where}: {error:.3g} off, allowed {allowed:.3g}"


def check(recipe: Recipe, accelerate: Any, *, single: bool = True, twice: bool = True) -> nn.Module:
    """Every claim about ``accelerate(net, example)`` for this net; ``single`` adds fp32, ``twice`` accelerates the result.

    Returns: the accelerated net, in fp64.
    """
    net = recipe.module().double()
    before = deepcopy(net.state_dict())
    batches = dict.fromkeys([recipe.batch, 1, recipe.batch + 2])
    inputs = {batch: recipe.example(batch, torch.float64) for batch in batches}
    exact = {batch: run(net, inputs[batch]) for batch in batches}
    example = recipe.example(dtype=torch.float64)
    fast = accelerate(net, example)
    assert all(map(torch.equal, example, inputs[recipe.batch])), "accelerate wrote to the example"
    first = None
    for batch in batches:
        given = recipe.example(batch, torch.float64)
        with torch.no_grad():
            got = fast(*given)
        assert all(map(torch.equal, given, inputs[batch])), f"batch {batch}: the accelerated net wrote to its input"
        assert_equal_outputs(got, exact[batch], torch.float64, what=f"fp64, batch {batch}")
        first = got if first is None else first
    assert_equal_outputs(first, exact[recipe.batch], torch.float64, what="the first result, after later calls")
    after = net.state_dict()
    assert list(after) == list(before), "the original has other weights"
    assert all(torch.equal(after[name], before[name]) for name in before), "the original's weights are changed"
    assert not any(module.training for module in net.modules()), "the original is in training mode"
    for now, then in zip(tree_leaves(run(net, inputs[1])), tree_leaves(exact[1]), strict=True):
        assert torch.equal(now, then), "the original computes something else"
    assert_report(fast)
    if single:
        _check_single(recipe, accelerate, twice)
    return fast


def _check_single(recipe: Recipe, accelerate: Any, twice: bool) -> None:
    net, inputs = recipe.module(), recipe.example()
    exact = run(recipe.module().double(), tuple(each.double() for each in inputs))
    own = tuple(run(net, inputs, kind) for kind in (torch.contiguous_format, torch.channels_last))
    fast = accelerate(net, inputs)
    assert_equal_outputs(run(fast, inputs), exact, torch.float32, own, "fp32")
    assert_equal_outputs(run(fast, inputs, torch.channels_last), exact, torch.float32, own, "fp32, channels_last")
    if twice:
        again = accelerate(fast, inputs)
        assert_equal_outputs(run(again, inputs), exact, torch.float32, own, "accelerated twice")


def assert_report(fast: nn.Module) -> None:
    """Counts are counts, errors were measured, and every batch norm that is left has its reason."""
    found = fast.report.to_dict()
    json.dumps(found)
    counts = [*found["fused"].values(), *found["bytes"].values(), *found["launches"].values()]
    assert all(isinstance(count, int) and count >= 0 for count in counts), found
    assert all(row["count"] > 0 for row in (*found["operators"].values(), *found["left"])), found
    assert all(row["fp64"] is not None and row["fp64"] <= row["allowed"] for row in found["errors"].values()), found
    norms = [node for node in fast.program.graph.nodes if is_op(node, *BATCH_NORMS)]
    explained = [row for row in found["left"] if "batch_norm" in row["operator"]]
    assert sum(row["count"] for row in explained) == len(norms), f"{len(norms)} batch norms, explained: {explained}"
    assert all(row["reason"] != NO_REASON for row in explained), explained
