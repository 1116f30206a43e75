# SPDX-License-Identifier: Apache-2.0
"""pointwise_conv2d: every prologue against float64, formats, memory safety, autocast, errors."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import fastcnn
from fastcnn.ops import conv_bn_act, pointwise_conv2d, se_gate, se_scale
from fastcnn.testing import DTYPES, LAYOUTS, Guarded, arrange, assert_close_fp64, assert_format
from tests import instruction_sets
from tests.cross import exact

CASES = {  # N, C, H, W, O: both sides of a vector, a panel and a tile of rows; depth past one slice; several blocks
    "densenet": (2, 96, 14, 14, 128),
    "mobilenet-v3": (3, 72, 9, 7, 24),
    "vector-tails": (2, 33, 5, 7, 19),
    "wide": (1, 24, 6, 5, 112),
    "deep": (2, 1100, 3, 3, 50),
    "blocks": (3, 300, 28, 20, 20),
    "one-pixel": (5, 40, 1, 1, 12),
    "one-channel": (2, 1, 6, 5, 3),
    "one-output": (2, 21, 4, 5, 1),
    "empty-batch": (0, 12, 4, 4, 3),
}
CHANGES = {  # what is given, prologue, activation
    "gate": ("gate", "identity", "identity"),
    "batch-norm-relu": ("scale shift", "relu", "relu"),
    "batch-norm": ("scale shift bias", "identity", "silu"),
    "relu6": ("bias", "relu6", "identity"),
    "gated-hardswish": ("gate residual bias", "hardswish", "relu6"),
    "everything": ("gate scale shift residual bias", "silu", "hardswish"),
    "sigmoid": ("scale shift gate", "sigmoid", "sigmoid"),
    "nothing": ("bias residual", "identity", "relu"),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
changes = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
formats = pytest.mark.parametrize("layout", ["nchw", "channels_last"])


def inputs(case, change, dtype, layout, vector_dtype=None):
    """The op's arguments by name."""
    N, C, H, W, O = case
    names, prologue, activation = change
    shapes = {"bias": (O,), "residual": (N, O, H, W), "gate": (N, C), "scale": (C,), "shift": (C,)}
    made = {"x": arrange(torch.randn(N, C, H, W, dtype=torch.float64).to(dtype), layout)}
    made["weight"] = (torch.randn(O, C, 1, 1, dtype=torch.float64) * C**-0.5).to(dtype)
    for name, shape in shapes.items():
        if name in names.split():
            value = torch.randn(shape, dtype=torch.float64).to(dtype if name == "residual" else vector_dtype or dtype)
            made[name] = arrange(value, layout) if value.dim() == 4 else value
    return {**made, "prologue": prologue, "activation": activation}


def exact_sum(x, weight, prologue, activation, bias=None, residual=None, gate=None, scale=None, shift=None):
    """(the result, what the rounding of its sums is measured by) in float64."""
    x, weight, bias, residual, gate, scale, shift = (
        None if t is None else t.double() for t in (x, weight, bias, residual, gate, scale, shift)
    )
    z, size = x, x.abs()
    if scale is not None:
        z = x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
        size = size * scale.abs().view(1, -1, 1, 1) + shift.abs().view(1, -1, 1, 1)
    z = exact.activation(z, prologue)
    size = size + z.abs()
    if gate is not None:
        z, size = z * gate[:, :, None, None], size * gate.abs()[:, :, None, None]
    y, magnitude = exact.convolution(z, weight, bias), exact.convolution_magnitude(size, weight, bias)
    if residual is not None:
        y, magnitude = y + residual, magnitude + residual.abs()
    return exact.activation(y, activation), magnitude


@cases
@changes
@formats
@dtypes
def test_value_against_float64(case, change, layout, dtype):
    arguments = inputs(case, change, dtype, layout)
    y = pointwise_conv2d(**arguments)
    wanted, magnitude = exact_sum(**arguments)
    assert y.dtype is dtype
    if y.numel():
        assert_format(y, arguments["x"])
    assert_close_fp64(y, wanted, reduction=case[1], magnitude=magnitude)


@formats
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_vectors_in_float32_beside_a_half_x_and_autocast(dtype, layout):
    arguments = inputs(CASES["mobilenet-v3"], CHANGES["everything"], dtype, layout, torch.float32)
    y = pointwise_conv2d(**arguments)
    wanted, magnitude = exact_sum(**arguments)
    assert y.dtype is dtype
    assert_close_fp64(y, wanted, reduction=72, magnitude=magnitude)
    with torch.autocast("cpu", dtype):
        wide = {name: arguments[name].float() for name in ("x", "weight", "residual")}
        assert torch.equal(pointwise_conv2d(**{**arguments, **wide}), y)


@formats
@pytest.mark.parametrize("case", [c for c in CASES if c != "empty-batch"])
def test_without_gate_and_prologue_it_is_conv_bn_act_bit_for_bit(case, layout):
    arguments = inputs(CASES[case], CHANGES["nothing"], torch.float32, layout)
    wanted = conv_bn_act(**{name: value for name, value in arguments.items() if name != "prologue"})
    assert torch.equal(pointwise_conv2d(**arguments), wanted)


@formats
def test_with_the_gate_of_se_gate_it_is_se_scale_and_a_convolution(layout):
    x = arrange(torch.randn(3, 24, 9, 7), layout)
    layers = [torch.randn(shape) for shape in ((6, 24), (6,), (24, 6), (24,))]
    weight = torch.randn(16, 24, 1, 1)
    with torch.inference_mode():
        got = pointwise_conv2d(x, weight, gate=se_gate(x, *layers))
        wanted = F.conv2d(se_scale(x.double(), *(t.double() for t in layers)), weight.double())
    assert_close_fp64(got, wanted, reduction=48)


@pytest.mark.parametrize("layout", [*LAYOUTS, "channels of a wider map", "channels of a wider channels_last map"])
def test_strided_and_misaligned_inputs_change_nothing(layout):
    arguments = inputs((3, 18, 6, 5, 20), CHANGES["everything"], torch.float32, "nchw")
    wanted = pointwise_conv2d(**arguments)
    strided = {name: torch.stack((t, t), -1)[..., 1] if isinstance(t, torch.Tensor) and t.dim() < 3 else t
               for name, t in arguments.items()}  # fmt: skip
    if layout in LAYOUTS:
        given = arrange(arguments["x"], layout)
    else:
        wide = torch.full((3, 40, 6, 5), torch.nan)
        wide = wide.contiguous(memory_format=torch.channels_last) if "last" in layout else wide
        given = wide[:, 7:25].copy_(arguments["x"])
    y = pointwise_conv2d(**{**strided, "x": given})
    assert_format(y, given)
    torch.testing.assert_close(y, wanted)
    if layout in ("nchw", "channels_last"):
        guards = {name: Guarded(t) for name, t in {**arguments, "x": given}.items() if isinstance(t, torch.Tensor)}
        assert torch.equal(pointwise_conv2d(**{**arguments, **{name: g.x for name, g in guards.items()}}), y)
        for name, guard in guards.items():
            guard.check(name)


@formats
def test_a_nan_stays_in_its_pixel_and_one_of_a_gate_in_its_image(layout):
    arguments = inputs((3, 21, 5, 4, 6), CHANGES["everything"], torch.float32, layout)
    clean = pointwise_conv2d(**arguments)
    arguments["x"][1, 7, 2, 3] = torch.nan
    y = pointwise_conv2d(**arguments)
    assert y[1, :, 2, 3].isnan().all()
    same = torch.ones_like(y, dtype=torch.bool)
    same[1, :, 2, 3] = False
    assert torch.equal(y[same], clean[same])
    arguments["gate"][2, 5] = torch.nan
    y = pointwise_conv2d(**arguments)
    assert torch.equal(y[0], clean[0]) and y[2].isnan().all()


@formats
def test_the_same_bits_every_time_and_for_every_number_of_threads(layout):
    arguments, threads = (
        inputs((5, 100, 33, 40, 30), CHANGES["everything"], torch.float32, layout),
        torch.get_num_threads(),
    )
    found = []
    for count in (1, 2, 3, 1):
        torch.set_num_threads(count)
        found.append(pointwise_conv2d(**arguments))
    torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_flops():
    arguments = inputs((2, 12, 4, 4, 3), CHANGES["everything"], torch.float32, "nchw")
    with FlopCounterMode(display=False) as counter:
        pointwise_conv2d(**arguments)
    assert counter.get_total_flops() == 2 * 2 * 3 * 16 * 12


def test_a_gradient_is_refused_by_name():
    arguments = inputs((2, 6, 3, 4, 3), CHANGES["gate"], torch.float32, "nchw")
    y = pointwise_conv2d(**{**arguments, "x": arguments["x"].requires_grad_()})
    words = "^pointwise_conv2d: is for inference only and has no gradient; for training use batch_norm_act or se_scale"
    with pytest.raises(RuntimeError, match=words):
        y.sum().backward()


@formats
@changes
def test_opcheck(layout, change):
    arguments = inputs((2, 6, 3, 4, 5), change, torch.float32, layout)
    names = ("x", "weight", "bias", "residual", "gate", "scale", "shift", "prologue", "activation")
    torch.library.opcheck(torch.ops.fastcnn.pointwise_conv2d.default, tuple(arguments.get(name) for name in names))


def test_the_backends_that_serve_it():
    found = fastcnn.explain("pointwise_conv2d", torch.ones(1, 3, 2, 2), torch.ones(4, 3, 1, 1))
    assert found.backend == "cpu"


V3, V4 = torch.ones(3), torch.ones(4)
ERRORS = {
    "rank": ({"x": torch.ones(3, 2, 2)}, ValueError, r"x must have 4 dimensions \[N, C, H, W\], got \[3, 2, 2\]"),
    "no-rows": (
        {"x": torch.ones(1, 3, 0, 2)},
        ValueError,
        r"x must have at least one row and one column, got \[1, 3, 0, 2\]",
    ),
    "integers": ({"x": torch.ones(1, 3, 2, 2).int()}, TypeError, "x must be float32, .* got int32"),
    "weight": (
        {"weight": torch.ones(4, 2, 1, 1)},
        ValueError,
        r"weight must be \[O, C, 1, 1\] for x with C = 3, got \[4, 2, 1, 1\]",
    ),
    "kernel": (
        {"weight": torch.ones(4, 3, 3, 3)},
        ValueError,
        r"weight must be .* got \[4, 3, 3, 3\]; conv_bn_act takes other kernels",
    ),
    "no-output": ({"weight": torch.ones(0, 3, 1, 1)}, ValueError, "x and weight must have at least one channel"),
    "weight-dtype": (
        {"weight": torch.ones(4, 3, 1, 1).half()},
        TypeError,
        "weight must have the dtype of x, float32, got float16",
    ),
    "bias": ({"bias": V3}, ValueError, r"bias must be \[4\], one value per output channel, got \[3\]"),
    "residual": (
        {"residual": torch.ones(1, 3, 2, 2)},
        ValueError,
        r"residual must be \[1, 4, 2, 2\], the shape of the output",
    ),
    "gate": (
        {"gate": V3},
        ValueError,
        r"gate must be \[N, C\] = \[1, 3\], one value per image and channel of x, got \[3\]",
    ),
    "gate-dtype": (
        {"gate": torch.ones(1, 3).double()},
        TypeError,
        "gate must have the dtype of x, float32 or float32, got float64",
    ),
    "gate-device": (
        {"gate": torch.ones(1, 3, device="meta")},
        ValueError,
        "gate must be on the device of x, cpu, got meta",
    ),
    "scale": ({"scale": V4, "shift": V3}, ValueError, r"scale must be \[3\], one value per channel of x, got \[4\]"),
    "shift": ({"scale": V3, "shift": V4}, ValueError, r"shift must be \[3\], one value per channel of x, got \[4\]"),
    "scale-alone": ({"scale": V3}, ValueError, "scale and shift must be given together, got only scale"),
    "shift-alone": ({"shift": V3}, ValueError, "scale and shift must be given together, got only shift"),
    "prologue": ({"prologue": "gelu"}, ValueError, "prologue must be one of identity, .* got 'gelu'"),
    "activation": ({"activation": "softmax"}, ValueError, "activation must be one of identity, .* got 'softmax'"),
}


@pytest.mark.parametrize(("given", "kind", "words"), ERRORS.values(), ids=ERRORS)
def test_a_wrong_argument_is_named(given, kind, words):
    with pytest.raises(kind, match=f"^pointwise_conv2d: {words}"):
        pointwise_conv2d(**{"x": torch.ones(1, 3, 2, 2), "weight": torch.ones(4, 3, 1, 1), **given})


@instruction_sets.each
def test_on_the_other_instruction_sets(isa):
    instruction_sets.rerun(__file__, isa, "test_value")
