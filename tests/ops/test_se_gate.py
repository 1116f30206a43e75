# SPDX-License-Identifier: Apache-2.0
"""se_gate: values, that they are se_scale's, formats, errors."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastcnn.ops import se_gate, se_scale
from fastcnn.testing import LAYOUTS, Guarded, arrange, assert_close_fp64
from tests import instruction_sets
from tests.cross import exact
from tests.ops.test_se_scale import ERRORS, PAIRS, cases, dtypes, formats, inputs


def exact_gate(x, w1, b1, w2, b2, activation="relu", gate="hardsigmoid"):
    x, w1, b1, w2, b2 = (t.double() for t in (x, w1, b1, w2, b2))
    hidden = exact.activation(x.mean((2, 3)) @ w1.flatten(1).T + b1, activation)
    return exact.activation(hidden @ w2.flatten(1).T + b2, gate)


@cases
@formats
@dtypes
def test_value(case, layout, dtype):
    for activation, gate in PAIRS:
        arguments = inputs(case, dtype, layout, vectors=2 if activation == "silu" else 4)
        got = se_gate(*arguments, activation, gate)
        wanted = exact_gate(*arguments, activation, gate)
        assert got.dtype is torch.promote_types(dtype, torch.float32) and got.is_contiguous()
        magnitude = 1 + wanted.abs().max() if wanted.numel() else 1.0
        assert_close_fp64(got, wanted, reduction=case[1] + case[4], magnitude=magnitude, label=f"{activation} {gate}")


@formats
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_se_scale_multiplies_by_these_very_values(layout, pair):
    x, *layers = inputs((3, 33, 5, 7, 9), torch.float32, layout)
    assert torch.equal(se_scale(x, *layers, *pair), x * se_gate(x, *layers, *pair)[:, :, None, None])


@pytest.mark.parametrize("layout", [*LAYOUTS, "expanded"])
def test_strided_and_misaligned_inputs_change_nothing(layout):
    x, *weights = inputs((3, 18, 6, 5, 4), torch.float32, "nchw")
    given = x[:1].expand(3, -1, -1, -1) if layout == "expanded" else arrange(x, layout)
    strided = [torch.stack((w, w), -1)[..., 1] for w in weights]
    torch.testing.assert_close(se_gate(given, *strided), se_gate(given.contiguous(), *weights))
    if layout in ("nchw", "channels_last"):
        guards = [Guarded(t) for t in (given, *weights)]
        assert torch.equal(se_gate(*(g.x for g in guards)), se_gate(given, *weights))
        for guard in guards:
            guard.check()


@formats
def test_a_nan_stays_in_its_sample(layout):
    x, *weights = inputs((3, 21, 5, 4, 6), torch.float32, layout)
    clean = se_gate(x, *weights)
    x[1, 7, 2, 3] = torch.nan
    found = se_gate(x, *weights)
    assert torch.equal(found[0], clean[0]) and torch.equal(found[2], clean[2]) and found[1].isnan().all()


def test_weights_in_float32_beside_a_half_x_and_autocast():
    x, *weights = inputs((2, 24, 7, 7, 6), torch.bfloat16, "channels_last", weight_dtype=torch.float32)
    found = se_gate(x, *weights)
    assert found.dtype is torch.float32
    assert_close_fp64(found, exact_gate(x, *weights), reduction=30, magnitude=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(se_gate(x, *weights), found)


def test_flops():
    arguments = inputs((2, 12, 4, 4, 3), torch.float32, "nchw")
    with FlopCounterMode(display=False) as counter:
        se_gate(*arguments)
    assert counter.get_total_flops() == 2 * 2 * 2 * 12 * 3


def test_a_gradient_is_refused_by_name():
    x, *weights = inputs((2, 12, 4, 4, 3), torch.float32, "nchw")
    found = se_gate(x.requires_grad_(), *weights)
    words = "^se_gate: is for inference only and has no gradient; for training use se_scale"
    with pytest.raises(RuntimeError, match=words):
        found.sum().backward()


@formats
def test_opcheck(layout):
    arguments = inputs((2, 6, 3, 4, 3), torch.float32, layout, vectors=4)
    torch.library.opcheck(torch.ops.fastcnn.se_gate.default, (*arguments, "silu", "sigmoid"))


@pytest.mark.parametrize(("name", "value", "kind", "words"), ERRORS.values(), ids=ERRORS)
def test_a_wrong_argument_is_named(name, value, kind, words):
    shapes = {"x": (1, 3, 2, 2), "w1": (2, 3), "b1": (2,), "w2": (3, 2), "b2": (3,)}
    given = {key: torch.ones(shape) for key, shape in shapes.items()}
    with pytest.raises(kind, match=f"^se_gate: {words}"):
        se_gate(**{**given, name: value})


@instruction_sets.each
def test_on_the_other_instruction_sets(isa):
    instruction_sets.rerun(__file__, isa, "test_value")
