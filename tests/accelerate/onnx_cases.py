# SPDX-License-Identifier: Apache-2.0
"""For each inference op the calls that its ONNX translation is held against, and a module that makes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastcnn.ops._checks import ACTIVATIONS, SAME
from fastcnn.ops._register import REFERENCES, overload
from fastcnn.testing import DEPTHWISE_CASES, Case
from tests.ops.test_max_pool2d import CASES as POOLS


class Map(NamedTuple):
    """An input of the exported model: ``[N, *sizes]``, N chosen when it runs."""

    sizes: tuple[int, ...]

    def draw(self, batch: int) -> Tensor:
        return 3 * torch.randn(batch, *self.sizes)


class Weight(str):
    """The name of a buffer."""


class Calls(nn.Module):
    """The same op called with several lists of arguments: a Map becomes an input, a tensor a weight."""

    def __init__(self, op: str, cases: dict[str, tuple], function: Any = None) -> None:
        super().__init__()
        self.function = function or overload(op)
        self.calls = []
        for label, arguments in cases.items():
            places: list[Any] = []
            for argument in arguments:
                if isinstance(argument, Tensor):
                    name = f"w{len(self._buffers)}"
                    self.register_buffer(name, argument)
                    argument = Weight(name)
                places.append(argument)
            self.calls.append((label, places))

    @property
    def maps(self) -> list[Map]:
        return [place for _, places in self.calls for place in places if isinstance(place, Map)]

    def outputs(self, function: Any, inputs: tuple[Tensor, ...]) -> Iterator[tuple[str, Tensor]]:
        waiting = iter(inputs)
        for label, places in self.calls:
            arguments = [next(waiting) if isinstance(p, Map) else self.get_buffer(p) if isinstance(p, Weight) else p
                         for p in places]  # fmt: skip
            found = function(*arguments)
            for index, each in enumerate(found if isinstance(found, tuple) else (found,)):
                yield f"{label}[{index}]", each

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        return [each for _, each in self.outputs(self.function, inputs)]

    def exact(self, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Of the plain-torch reference in float64; ``self`` becomes float64 too."""
        return dict(self.double().outputs(REFERENCES[self.function], tuple(x.double() for x in inputs)))


def vector(size: int) -> Tensor:
    return torch.randn(size)


def variance(size: int) -> Tensor:
    return torch.rand(size) + 0.5


def four(padding: Any) -> list[int]:
    return list(SAME if padding == "same" else (0, 0, 0, 0) if padding == "valid" else padding)


def output_of(case: Case) -> Map:
    """The shape of the result, for a residual."""
    x, padding = torch.empty(1, case.C, case.H, case.W, device="meta"), four(case.padding)
    y = torch.ops.fastcnn.conv_bn_act(x, case.weight().to("meta"), None, None, None, None, None, None, case.stride,
                                      padding, case.dilation, case.groups, 0.0, "identity")  # fmt: skip
    return Map(tuple(y.shape[1:]))


def activations() -> dict[str, tuple]:
    cases = {kind: (Map((3, 5, 7)), kind) for kind in ACTIVATIONS}
    return cases | {"vectors": (Map((9,)), "silu"), "5-d": (Map((2, 3, 2, 5)), "relu6")}


def shuffles() -> dict[str, tuple]:
    cases = {f"{groups} groups": (Map((12, 5, 3)), groups) for groups in (1, 2, 3, 12)}
    return cases | {"3-d": (Map((6, 5)), 2), "5-d": (Map((6, 2, 3, 4)), 3)}


def squeeze_excites() -> dict[str, tuple]:
    def arguments(channels: int, squeezed: int, size: tuple[int, int], tail: tuple, *kinds: str) -> tuple:
        first, second = (torch.randn(a, b, *tail) / b**0.5 for a, b in ((squeezed, channels), (channels, squeezed)))
        return Map((channels, *size)), first, vector(squeezed), second, vector(channels), *kinds

    cases = {f"{a}-{g}": arguments(8, 3, (7, 5), (), a, g) for a, g in zip(ACTIVATIONS, reversed(ACTIVATIONS))}
    return cases | {"convolutions": arguments(7, 1, (1, 1), (1, 1), "relu", "hardsigmoid")}


def batch_norms() -> dict[str, tuple]:
    def arguments(kind: str, affine: str, residual: bool, eps: float = 1e-3) -> tuple:
        weight, bias = (vector(5) if name in affine else None for name in "wb")
        rest = Map((5, 7, 3)) if residual else None
        return Map((5, 7, 3)), vector(5), variance(5), weight, bias, rest, eps, kind

    cases = {kind: arguments(kind, "wb", index % 2 == 0) for index, kind in enumerate(ACTIVATIONS)}
    return cases | {f"affine-{a}": arguments("relu", a, a == "b") for a in ("", "w", "b")} | {
        "eps-0": arguments("identity", "wb", False, 0.0)
    }  # fmt: skip


def depthwise() -> dict[str, tuple]:
    def arguments(case: Case, bias: bool, residual: bool, kind: str) -> tuple:
        rest = output_of(case) if residual else None
        return (Map((case.C, case.H, case.W)), case.weight(), vector(case.out) if bias else None, rest, case.stride,
                four(case.padding), case.dilation, kind)  # fmt: skip

    found = {}
    for index, case in enumerate(DEPTHWISE_CASES):
        kind = ACTIVATIONS[index % len(ACTIVATIONS)]
        found[f"{case.name}-{kind}"] = arguments(case, index % 2 == 0, index % 3 == 0, kind)
    return found


def depthwise_se_gates() -> dict[str, tuple]:
    found = {}
    for index, (name, (x, weight, bias, _, *window, kind)) in enumerate(depthwise().items()):
        channels, squeeze = weight.shape[0], ACTIVATIONS[(index + 2) % len(ACTIVATIONS)]
        first, second = torch.randn(3, channels, 1, 1) / channels**0.5, torch.randn(channels, 3, 1, 1)
        layers = first, vector(3), second, vector(channels)
        found[name] = (x, weight, bias, *layers, *window, kind, squeeze, "hardsigmoid")
    return found


CONVOLUTIONS = (
    Case("1x1", 2, 5, 7, 9, 6, (1, 1), padding="valid"),
    Case("1x1-same-s2", 2, 5, 7, 8, 4, (1, 1), (2, 2), "same"),
    Case("3x3-s2", 2, 3, 15, 13, 8, (3, 3), (2, 2)),
    Case("asymmetric", 2, 3, 8, 9, 4, (3, 5), (2, 1), (0, 3, 2, 1)),
    Case("pad-exceeds-kernel", 2, 3, 4, 4, 5, (3, 3), (1, 1), (4, 0, 0, 5)),
    Case("same-even", 2, 3, 12, 14, 4, (3, 3), (2, 2), "same"),
    Case("same-odd", 2, 3, 13, 11, 4, (5, 5), (2, 2), "same"),
    Case("same-s3", 2, 3, 11, 10, 4, (2, 4), (3, 3), "same"),
    Case("same-dilated", 2, 3, 11, 12, 4, (3, 3), (1, 1), "same", (2, 3)),
    Case("same-dilated-s2", 2, 3, 11, 12, 4, (3, 3), (2, 2), "same", (2, 2)),
    Case("dilated", 2, 4, 11, 12, 4, (3, 3), (1, 2), (2, 2, 2, 2), (2, 2)),
    Case("groups", 2, 6, 9, 8, 9, (3, 3), (1, 1), (1, 1, 1, 1), groups=3),
    Case("depthwise", 2, 6, 9, 8, 6, (3, 3), (2, 2), (1, 1, 1, 1), groups=6),
    Case("stem", 2, 3, 17, 17, 8, (7, 7), (2, 2), (3, 3, 3, 3)),
)


def convolutions() -> dict[str, tuple]:
    def arguments(case: Case, bias: bool, norm: str, residual: bool, kind: str) -> tuple:
        gamma, beta, mean, var = (
            {"w": vector, "b": vector, "m": vector, "v": variance}[name](case.out) if name in norm else None
            for name in "wbmv"
        )
        rest = output_of(case) if residual else None
        return (Map((case.C, case.H, case.W)), case.weight(), vector(case.out) if bias else None, gamma, beta, mean,
                var, rest, case.stride, four(case.padding), case.dilation, case.groups, 1e-3, kind)  # fmt: skip

    found = {}
    for index, case in enumerate(CONVOLUTIONS):
        kind, norm = ACTIVATIONS[index % len(ACTIVATIONS)], ("wbmv", "", "mv", "wmv", "bmv")[index % 5]
        found[f"{case.name}-{norm}-{kind}"] = arguments(case, index % 2 == 0, norm, index % 3 == 0, kind)
    return found


def pointwise() -> dict[str, tuple]:
    def arguments(*given: str, prologue: str = "identity", activation: str = "identity") -> tuple:
        tensors = {
            "bias": vector(4),
            "residual": Map((4, 5, 3)),
            "gate": Map((6,)),
            "scale": vector(6),
            "shift": vector(6),
        }
        chosen = [tensor if name in given else None for name, tensor in tensors.items()]
        return Map((6, 5, 3)), torch.randn(4, 6, 1, 1), *chosen, prologue, activation

    cases = {kind: arguments("bias", prologue=kind, activation=kind) for kind in ACTIVATIONS}
    return cases | {
        "bare": arguments(),
        "pre-activation": arguments("scale", "shift", prologue="relu"),
        "gated": arguments("bias", "gate", activation="relu6"),
        "all": arguments("bias", "residual", "gate", "scale", "shift", prologue="silu", activation="relu"),
    }


def pools() -> dict[str, tuple]:
    def pair(value: Any) -> list[int]:
        return [value, value] if isinstance(value, int) else list(value)

    return {
        name: (Map(shape[1:]), pair(window.kernel_size), pair(window.stride or window.kernel_size),
               pair(window.padding), window.ceil_mode)
        for name, (shape, window) in POOLS.items() if shape[1]
    }  # fmt: skip


CASES = {
    "activation": activations,
    "hardswish": lambda: {"map": (Map((3, 5, 7)),), "vectors": (Map((9,)),)},
    "channel_shuffle": shuffles,
    "channel_shuffle_concat": lambda: {"odd": (Map((3, 5, 7)),) * 2, "one": (Map((1, 1, 2)),) * 2},
    "global_avg_pool": lambda: {"odd": (Map((3, 7, 5)),), "pixel": (Map((4, 1, 1)),)},
    "se_scale": squeeze_excites,
    "se_gate": squeeze_excites,
    "batch_norm_act": batch_norms,
    "depthwise_conv2d": depthwise,
    "depthwise_se_gate": depthwise_se_gates,
    "conv_bn_act": convolutions,
    "pointwise_conv2d": pointwise,
    "max_pool2d": pools,
}
