# SPDX-License-Identifier: Apache-2.0
"""The fused 1x1 - depthwise - 1x1 step against float64 in plain torch, and which blocks of a network become one."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F

import fastcnn
from fastcnn.accelerate.plan import fuse, words
from fastcnn.accelerate.plan.builder import Builder
from fastcnn.accelerate.plan.op import AVAILABLE
from fastcnn.accelerate.plan.planned import Planned, lanes, plan
from fastcnn.accelerate.plan.weights import Blob
from tests import instruction_sets
from tests.plan.checked import check, threads
from tests.plan.trials import ACTIVATIONS, LAYOUTS, NONE, Maps, Trial, Window, kind_of, like, maybe, vector, weight_of

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="the CPU library is not built")

WINDOW = Window()
FORMS = {"expand": (True, False), "project": (False, True), "both": (True, True)}


def inverted_residual(form: str, C: int, middle: int, O: int, H: int, W: int, window: Window = WINDOW, *, bias: bool = True,
                      residual: bool = False, sums: bool = False, kinds: tuple[str, str, str] = ("relu", "relu6", "identity")) -> Trial:  # fmt: skip
    """``C`` counts where something expands, ``O`` where something projects; ``kinds``: the three activations."""
    expands, projects = FORMS[form]
    C, O = C if expands else middle, O if projects else middle
    expand, depthwise, project = weight_of(middle, C), weight_of(middle, 1, *window.kernel), weight_of(O, middle)
    before, between, behind = maybe(bias and expands, middle), maybe(bias, middle), maybe(bias and projects, O)
    Ho, Wo = window.output(H, W)
    left, _, top, _ = window.padding

    def step(builder: Builder, at: dict[str, int]) -> object:
        matrix = builder.blob.matrix
        return words.InvertedResidual(at["x"], at["y"], at.get("residual", NONE), at.get("sums", NONE),
                                      matrix(expand) if expands else NONE, vector(builder, before),
                                      matrix(depthwise.flatten(1)), vector(builder, between),
                                      matrix(project) if projects else NONE, vector(builder, behind), middle,
                                      window.kernel[0], window.stride[0], top, left, *map(kind_of, kinds))  # fmt: skip

    def exact(maps: Maps) -> Maps:
        z = maps["x"]
        if expands:
            z = ACTIVATIONS[kinds[0]](F.conv2d(z, like(expand, z)[:, :, None, None], like(before, z)))
        z = F.conv2d(F.pad(z, window.padding), like(depthwise, z), like(between, z), window.stride, groups=middle)
        z = ACTIVATIONS[kinds[1]](z)
        if not projects:
            return {"y": z, "sums": z.sum((2, 3), keepdim=True)} if sums else {"y": z}
        z = F.conv2d(z, like(project, z)[:, :, None, None], like(behind, z))
        return {"y": ACTIVATIONS[kinds[2]](z + maps.get("residual", 0))}

    reads = {"x": (C, H, W)} | ({"residual": (O, Ho, Wo)} if residual else {})
    writes = {"y": (O, Ho, Wo)} | ({"sums": (O, 1, 1)} if sums else {})
    return Trial(
        reads, writes, step, exact, (C if expands else 1) * window.kernel[0] ** 2 + (middle if projects else 0)
    )


def draw(rng: random.Random, form: str) -> Trial:
    while True:
        kernel, stride = rng.choice((3, 5, 7)), rng.randint(1, 3)
        pads = [rng.randint(0, kernel - 1) for _ in range(4)]
        window = Window((kernel, kernel), (stride, stride), tuple(pads))
        H, W = rng.randint(1, 19), rng.randint(1, 19)
        if min(window.output(H, W)) > 0:
            break
    _, projects = FORMS[form]
    extra = {"residual" if projects else "sums": rng.random() < 0.5}
    return inverted_residual(form, rng.randint(1, 40), rng.randint(1, 67), rng.randint(1, 67), H, W, window, **extra,
                             bias=rng.random() < 0.8, kinds=tuple(rng.choices(list(ACTIVATIONS), k=3)))  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(12))
def test_drawn(form: str, seed: int) -> None:
    rng = random.Random(f"{form} {seed}")
    torch.manual_seed(seed)
    for _ in range(4):
        trial = draw(rng, form)
        images, count, layout = rng.choice((0, 1, 2, 3)), rng.choice((1, 2, 3)), rng.choice(LAYOUTS)
        try:
            check(trial, images, count, layout)
        except Exception as error:
            said = f"{trial.reads} -> {trial.writes}, batch {images}, {count} threads, {layout}: {error}"
            raise AssertionError(said) from error


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("images", [0, 1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_every_activation(form: str, images: int, count: int) -> None:
    for name in ACTIVATIONS:
        sums = form == "expand"
        check(inverted_residual(form, 5, 19, 35, 9, 8, sums=sums, kinds=(name,) * 3), images, count, "sliced")


LARGE = {  # several rounds of the ring
    "112 rows": lambda: inverted_residual("both", 16, 96, 24, 61, 112, Window(stride=(2, 2)), kinds=("relu6",) * 2 + ("identity",)),
    "residual": lambda: inverted_residual("both", 24, 144, 24, 57, 56, residual=True),
    "sums": lambda: inverted_residual("expand", 24, 72, 0, 56, 55, Window((5, 5), (2, 2), (2, 2, 2, 2)), sums=True),
    "7x7": lambda: inverted_residual("both", 9, 50, 33, 40, 41, Window((7, 7), padding=(3, 3, 3, 3))),
    "project": lambda: inverted_residual("project", 0, 64, 128, 58, 57, kinds=("identity", "relu", "relu")),
    "one column": lambda: inverted_residual("both", 3, 5, 4, 400, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_large(name: str) -> None:
    trial = LARGE[name]()
    for images, count, layout in ((1, 1, "dense"), (1, 2, "arena"), (3, 2, "dense"), (2, 3, "late")):
        check(trial, images, count, layout)


def test_no_input_leaves_its_window() -> None:
    """What is not finite reaches the outputs whose windows hold it and no other."""
    trial = inverted_residual("both", 5, 19, 35, 12, 9, Window((5, 5), (2, 2), (2, 2, 2, 2)), kinds=("identity",) * 3)
    maps = trial.draw(2)
    maps["x"][1, :, 3, 4] = float("nan")
    for count in (1, 2):
        check(trial, 2, count, "dense", maps)


@pytest.fixture(scope="module")
def program() -> torch.fx.GraphModule:
    torch.manual_seed(0)
    model = fastcnn.create_model("mobilenet_v2").eval()
    return fastcnn.accelerate(model, torch.randn(1, 3, 224, 224), strict=True).program


def planned(program: torch.fx.GraphModule) -> Planned:
    return plan(program, Blob(lanes()))


def test_which_blocks_of_mobilenet_v2(program: torch.fx.GraphModule) -> None:
    """The first six, with 28 rows or more behind the window; the others keep a step for each layer."""
    (built,) = planned(program).plans
    names = [note.name for note in built.notes]
    assert names[1:7] == ["fused"] * 6
    assert names.count("fused") == 6 and names.count("depthwise") == 11


@pytest.mark.parametrize("images", [1, 3])
def test_a_fused_network_computes_the_same(
    program: torch.fx.GraphModule, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(images, 3, 224, 224)
    with torch.inference_mode(), threads(2):
        fused = planned(program).program(x)[0]
        monkeypatch.setattr(fuse, "chosen", lambda *parts: None)
        alone = planned(program)
        assert not any(note.name == "fused" for note in alone.plans[0].notes)
        expected = alone.program(x)[0]
    torch.testing.assert_close(fused, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@instruction_sets.each
def test_on_the_other_instruction_sets(isa: str) -> None:
    instruction_sets.rerun(__file__, isa, "drawn or every_activation or large or window")
