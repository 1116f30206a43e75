# SPDX-License-Identifier: Apache-2.0
"""Deliberately wrong ops, and whether the op's own tests notice.

``python -m tests.cross.mutants NAME...`` puts each mutant in the place of the op's CPU kernel, in a fork of one process
that has torch imported already, and runs ``tests/ops/test_<op>*.py`` until the first failure. That failure counts only
if the same test passes with the mutant's unchanged reference in the same place; otherwise the search goes on without
it. One line of JSON a mutant: name, what killed it (null: it survived), how many tests ran, tests that do not count.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fastcnn.ops import _register

TESTS = Path(__file__).parents[1] / "ops"


class Mutant(NamedTuple):
    op: str  # in schemas.txt
    mutate: Callable[..., object]  # called with the right implementation and the op's arguments
    page: str = ""  # the stem of the tests, when it is not the op's

    def tests(self) -> list[str]:
        stem = self.page or self.op.removesuffix("_backward").removesuffix("_train")
        others = {path.stem for path in Path(_register.__file__).parent.glob("*.py")} - {stem}
        found = sorted(TESTS.glob(f"test_{stem}*.py"))
        mine = [p for p in found if not any(p.stem.startswith(f"test_{o}") and len(o) > len(stem) for o in others)]
        return sorted(map(str, mine), key=lambda p: self.op.endswith("_train") and "training" not in p)


def _changed(position: int, change: Callable[[object], object]) -> Callable:
    """The right implementation of other arguments."""

    def mutate(right: Callable, *arguments: object) -> object:
        arguments = list(arguments)
        if arguments[position] is not None:
            arguments[position] = change(arguments[position])
        return right(*arguments)

    return mutate


def _result(change: Callable[[Tensor], Tensor], which: int = 0) -> Callable:
    """The right implementation, one result changed (in place: strides stay)."""

    def mutate(right: Callable, *arguments: object) -> object:
        results = right(*arguments)
        one = results if isinstance(results, Tensor) else results[which]
        one.copy_(change(one.clone()))
        return results

    return mutate


def _residual_after(position: int, kind: int) -> Callable:
    """act(z) + residual in place of act(z + residual)."""

    def mutate(right: Callable, *arguments: object) -> Tensor:
        residual, arguments = arguments[position], list(arguments)
        arguments[position] = None
        y = right(*arguments)
        return y if residual is None else y.add_(residual)

    return mutate


def _last_tap_missing(weight: Tensor) -> Tensor:
    weight = weight.clone()
    weight[:, :, -1, -1] = 0
    return weight


def _border_shifted(padding: Sequence[int]) -> list[int]:
    left, right, top, bottom = padding
    return [left + 1, right - 1, top, bottom] if right > 0 else list(padding)


def _multiplier_order(right: Callable, x: Tensor, weight: Tensor, *rest: object) -> Tensor:
    """Output c * m + j takes channel j's filter of block c, as if x were repeated and not interleaved."""
    m = weight.shape[0] // x.shape[1]
    order = torch.arange(weight.shape[0]).view(x.shape[1], m).T.flatten()
    return right(x, weight[order], *rest)


def _swapped_kernel(right: Callable, x: Tensor, weight: Tensor, *rest: object) -> Tensor:
    """A square kernel read in the other order; other kernels are left alone."""
    return right(x, weight.transpose(2, 3) if weight.shape[2] == weight.shape[3] else weight, *rest)


def _slope_at_the_knots(right: Callable, grad: Tensor, *rest: object) -> object:
    """The slopes of the other side at 0, -3, 3 and 6: x is moved by one step where it lies on one."""
    x = rest[0].clone()
    for knot in (-3.0, 0.0, 3.0, 6.0):
        x = torch.where(x == knot, torch.nextafter(x, torch.full_like(x, -9.0 if knot > 0 else 9.0)), x)
    return right(grad, x, *rest[1:])


def _biased_running_variance(right: Callable, *arguments: object) -> tuple:
    """The batch's share of the new running variance is multiplied by (n - 1) / n."""
    *results, new_var = right(*arguments)
    running, momentum = arguments[2 if len(arguments) == 9 else 6], arguments[-3]
    if running is None or not results[0].numel():
        return *results, new_var
    count = results[0].numel() // results[0].shape[1]
    kept = (1 - momentum) * running
    return *results, (kept + (new_var - kept) * (count - 1) / count).to(running.dtype)


def _unbiased_batch_variance(right: Callable, x: Tensor, *rest: object) -> tuple:
    """y divided by the unbiased deviation: x is shrunk about its mean by sqrt((n - 1) / n) before."""
    count = max(x.numel() // max(x.shape[1], 1), 1)
    mean = x.mean((0, 2, 3), keepdim=True) if x.numel() else 0
    shrunk = (mean + (x - mean) * ((count - 1) / count) ** 0.5).to(x.dtype)
    return right(shrunk, *rest)


def _inverted_groups(right: Callable, x: Tensor, groups: int) -> Tensor:
    return right(x, max(x.shape[1] // groups, 1))


def _wrong_gate(right: Callable, *arguments: object) -> object:
    other = {"hardsigmoid": "sigmoid", "sigmoid": "hardsigmoid"}
    return right(*arguments[:-1], other.get(arguments[-1], "sigmoid"))


def _gate_of_the_first_image(right: Callable, *arguments: object) -> object:
    x, gate, arguments = arguments[0], arguments[4], list(arguments)
    if gate is not None and x.shape[0]:
        arguments[4] = gate[:1].expand_as(gate)
    return right(*arguments)


def _gate_before_the_activation(right: Callable, *arguments: object) -> tuple[Tensor, Tensor]:
    _, scale = right(*arguments[:10], "identity", *arguments[11:])
    return right(*arguments)[0], scale


def _padded_with_zeros(right: Callable, x: Tensor, kernel: list, stride: list, padding: list, ceil_mode: bool) -> Tensor:
    y = right(x, kernel, stride, padding, ceil_mode)
    if max(padding) > 0 and not ceil_mode and y.numel():
        padded = torch.nn.functional.pad(x, (padding[1], padding[1], padding[0], padding[0]))
        y.copy_(right(padded, kernel, stride, [0, 0], False))
    return y


def _last_of_equals(right: Callable, grad: Tensor, x: Tensor, kernel: list, stride: list, padding: list, ceil_mode: bool) -> Tensor:
    """Turned by 180 degrees, where the windows then lie as before."""
    if ceil_mode or any((x.shape[2 + d] + 2 * padding[d] - kernel[d]) % stride[d] for d in (0, 1)):
        return right(grad, x, kernel, stride, padding, ceil_mode)
    turned = right(grad.flip(2, 3), x.flip(2, 3), kernel, stride, padding, ceil_mode)
    return torch.empty_like(turned).copy_(turned.flip(2, 3))


ZERO = _result(torch.zeros_like)
MUTANTS: dict[str, Mutant] = {
    "depthwise-zeros": Mutant("depthwise_conv2d", ZERO),
    "depthwise-border-shifted": Mutant("depthwise_conv2d", _changed(5, _border_shifted)),
    "depthwise-kernel-swapped": Mutant("depthwise_conv2d", _swapped_kernel),
    "depthwise-stride-swapped": Mutant("depthwise_conv2d", _changed(4, lambda s: s[::-1])),
    "depthwise-no-dilation": Mutant("depthwise_conv2d", _changed(6, lambda d: [1, 1])),
    "depthwise-multiplier-order": Mutant("depthwise_conv2d", _multiplier_order),
    "depthwise-last-tap": Mutant("depthwise_conv2d", _changed(1, _last_tap_missing)),
    "depthwise-no-bias": Mutant("depthwise_conv2d", _changed(2, torch.zeros_like)),
    "depthwise-residual-after": Mutant("depthwise_conv2d", _residual_after(3, 7)),
    "depthwise-slope-at-knot": Mutant("activation_backward", _slope_at_the_knots, "activation"),
    "hardswish-slope-at-knot": Mutant("hardswish_backward", _slope_at_the_knots),
    "batch-norm-unbiased-batch": Mutant("batch_norm_act_train", _unbiased_batch_variance),
    "batch-norm-biased-running": Mutant("batch_norm_act_train", _biased_running_variance),
    "batch-norm-eps-ignored": Mutant("batch_norm_act", _changed(6, lambda eps: 0.0)),
    "conv-eps-ignored": Mutant("conv_bn_act", _changed(12, lambda eps: 0.0)),
    "conv-residual-after": Mutant("conv_bn_act", _residual_after(7, 13)),
    "conv-stride-swapped": Mutant("conv_bn_act", _changed(8, lambda s: s[::-1])),
    "shuffle-groups-inverted": Mutant("channel_shuffle", _inverted_groups),
    "shuffle-concat-swapped": Mutant(
        "channel_shuffle_concat", lambda right, x1, x2: right(x2, x1), "channel_shuffle"
    ),
    "se-gate-wrong": Mutant("se_scale", _wrong_gate),
    "pointwise-gate-of-the-first-image": Mutant("pointwise_conv2d", _gate_of_the_first_image),
    "se-gate-activation-wrong": Mutant("se_gate", _changed(5, lambda kind: "identity")),
    "depthwise-se-gate-before-the-activation": Mutant("depthwise_se_gate", _gate_before_the_activation),
    "max-pool-padded-with-zeros": Mutant("max_pool2d", _padded_with_zeros),
}
# beyond the list of STYLE.md: for the long form
MUTANTS_AT_LENGTH: dict[str, Mutant] = {
    "activation-zeros": Mutant("activation", ZERO),
    "activation-off-by-4-ulp": Mutant("activation", _result(lambda y: y * (1 + 4 * torch.finfo(y.dtype).eps))),
    "hardswish-zeros": Mutant("hardswish", ZERO),
    "depthwise-backward-x": Mutant("depthwise_conv2d_backward", _result(lambda g: g.flip(-1))),
    "depthwise-backward-weight": Mutant(
        "depthwise_conv2d_backward",
        _result(lambda g: g.transpose(2, 3) if g.dim() == 4 and g.shape[2] == g.shape[3] else g, 1),
    ),
    "depthwise-backward-bias": Mutant("depthwise_conv2d_backward", _result(lambda g: g * 0.5, 2)),
    "depthwise-one-wrong-element": Mutant(
        "depthwise_conv2d", _result(lambda y: y.index_fill_(3, torch.tensor([y.shape[3] - 1]), 0))
    ),
    "conv-zeros": Mutant("conv_bn_act", ZERO),
    "conv-no-bias": Mutant("conv_bn_act", _changed(2, torch.zeros_like)),
    "conv-no-bn-bias": Mutant("conv_bn_act", _changed(4, torch.zeros_like)),
    "conv-last-tap": Mutant("conv_bn_act", _changed(1, _last_tap_missing)),
    "conv-border-shifted": Mutant("conv_bn_act", _changed(9, _border_shifted)),
    "conv-biased-running": Mutant("conv_bn_act_train", _biased_running_variance),
    "conv-backward-x": Mutant("conv_bn_act_backward", _result(lambda g: g * 0.999)),
    "conv-backward-weight": Mutant("conv_bn_act_backward", _result(lambda g: g * 0.999, 1)),
    "batch-norm-backward-x": Mutant("batch_norm_act_backward", _result(lambda g: g - g.mean() * 0.1)),
    "batch-norm-residual-after": Mutant("batch_norm_act", _residual_after(5, 7)),
    "shuffle-identity": Mutant("channel_shuffle", lambda right, x, groups: right(x, 1)),
    "pointwise-zeros": Mutant("pointwise_conv2d", ZERO),
    "pointwise-prologue-ignored": Mutant("pointwise_conv2d", _changed(7, lambda kind: "identity")),
    "pointwise-no-shift": Mutant("pointwise_conv2d", _changed(6, torch.zeros_like)),
    "pointwise-residual-after": Mutant("pointwise_conv2d", _residual_after(3, 8)),
    "se-activation-wrong": Mutant("se_scale", _changed(5, lambda kind: "identity")),
    "se-backward-w1": Mutant("se_scale_backward", _result(lambda g: -g, 1)),
    "pool-sum": Mutant("global_avg_pool", _result(lambda y: y * 1.01)),
    "max-pool-zeros": Mutant("max_pool2d", ZERO),
    "max-pool-backward-ties": Mutant("max_pool2d_backward", _last_of_equals),
    "pool-backward": Mutant("global_avg_pool_backward", _result(lambda y: y * 1.01)),
}


class _Failures:
    """A pytest plugin: which tests failed, and how many ran."""

    def __init__(self) -> None:
        self.nodes: list[str] = []
        self.ran = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.ran += report.when == "call"
        if report.failed:
            self.nodes.append(report.nodeid)


def _in_fork(implementation: Callable, op: str, *arguments: str) -> tuple[list[str], int]:
    """(failing tests, tests run) of a pytest run with ``implementation`` as the op's CPU kernel."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            library = torch.library.Library("fastcnn", "IMPL")
            library.impl(op, implementation, "CPU")
            plugin = _Failures()
            options = ["-q", "--assert=plain", "-m", "not long and not large", "-p", "no:cacheprovider", "-W", "ignore"]
            code = pytest.main([*options, *arguments], plugins=[plugin])
        failed = plugin.nodes if code in (0, 1) else [f"pytest ended with {code}"]
        os.write(writing, json.dumps([failed, plugin.ran]).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return tuple(json.loads(text)) if text else (["the process died"], 0)


def main(names: Sequence[str]) -> None:
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # a fork starts in a fraction of a second without them
    unfit: dict[str, list[str]] = {}  # by op: tests that the reference fails as well, such as those of its bits
    for name in names:
        mutant = (MUTANTS | MUTANTS_AT_LENGTH)[name]
        right = _register.REFERENCES[_register.overload(mutant.op)]

        def wrong(*arguments: object, mutant: Mutant = mutant, right: Callable = right) -> object:
            return mutant.mutate(right, *arguments)

        tests, skipped = mutant.tests(), unfit.setdefault(mutant.op, [])
        killer, ran = None, 0
        while tests and killer is None:
            failed, ran = _in_fork(wrong, mutant.op, "--maxfail=4", *(f"--deselect={node}" for node in skipped), *tests)
            if not failed or "::" not in failed[0]:
                killer = failed[0] if failed else None
                break
            vain, _ = _in_fork(right, mutant.op, *failed)
            killer = next((node for node in failed if node not in vain), None)
            skipped += vain
        print(json.dumps({"name": name, "killer": killer, "ran": ran, "unfit": skipped}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or [*MUTANTS])
