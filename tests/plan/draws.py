# SPDX-License-Identifier: Apache-2.0
"""Steps at random, by kind: every argument that their kernels have."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.plan import trials
from tests.plan.trials import ACTIVATIONS, Trial, Window

KERNELS = [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6), (7, 7), (1, 7), (7, 1), (3, 1), (2, 5)]


def draw_window(rng: random.Random, H: int, W: int) -> Window:
    """One whose output has a pixel."""
    while True:
        kernel = rng.choice(KERNELS)
        stride, dilation = ((rng.randint(1, 3), rng.randint(1, 3)) for _ in range(2))
        dilation = dilation if rng.random() < 0.3 else (1, 1)
        even = rng.random() < 0.6
        pads = [rng.randint(0, k) for k in kernel]
        padding = (pads[1], pads[1], pads[0], pads[0]) if even else tuple(rng.randint(0, 4) for _ in range(4))
        window = Window(kernel, stride, padding, dilation)
        if min(window.output(H, W)) > 0:
            return window


def coin(rng: random.Random) -> bool:
    return rng.random() < 0.5


def any_activation(rng: random.Random) -> str:
    return rng.choice(list(ACTIVATIONS))


def draw_pointwise(rng: random.Random, C: int, H: int, W: int) -> Trial:
    simple = coin(rng)
    extra = {} if simple else {name: coin(rng) for name in ("gate", "scale", "shift")}
    return trials.pointwise(C, rng.randint(1, 67), H, W, bias=coin(rng), residual=coin(rng), **extra,
                            prologue="identity" if simple else any_activation(rng), activation=any_activation(rng))  # fmt: skip


def draw_conv(rng: random.Random, C: int, H: int, W: int) -> Trial:
    groups = rng.choice([g for g in range(1, C + 1) if C % g == 0]) if rng.random() < 0.4 else 1
    O = groups * rng.randint(1, max(1, 67 // groups))
    return trials.conv(C, O, H, W, draw_window(rng, H, W), groups=groups, bias=coin(rng), residual=coin(rng),
                       activation=any_activation(rng), picture=coin(rng))  # fmt: skip


def draw_depthwise(rng: random.Random, C: int, H: int, W: int) -> Trial:
    return trials.depthwise(C, H, W, draw_window(rng, H, W), bias=coin(rng), residual=coin(rng), sums=coin(rng),
                            activation=any_activation(rng))  # fmt: skip


def draw_inverted_residual(rng: random.Random, C: int, H: int, W: int) -> Trial:
    while True:
        kernel = rng.choice((3, 5, 7))
        padding = tuple(rng.randint(0, kernel - 1) for _ in range(4))
        stride = rng.randint(1, 3)
        if min(Window((kernel, kernel), (stride, stride), padding).output(H, W)) > 0:
            break
    expand, project = rng.choice(((True, True), (True, False), (False, True)))
    channels = rng.randint(1, 67) if expand else C
    return trials.inverted_residual(C, channels, rng.randint(1, 67) if project else channels, H, W, kernel, stride, padding,
                                    expand=expand, project=project, bias=coin(rng), residual=project and coin(rng),
                                    sums=not project and coin(rng),
                                    activations=(any_activation(rng), any_activation(rng), any_activation(rng)))  # fmt: skip


def draw_pool(rng: random.Random, C: int, H: int, W: int) -> Trial:
    kind = rng.choice(list(trials.POOLS))
    while True:
        kernel, stride = rng.choice(KERNELS), (rng.randint(1, 3), rng.randint(1, 3))
        padding = tuple(rng.randint(0, k // 2) for k in kernel)
        if kernel[0] <= H + 2 * padding[0] and kernel[1] <= W + 2 * padding[1]:
            return trials.pool(kind, C, H, W, kernel, stride, padding, coin(rng))


def draw_elementwise(rng: random.Random, C: int, H: int, W: int) -> Trial:
    return trials.elementwise(rng.choice(list(trials.BINARIES)), C, H, W, one_pixel=coin(rng), scale=coin(rng),
                              shift=coin(rng), residual=coin(rng), activation=any_activation(rng))  # fmt: skip


def draw_shuffle(rng: random.Random, C: int, H: int, W: int) -> Trial:
    if coin(rng):
        return trials.shuffle(C, 2, H, W, two=True)
    return trials.shuffle(C, rng.choice([g for g in range(1, C + 1) if C % g == 0]), H, W)


DRAWS: dict[str, Callable[[random.Random, int, int, int], Trial]] = {
    "pointwise": draw_pointwise,
    "conv": draw_conv,
    "depthwise": draw_depthwise,
    "inverted_residual": draw_inverted_residual,
    "global_pool": lambda rng, C, H, W: trials.global_pool(C, H, W),
    "pool": draw_pool,
    "adaptive_pool": lambda rng, C, H, W: trials.adaptive_pool(C, H, W, rng.randint(1, 9), rng.randint(1, 9)),
    "elementwise": draw_elementwise,
    "shuffle": draw_shuffle,
}
