# SPDX-License-Identifier: Apache-2.0
"""accelerate() on random small nets: it computes what the net does, for every net; planted bugs are noticed by them."""

import ast

import pytest

import fastcnn
from tests.accelerate.random_builder import Recipe
from tests.accelerate.random_check import check
from tests.accelerate.random_nets import random_recipe, shrink
from tests.accelerate.random_plants import PLANTS, Plant

SHORT = range(60)
LONG = range(1000, 1500)


def checked(recipe: Recipe, **kinds: bool) -> None:
    """check(), with the net's source in the failure."""
    try:
        check(recipe, fastcnn.accelerate, **kinds)
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}\n{recipe.example_text}\n{recipe.source}") from error


@pytest.mark.parametrize("seed", SHORT)
def test_random_net(seed: int) -> None:
    checked(random_recipe(seed), single=seed % 2 == 0, twice=seed % 4 == 0)


@pytest.mark.long
@pytest.mark.parametrize("seed", LONG)
def test_another_random_net(seed: int) -> None:
    checked(random_recipe(seed, most=12))


@pytest.mark.parametrize("plant", [
    plant if plant.quick else pytest.param(plant, marks=pytest.mark.long) for plant in PLANTS
], ids=lambda plant: plant.name)  # fmt: skip
def test_a_planted_bug_is_noticed(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one of the nets of ``make test``; those that do not hold the pattern cannot and are passed over."""
    bitten = plant.put_in(monkeypatch)
    for recipe in map(random_recipe, SHORT):
        if not plant.concerns(recipe):
            continue
        bitten.clear()
        try:
            check(recipe, lambda net, example: fastcnn.accelerate(net, example, tolerance=1e300), single=False)
        except Exception:
            if bitten:
                return
            raise
    raise AssertionError(f"{plant.name}: not noticed by the nets of seeds {SHORT}")


def test_a_net_is_its_seed() -> None:
    assert random_recipe(5) == random_recipe(5)
    assert random_recipe(5).source != random_recipe(6).source
    first, second = random_recipe(5).module().state_dict(), random_recipe(5).module().state_dict()
    assert all(first[name].equal(second[name]) for name in first)


def test_the_nets_hold_what_they_should() -> None:
    """Spellings that the issue names, in the nets of ``make test`` and the long ones together."""
    text = "\n".join(random_recipe(seed).source for seed in (*SHORT, *LONG))
    for wanted in (
        "affine=False", "track_running_stats=False", "F.pad(", "padding_mode", ".chunk(2, 1)", "torch.split(", "[:, -",
        "torch.stack(", "permute(0, 2, 1, 3, 4)", "nn.ChannelShuffle", ".mul_(", ".add_(", "relu_()", "inplace=True",
        "BatchNorm1d", "ceil_mode=True", "alpha=2", "expand_as", "register_buffer", '"out0"', "nn.Identity", "x1",
    ):  # fmt: skip
        assert wanted in text, wanted


def test_shrinking_keeps_what_fails() -> None:
    """From a net with a sum of a value and its batch norm in it, that sum alone."""

    def fails(recipe: Recipe) -> bool:
        try:
            recipe.module()(*recipe.example())
        except Exception:  # noqa: BLE001  (what it leaves must run)
            return False
        return any("nn.ReLU6" in line for line in recipe.source.splitlines()) and "cat" in recipe.source

    recipe = next(r for r in map(random_recipe, range(1000)) if fails(r) and len(r.body) > 12)
    small = shrink(recipe, fails)
    assert fails(small)
    assert len(small.body) <= 4 < len(recipe.body)
    ast.parse(small.source)
