# SPDX-License-Identifier: Apache-2.0
"""depthwise_se_gate: the map is depthwise_conv2d's, the scales are those of se_gate of that map; formats, errors."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fastcnn.ops import depthwise_conv2d, depthwise_se_gate
from fastcnn.testing import LAYOUTS, Guarded, arrange, assert_close_fp64, assert_format
from tests import instruction_sets
from tests.cross import exact
from tests.ops.test_depthwise_conv2d import BY_NAME, dtypes, formats, sum_of
from tests.ops.test_se_gate import exact_gate
from tests.ops.test_se_scale import ERRORS as OF_GATE
from tests.ops.test_se_scale import PAIRS

NAMES = (
    "mobile-5x5-s2",
    "even-4x6",
    "multiplier-2",
    "one-pixel",
    "wide-3x3",
    "7x7-s2-same",
    "same-s2-even",
    "absurd-stride",
)
cases = pytest.mark.parametrize("case", [BY_NAME[name] for name in NAMES], ids=lambda c: c.name)


def inputs(case, dtype, layout, R=5, tail=(), weight_dtype=None):
    """x, weight, bias, w1, b1, w2, b2."""
    C, wanted = case.out, weight_dtype or dtype
    shapes, scales = ((C,), (R, C, *tail), (R,), (C, R, *tail), (C,)), (1, C**-0.5, 1, R**-0.5, 1)
    vectors = [(torch.randn(s, dtype=torch.float64) * f).to(wanted) for s, f in zip(shapes, scales, strict=True)]
    return arrange(case.x(dtype), layout), case.weight(dtype), *vectors


def run(case, *arguments, kinds=("hardswish", "relu", "hardsigmoid")):
    return depthwise_se_gate(*arguments, case.stride, case.padding, case.dilation, *kinds)


@cases
@formats
@dtypes
def test_value(case, layout, dtype):
    for activation, (squeeze, gate) in zip(("identity", "hardswish", "silu"), PAIRS):
        tensors = inputs(case, dtype, layout, tail=(1, 1) if squeeze == "silu" else ())
        x, weight, bias, *layers = tensors
        bias = None if squeeze == "silu" else bias
        y, scale = run(case, x, weight, bias, *layers, kinds=(activation, squeeze, gate))
        wide = [None if t is None else t.double() for t in (x, weight, bias)]
        unrounded = exact.activation(sum_of(case, *wide), activation)
        magnitude = sum_of(case, *(None if t is None else t.abs() for t in wide))
        assert_format(y, x)
        assert_close_fp64(y, unrounded, reduction=case.reduction, magnitude=magnitude, label=activation)
        assert scale.dtype is torch.promote_types(dtype, torch.float32) and scale.is_contiguous()
        wanted, rival = (exact_gate(each, *layers, squeeze, gate) for each in (y, unrounded))  # either is a mean of y
        magnitude = 1 + wanted.abs().max()
        assert_close_fp64(scale, wanted, reduction=case.out + 5, magnitude=magnitude, rival=rival, label=squeeze)


@formats
def test_the_map_is_that_of_the_convolution_alone(layout):
    case = BY_NAME["mobile-5x5-s2"]
    x, weight, bias, *layers = inputs(case, torch.float16, layout)
    y, _ = run(case, x, weight, bias, *layers)
    assert torch.equal(y, depthwise_conv2d(x, weight, bias, case.stride, case.padding, case.dilation, "hardswish"))


def test_an_empty_batch():
    y, scale = run(BY_NAME["wide-3x3"], *inputs(BY_NAME["wide-3x3"]._replace(N=0), torch.float32, "nchw"))
    assert y.shape[0] == scale.shape[0] == 0 and scale.shape[1] == y.shape[1]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["mobile-5x5-s2", "wide-3x3"])
def test_layouts_and_surroundings(name, layout):
    case = BY_NAME[name]
    tensors = inputs(case, torch.float32, "nchw", tail=(1, 1))
    guards = [Guarded(arrange(t, layout if i == 0 else "sliced")) for i, t in enumerate(tensors)]
    y, scale = run(case, *(guard.x for guard in guards))
    for guard in guards:
        guard.check()
    wanted, gates = run(case, *tensors)
    assert_format(y, guards[0].x)
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scale, gates, rtol=1e-5, atol=1e-5)


@formats
def test_a_nan_stays_in_its_sample(layout):
    case = BY_NAME["wide-3x3"]._replace(N=3)
    x, *rest = inputs(case, torch.float32, layout)
    clean = run(case, x, *rest)[1]
    x[1, 7, 2, 3] = torch.nan
    found = run(case, x, *rest)[1]
    assert torch.equal(found[0], clean[0]) and torch.equal(found[2], clean[2]) and found[1].isnan().all()


@formats
def test_the_same_bits_for_every_number_of_threads(layout):
    case, threads = BY_NAME["tall-blocks"], torch.get_num_threads()
    tensors, found = inputs(case, torch.float32, layout), []
    for count in (1, 2, 3, 1):
        torch.set_num_threads(count)
        found.append(run(case, *tensors))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_vectors_in_float32_beside_a_half_x_and_autocast():
    case = BY_NAME["mobile-5x5-s2"]
    x, weight, *rest = inputs(case, torch.bfloat16, "channels_last", weight_dtype=torch.float32)
    y, scale = run(case, x, weight, *rest)
    assert y.dtype is torch.bfloat16 and scale.dtype is torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        found = run(case, x.float(), weight.float(), *rest)
    assert torch.equal(found[0], y) and torch.equal(found[1], scale)


def test_flops():
    case = BY_NAME["wide-3x3"]
    tensors = inputs(case, torch.float32, "nchw")
    with FlopCounterMode(display=False) as counter:
        y, _ = run(case, *tensors)
    assert counter.get_total_flops() == 2 * y.numel() * 9 + 2 * 2 * len(y) * case.out * 5


def test_a_gradient_is_refused_by_name():
    x, *rest = inputs(BY_NAME["wide-3x3"], torch.float32, "nchw")
    y, _ = run(BY_NAME["wide-3x3"], x.requires_grad_(), *rest)
    words = "^depthwise_se_gate: is for inference only .* for training use depthwise_conv2d and se_scale"
    with pytest.raises(RuntimeError, match=words):
        y.sum().backward()


@formats
def test_opcheck(layout):
    tensors = inputs(BY_NAME["multiplier-2"], torch.float32, layout)
    case = BY_NAME["multiplier-2"]
    geometry = (list(case.stride), [1, 1, 1, 1], list(case.dilation))
    torch.library.opcheck(torch.ops.fastcnn.depthwise_se_gate.default, (*tensors, *geometry, "relu", "silu", "sigmoid"))


GIVEN = {"x": (1, 3, 6, 6), "weight": (3, 1, 3, 3), "bias": (3,), "w1": (2, 3), "b1": (2,), "w2": (3, 2), "b2": (3,)}
WRONG = {
    "unbatched": ("x", torch.ones(3, 6, 6), ValueError, r"x must have 4 dimensions \[N, C, H, W\], got \[3, 6, 6\]"),
    "weight": ("weight", torch.ones(4, 1, 3, 3), ValueError, r"weight must be \[C \* m, .* C = 3, got \[4, 1, 3, 3\]"),
    "window": ("weight", torch.ones(3, 1, 9, 3), ValueError, "weight must fit the padded input"),
    "bias": ("bias", torch.ones(4), ValueError, r"bias must be \[C \* m\], got \[4\]"),
    "more-filters": ("weight", torch.ones(6, 1, 3, 3), ValueError, r"bias must be \[C \* m\], got \[3\]"),
    "squeeze": ("squeeze", "gelu", ValueError, "squeeze must be one of identity, .* got 'gelu'"),
    "stride": ("stride", 0, ValueError, "stride must be at least 1"),
} | {name: error for name, error in OF_GATE.items() if error[0] not in ("x", "activation")}


@pytest.mark.parametrize(("name", "value", "kind", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_named(name, value, kind, words):
    given = {key: torch.ones(shape) for key, shape in GIVEN.items()}
    with pytest.raises(kind, match=f"^depthwise_se_gate: {words}"):
        depthwise_se_gate(**{**given, name: value})


@instruction_sets.each
def test_on_the_other_instruction_sets(isa):
    instruction_sets.rerun(__file__, isa, "test_value")
