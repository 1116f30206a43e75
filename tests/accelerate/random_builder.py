# SPDX-License-Identifier: Apache-2.0
"""A small network as Python source, and what its pieces are written with."""

from __future__ import annotations

import itertools
import linecache
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAME = re.compile(r"\b[vx]\d+\b")
LAYER = re.compile(r"\bself\.(\w+)")
_FILES = itertools.count()


@dataclass(frozen=True)
class Recipe:
    """One network: its layers, the statements of forward, what it returns. ``inputs`` are the shapes without the batch."""

    seed: int
    inputs: tuple[tuple[int, int, int], ...]
    batch: int
    layers: dict[str, str]
    body: tuple[str, ...]
    result: str

    @property
    def source(self) -> str:
        """The class ``Net``, as a person would write it."""
        used = set(LAYER.findall("\n".join((*self.body, self.result))))
        layers = [line for name, line in self.layers.items() if name in used]
        names = ", ".join(f"x{i}" for i in range(len(self.inputs)))
        return "\n".join([
            "class Net(nn.Module):",
            "    def __init__(self):",
            "        super().__init__()",
            *(f"        {line}" for line in layers),
            "",
            f"    def forward(self, {names}):",
            *(f"        {line}" for line in self.body),
            f"        return {self.result}",
            "",
        ])  # fmt: skip

    @property
    def example_text(self) -> str:
        shapes = ", ".join(f"torch.randn({self.batch}, {c}, {h}, {w})" for c, h, w in self.inputs)
        return f"seed {self.seed}, example ({shapes},)"

    def module(self) -> nn.Module:
        """The net in eval mode, its weights drawn from the seed, no batch norm near the identity."""
        filename = f"<random net {self.seed}, {next(_FILES)}>"
        linecache.cache[filename] = (len(self.source), None, self.source.splitlines(keepends=True), filename)
        scope = {"torch": torch, "nn": nn, "F": F, "__name__": __name__}
        exec(compile(self.source, filename, "exec"), scope)  # noqa: S102
        net = scope["Net"]()
        perturb(net, self.seed)
        return net.eval()

    def example(
        self, batch: int | None = None, dtype: torch.dtype = torch.float32, draw: int = 0
    ) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(self.seed + 7919 * (draw + 1))
        shapes = [(self.batch if batch is None else batch, *shape) for shape in self.inputs]
        return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def perturb(net: nn.Module, seed: int) -> None:
    """Weights of a trained net in kind: no mean at 0, no variance at 1; gamma negative and now and then 0."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    def uniform(like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=generator)

    with torch.no_grad():
        for module in net.modules():
            for name, weight in module.named_parameters(recurse=False):
                fan_in = weight[0].numel() if weight.dim() > 1 else 4
                weight.copy_(normal(weight) * (1.5 / fan_in) ** 0.5 if name == "weight" else normal(weight) * 0.3)
            for weight in module.buffers(recurse=False):
                if weight.is_floating_point():
                    weight.copy_(normal(weight))
            if not isinstance(module, nn.modules.batchnorm._BatchNorm):
                continue
            if module.running_var is not None:
                module.running_mean.copy_(normal(module.running_mean) * 0.5)
                module.running_var.copy_(0.01 + 2 * uniform(module.running_var) ** 3)
            if module.weight is not None:
                module.weight.copy_(normal(module.weight) * 0.7 + 0.6)
                module.weight[uniform(module.weight) < 0.06] = 0.0


class Value(NamedTuple):
    """A map of forward: its name, its shape without the batch, whether it may share memory with an input."""

    name: str
    c: int
    h: int
    w: int
    of_input: bool = False

    @property
    def size(self) -> tuple[int, int, int]:
        return (self.c, self.h, self.w)


@dataclass
class Builder:
    """What a piece of a net writes to."""

    rng: random.Random
    layers: dict[str, str] = field(default_factory=dict)
    body: list[str] = field(default_factory=list)
    maps: list[Value] = field(default_factory=list)
    returned: list[str] = field(default_factory=list)
    counter: int = 0

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def layer(self, stem: str, made: str) -> str:
        """A module made by ``made``; how forward calls it."""
        name = f"{stem}{len(self.layers)}"
        self.layers[name] = f"self.{name} = {made}"
        return f"self.{name}"

    def buffer(self, *sizes: int) -> str:
        name = f"constant{len(self.layers)}"
        self.layers[name] = f'self.register_buffer("{name}", torch.zeros({", ".join(map(str, sizes))}))'
        return f"self.{name}"

    def name(self) -> str:
        self.counter += 1
        return f"v{self.counter}"

    def let(self, made: str) -> str:
        """A statement ``v1 = made`` whose result is no map; the name."""
        name = self.name()
        self.body.append(f"{name} = {made}")
        return name

    def map(self, made: str, like: Value, c: int = 0, h: int = 0, w: int = 0, view: bool = False) -> Value:
        """A statement ``v1 = made`` whose result is a map; a ``view`` may share the memory of ``like``."""
        result = Value(self.let(made), c or like.c, h or like.h, w or like.w, view and like.of_input)
        self.maps.append(result)
        return result

    def pick(self, fits: Callable[[Value], bool] = lambda _: True, last: float = 0.6) -> Value | None:
        """A map that fits: mostly the last one."""
        found = [each for each in self.maps if fits(each)]
        if not found:
            return None
        return found[-1] if self.chance(last) else self.rng.choice(found)

    def result(self) -> str:
        """What forward returns: one value, or a tuple, list or dict of several, one of them now and then twice."""
        rng = self.rng
        names = list(dict.fromkeys([*self.returned, self.maps[-1].name]))
        if self.chance(0.25):
            names.append(rng.choice(self.maps).name)
        if self.chance(0.1):
            names.append(rng.choice(names))
        if len(names) == 1 and self.chance(0.8):
            return names[0]
        rng.shuffle(names)
        form = rng.choice(["tuple", "tuple", "list", "dict", "nested"])
        if form == "tuple":
            return f"({', '.join(names)},)"
        if form == "list":
            return f"[{', '.join(names)}]"
        if form == "dict":
            return "{" + ", ".join(f'"out{i}": {name}' for i, name in enumerate(names)) + "}"
        return f'{{"first": {names[0]}, "rest": [({", ".join(names)},)]}}'
