# SPDX-License-Identifier: Apache-2.0
"""One step of a plan at a time: what it reads and writes, how a plan holds it, and what it computes in plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastcnn.accelerate.plan import words
from fastcnn.accelerate.plan.builder import Builder, Plan, StepNote, View
from fastcnn.accelerate.plan.planned import lanes
from fastcnn.accelerate.plan.weights import Blob
from fastcnn.accelerate.plan.words import NONE, Binary, Pool

Shape = tuple[int, int, int]  # C, H, W
Maps = dict[str, Tensor]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
}
POOLS = {"max": Pool.MAX, "mean": Pool.MEAN, "mean_of_valid": Pool.MEAN_OF_VALID}
BINARIES = {"none": Binary.NONE, "add": Binary.ADD, "multiply": Binary.MULTIPLY, "subtract": Binary.SUBTRACT}
LAYOUTS = ("dense", "sliced", "arena", "late")


@dataclass
class Trial:
    """One step. ``step`` makes it of a builder and the numbers of its values; ``exact`` computes in any floating dtype."""

    reads: dict[str, Shape]
    writes: dict[str, Shape]
    step: Callable[[Builder, dict[str, int]], object]
    exact: Callable[[Maps], Maps]
    reduction: int = 1  # products in a value of y
    picture: bool = False  # x is read as the caller laid it out

    def draw(self, images: int) -> Maps:
        return {name: torch.randn(images, *shape) for name, shape in self.reads.items()}


class Window(NamedTuple):
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (1, 1, 1, 1)  # left, right, top, bottom
    dilation: tuple[int, int] = (1, 1)

    def output(self, H: int, W: int) -> tuple[int, int]:
        left, right, top, bottom = self.padding
        sizes = zip((H + top + bottom, W + left + right), self.kernel, self.stride, self.dilation, strict=True)
        return tuple((size - d * (k - 1) - 1) // s + 1 for size, k, s, d in sizes)


AROUND = Window()


def weight_of(*shape: int) -> Tensor:
    return torch.randn(shape) / math.sqrt(math.prod(shape[1:]))


def maybe(wanted: bool, *shape: int) -> Tensor | None:
    return torch.randn(shape) if wanted else None


def like(tensor: Tensor | None, x: Tensor) -> Tensor | None:
    return None if tensor is None else tensor.to(x.dtype)


def spread(vector: Tensor | None, x: Tensor, default: float) -> Tensor:
    return x.new_full((1, 1, 1), default) if vector is None else vector.to(x.dtype)[:, None, None]


def vector(builder: Builder, values: Tensor | None, groups: int = 1) -> int:
    return NONE if values is None else builder.blob.vector(values, groups)


def kind_of(activation: str) -> int:
    return words.ACTIVATIONS.index(activation)


def pointwise(C: int, O: int, H: int = 1, W: int = 1, *, bias: bool = True, residual: bool = False, gate: bool = False,
              scale: bool = False, shift: bool = False, prologue: str = "identity", activation: str = "identity") -> Trial:  # fmt: skip
    weight, b = weight_of(O, C), maybe(bias, O)
    factors, shifts = maybe(scale, C), maybe(shift, C)

    def step(builder: Builder, at: dict[str, int]) -> object:
        return words.Pointwise(at["x"], at["y"], at.get("residual", NONE), at.get("gate", NONE),
                               builder.blob.matrix(weight), vector(builder, b), vector(builder, factors),
                               vector(builder, shifts), kind_of(prologue), kind_of(activation))  # fmt: skip

    def exact(maps: Maps) -> Maps:
        x = ACTIVATIONS[prologue](maps["x"] * spread(factors, maps["x"], 1) + spread(shifts, maps["x"], 0))
        y = F.conv2d(x * maps.get("gate", 1), weight.to(x.dtype)[:, :, None, None], like(b, x))
        return {"y": ACTIVATIONS[activation](y + maps.get("residual", 0))}

    reads = {"x": (C, H, W)}
    reads |= {"residual": (O, H, W)} if residual else {}
    reads |= {"gate": (C, 1, 1)} if gate else {}
    return Trial(reads, {"y": (O, H, W)}, step, exact, C)


def conv(C: int, O: int, H: int, W: int, window: Window = AROUND, *, groups: int = 1, bias: bool = True, residual: bool = False,
         activation: str = "identity", picture: bool = False) -> Trial:  # fmt: skip
    weight, b = weight_of(O, C // groups, *window.kernel), maybe(bias, O)
    left, _, top, _ = window.padding
    Ho, Wo = window.output(H, W)

    def step(builder: Builder, at: dict[str, int]) -> object:
        packed = weight.permute(0, 2, 3, 1).reshape(groups, O // groups, -1)
        return words.Conv(at["x"], at["y"], at.get("residual", NONE), builder.blob.groups(packed),
                          vector(builder, b, groups), *window.kernel, *window.stride, top, left, *window.dilation,
                          groups, kind_of(activation))  # fmt: skip

    def exact(maps: Maps) -> Maps:
        x = F.pad(maps["x"], window.padding)
        y = F.conv2d(x, weight.to(x.dtype), like(b, x), window.stride, 0, window.dilation, groups)
        return {"y": ACTIVATIONS[activation](y + maps.get("residual", 0))}

    reads = {"x": (C, H, W)} | ({"residual": (O, Ho, Wo)} if residual else {})
    return Trial(reads, {"y": (O, Ho, Wo)}, step, exact, C // groups * math.prod(window.kernel), picture)


def depthwise(C: int, H: int, W: int, window: Window = AROUND, *, bias: bool = True, residual: bool = False, sums: bool = False,
              activation: str = "identity") -> Trial:  # fmt: skip
    weight, b = weight_of(C, 1, *window.kernel), maybe(bias, C)
    left, _, top, _ = window.padding
    Ho, Wo = window.output(H, W)

    def step(builder: Builder, at: dict[str, int]) -> object:
        return words.Depthwise(at["x"], at["y"], at.get("residual", NONE), at.get("sums", NONE),
                               builder.blob.matrix(weight.flatten(1)), vector(builder, b), *window.kernel,
                               *window.stride, top, left, *window.dilation, kind_of(activation))  # fmt: skip

    def exact(maps: Maps) -> Maps:
        x = F.pad(maps["x"], window.padding)
        y = F.conv2d(x, weight.to(x.dtype), like(b, x), window.stride, 0, window.dilation, C)
        y = ACTIVATIONS[activation](y + maps.get("residual", 0))
        return {"y": y, "sums": y.sum((2, 3), keepdim=True)} if sums else {"y": y}

    reads = {"x": (C, H, W)} | ({"residual": (C, Ho, Wo)} if residual else {})
    writes = {"y": (C, Ho, Wo)} | ({"sums": (C, 1, 1)} if sums else {})
    return Trial(reads, writes, step, exact, math.prod(window.kernel))


def inverted_residual(C: int, channels: int, O: int, H: int, W: int, kernel: int = 3, stride: int = 1, padding: tuple[int, int, int, int] = (1, 1, 1, 1), *,
                      expand: bool = True, project: bool = True, bias: bool = True, residual: bool = False, sums: bool = False,
                      activations: tuple[str, str, str] = ("relu6", "relu6", "identity")) -> Trial:  # fmt: skip
    """Without ``expand`` C, without ``project`` O is ``channels``; then it may have ``sums``, else a ``residual``."""
    window = Window((kernel, kernel), (stride, stride), padding)
    before, weight, behind = weight_of(channels, C), weight_of(channels, 1, kernel, kernel), weight_of(O, channels)
    biases = [maybe(bias, channels), maybe(bias, channels), maybe(bias, O)]
    Ho, Wo = window.output(H, W)

    def step(builder: Builder, at: dict[str, int]) -> object:
        matrices = [builder.blob.matrix(each) if has else NONE for each, has in ((before, expand), (behind, project))]
        vectors = [vector(builder, each) for each in biases]
        first, middle, last = map(kind_of, activations)
        return words.InvertedResidual(at["x"], at["y"], at.get("residual", NONE), at.get("sums", NONE),
                                      matrices[0], vectors[0] if expand else NONE,
                                      builder.blob.matrix(weight.flatten(1)), vectors[1],
                                      matrices[1], vectors[2] if project else NONE, channels, kernel, stride,
                                      padding[2], padding[0], first, middle, last)  # fmt: skip

    def exact(maps: Maps) -> Maps:
        x = maps["x"]
        first, middle, last = (ACTIVATIONS[each] for each in activations)
        if expand:
            x = first(F.conv2d(x, before.to(x.dtype)[:, :, None, None], like(biases[0], x)))
        y = F.conv2d(F.pad(x, padding), weight.to(x.dtype), like(biases[1], x), stride, 0, 1, channels)
        y = middle(y)
        if project:
            y = F.conv2d(y, behind.to(x.dtype)[:, :, None, None], like(biases[2], x)) + maps.get("residual", 0)
            y = last(y)
        return {"y": y, "sums": y.sum((2, 3), keepdim=True)} if sums else {"y": y}

    reads = {"x": (C, H, W)} | ({"residual": (O, Ho, Wo)} if residual else {})
    writes = {"y": (O, Ho, Wo)} | ({"sums": (O, 1, 1)} if sums else {})
    return Trial(reads, writes, step, exact, max(C, kernel * kernel, channels))


def global_pool(C: int, H: int, W: int) -> Trial:
    return Trial({"x": (C, H, W)}, {"y": (C, 1, 1)}, lambda builder, at: words.GlobalPool(at["x"], at["y"]),
                 lambda maps: {"y": maps["x"].mean((2, 3), keepdim=True)}, H * W)  # fmt: skip


def pool(kind: str, C: int, H: int, W: int, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int],
         ceil_mode: bool = False) -> Trial:  # fmt: skip
    """``padding``: top and left, at most half of the kernel."""

    def exact(maps: Maps) -> Maps:
        if kind == "max":
            return {"y": F.max_pool2d(maps["x"], kernel, stride, padding, ceil_mode=ceil_mode)}
        return {"y": F.avg_pool2d(maps["x"], kernel, stride, padding, ceil_mode, kind == "mean")}

    shape = tuple(exact({"x": torch.zeros(1, C, H, W)})["y"].shape[1:])
    return Trial({"x": (C, H, W)}, {"y": shape},
                 lambda builder, at: words.PoolWindow(at["x"], at["y"], POOLS[kind], *kernel, *stride, *padding),
                 exact, math.prod(kernel))  # fmt: skip


def adaptive_pool(C: int, H: int, W: int, Ho: int, Wo: int) -> Trial:
    return Trial({"x": (C, H, W)}, {"y": (C, Ho, Wo)},
                 lambda builder, at: words.PoolWindow(at["x"], at["y"], Pool.ADAPTIVE_MEAN, 1, 1, 1, 1, 0, 0),
                 lambda maps: {"y": F.adaptive_avg_pool2d(maps["x"], (Ho, Wo))}, H * W)  # fmt: skip


def elementwise(kind: str, C: int, H: int, W: int, *, one_pixel: bool = False, scale: bool = False, shift: bool = False,
                residual: bool = False, activation: str = "identity") -> Trial:  # fmt: skip
    factors, shifts = maybe(scale, C), maybe(shift, C)

    def step(builder: Builder, at: dict[str, int]) -> object:
        return words.Elementwise(at["x"], at.get("other", NONE), at["y"], BINARIES[kind], vector(builder, factors),
                                 vector(builder, shifts), kind_of(activation), at.get("residual", NONE))  # fmt: skip

    def exact(maps: Maps) -> Maps:
        y = maps["x"] * spread(factors, maps["x"], 1) + spread(shifts, maps["x"], 0)
        if kind != "none":
            y = {"add": torch.add, "multiply": torch.mul, "subtract": torch.sub}[kind](y, maps["other"])
        return {"y": ACTIVATIONS[activation](y + maps.get("residual", 0))}

    reads = {"x": (C, H, W)} | ({} if kind == "none" else {"other": (C, 1, 1) if one_pixel else (C, H, W)})
    reads |= {"residual": (C, H, W)} if residual else {}
    return Trial(reads, {"y": (C, H, W)}, step, exact, 2)


def shuffle(C: int, groups: int, H: int, W: int, *, two: bool = False) -> Trial:
    """``two``: of two maps of ``C`` channels."""

    def exact(maps: Maps) -> Maps:
        return {"y": F.channel_shuffle(torch.cat([maps["x"], maps["second"]], 1) if two else maps["x"], groups)}

    reads = {"x": (C, H, W)} | ({"second": (C, H, W)} if two else {})
    return Trial(reads, {"y": (2 * C if two else C, H, W)},
                 lambda builder, at: words.Shuffle(at["x"], at.get("second", NONE), at["y"], groups), exact)  # fmt: skip


MARGINS, MUCH = (3, 5), 1 << 20  # channels before and behind a slice; bytes


def plan_of(trial: Trial, layout: str, width: int | None = None) -> Plan:
    """The plan of this step alone. Its inputs: what it reads, then one canary for each map that it writes.

    ``dense``: from inputs into outputs. ``sliced``: every map is a range of a wider one's channels. ``arena``: those too, of
    buffers in the arena, which other steps fill and empty. ``late``: the same, with the step where several images share
    its weights.
    """
    builder = Builder(Blob(width or lanes()))
    before, behind = (0, 0) if layout == "dense" else MARGINS
    inside = layout in ("arena", "late")
    at: dict[str, int] = {}

    def copied(view: View) -> View:
        to = builder.map(view.C, view.H, view.W)
        builder.copy(view, to, "test")
        return to

    for name, (C, H, W) in trial.reads.items():
        picture = trial.picture and name == "x"
        given = builder.input((C if picture else before + C + behind, H, W), picture)
        if picture:
            at[name] = builder.number(given)
            continue
        if layout == "late":  # from the memory of one image into that of several
            given = copied(given)
        whole = copied(given) if inside else given
        at[name] = builder.number(whole.slice(before, before + C))
    wholes = []
    for name, (C, H, W) in trial.writes.items():
        wholes.append(copied(builder.input((before + C + behind, H, W), picture=False)))
        at[name] = builder.number(wholes[-1].slice(before, before + C))
    weights = MUCH if layout == "late" else 0
    builder.add(trial.step(builder, at), StepNote("step", "test", 0, weights, weights))
    for whole in wholes:
        builder.make_output(copied(whole) if inside else whole, (whole.C, whole.H, whole.W))
    return builder.finish()


def inputs_of(trial: Trial, maps: Maps, layout: str) -> list[Tensor]:
    """The inputs of :func:`plan_of`: a slice's neighbours are NaN; what is written to holds a canary."""
    images = maps["x"].shape[0]
    before, behind = (0, 0) if layout == "dense" else MARGINS
    found = []
    for name, x in maps.items():
        wide = () if trial.picture and name == "x" else (before, behind)
        found.append(F.pad(x, (0, 0, 0, 0, *wide), value=math.nan) if wide else x)
    return found + [canary(images, before + C + behind, H, W) for C, H, W in trial.writes.values()]


def canary(images: int, C: int, H: int, W: int) -> Tensor:
    return torch.arange(images * C * H * W, dtype=torch.float32).reshape(images, H, W, C).permute(0, 3, 1, 2) + 1e6
