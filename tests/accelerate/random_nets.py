# SPDX-License-Identifier: Apache-2.0
"""Random small networks: made from a seed, shrunk where one fails."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from tests.accelerate import random_blocks  # noqa: F401  (registers its pieces)
from tests.accelerate.random_builder import NAME, Builder, Recipe, Value
from tests.accelerate.random_layers import HEADS, PIECES


def random_recipe(seed: int, most: int = 6) -> Recipe:
    """The net of this seed: 2 to ``most`` pieces in random order, of one to five statements each."""
    rng = random.Random(seed)
    builder = Builder(rng)
    size = (rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 9, 12]), rng.randint(5, 17), rng.randint(5, 17))
    inputs = [size]
    if builder.chance(0.2):
        inputs.append(rng.choice([size, (rng.randint(1, 9), size[1], size[2]), (size[0], 1, 1)]))
    builder.maps = [Value(f"x{i}", *shape, of_input=True) for i, shape in enumerate(inputs)]
    if builder.chance(0.8):  # most nets begin with a convolution: so most values are the net's own
        PIECES["conv"][1](builder)
    pieces = list(PIECES.values())
    weights = [weight for weight, _ in pieces]
    for _ in range(rng.randint(2, most)):
        rng.choices(pieces, weights)[0][1](builder)
    if builder.chance(0.3):
        rng.choice(HEADS)(builder)
    return Recipe(seed, tuple(inputs), rng.randint(1, 4), builder.layers, tuple(builder.body), builder.result())


def shrink(recipe: Recipe, fails: Callable[[Recipe], bool]) -> Recipe:
    """A smaller net that still fails. ``fails`` is False, too, for a net that does not run.

    A statement is dropped, or its value replaced by one of those that it reads; of several results one is kept.
    """
    recipe = next((c for c in _fewer_results(recipe) if fails(c)), recipe)
    smaller = True
    while smaller:
        smaller = False
        for index in reversed(range(len(recipe.body))):
            if index >= len(recipe.body):
                continue
            for candidate in _without(recipe, index):
                if fails(candidate):
                    recipe, smaller = candidate, True
                    break
    return recipe


def _fewer_results(recipe: Recipe) -> list[Recipe]:
    names = list(dict.fromkeys(NAME.findall(recipe.result)))
    return [replace(recipe, result=name) for name in names] if recipe.result not in names else []


def _without(recipe: Recipe, index: int) -> list[Recipe]:
    line = recipe.body[index]
    targets, assigned, made = line.partition(" = ")
    rest = recipe.body[:index] + recipe.body[index + 1 :]
    made_names = set(NAME.findall(targets)) if assigned else set()
    later = "\n".join((*rest[index:], recipe.result))
    if not made_names & set(NAME.findall(later)):
        return [replace(recipe, body=rest)]
    read = dict.fromkeys(NAME.findall(made)) if assigned else {}
    return [_renamed(recipe, rest, made_names, name) for name in read]


def _renamed(recipe: Recipe, body: tuple[str, ...], old: set[str], new: str) -> Recipe:
    def rename(text: str) -> str:
        return NAME.sub(lambda found: new if found[0] in old else found[0], text)

    return replace(recipe, body=tuple(map(rename, body)), result=rename(recipe.result))
