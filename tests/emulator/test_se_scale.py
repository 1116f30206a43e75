# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of se_scale on the emulator: values, gradients, sums from elsewhere, thread orders, traffic."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fastcnn.testing import DTYPES, FORMATS, Guarded, assert_close_fp64
from tests.cross import exact

KERNELS = "se_scale"
CASES = {  # N, C, H, W, R
    "mobilenet-v3": (2, 72, 14, 14, 24),
    "efficientnet": (3, 96, 7, 9, 4),
    "vector-tails": (3, 33, 5, 7, 9),
    "wide": (1, 480, 3, 3, 120),
    "wider-than-a-block": (1, 528, 2, 5, 40),
    "a-hidden-layer-wider-than-a-block": (1, 16, 2, 4, 520),
    "one-channel": (2, 1, 6, 5, 1),
    "one-pixel": (2, 24, 1, 1, 7),
    "tiles": (1, 40, 66, 67, 8),
    "no-hidden": (2, 8, 3, 3, 0),
}
PAIRS = (("relu", "hardsigmoid"), ("silu", "sigmoid"), ("hardswish", "identity"))
NAMES = ("x", "w1", "b1", "w2", "b2")
KINDS = ("identity", "relu", "relu6", "hardswish", "hardsigmoid", "silu", "sigmoid")
layouts = pytest.mark.parametrize("layout", FORMATS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


class Problem(NamedTuple):
    x: Tensor
    weights: list[Tensor]
    grad: Tensor
    layout: str
    pair: tuple[str, str]

    @property
    def sizes(self) -> list[int]:
        N, C, H, W = self.x.shape
        return [N, C, self.weights[0].shape[0], H * W]

    def described(self, kernels):
        types = str(self.x.dtype), str(self.weights[0].dtype)
        kinds = (KINDS.index(kind) for kind in self.pair)
        return kernels.Problem(*types, self.sizes, self.layout == "channels_last", *kinds)

    def accumulators(self, *shape: int) -> Tensor:
        wide = torch.float64 if self.x.dtype is torch.float64 else torch.float32
        return torch.full(shape, float("nan"), dtype=wide)

    def forward(self, kernels, partial: Tensor | None = None, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        N, C, _, _ = self.sizes
        pooled, scale = self.accumulators(N, C), self.accumulators(N, C)
        tiles = 0 if partial is None else partial.shape[1]
        partial = self.accumulators(N, 32, C) if partial is None else partial
        y = torch.full_like(self.x, float("nan")) if y is None else y
        tensors = [t.data_ptr() for t in (self.x, *self.weights, partial, pooled, scale, y)]
        kernels.forward(self.described(kernels), tensors, tiles)
        return y, pooled

    def backward(self, kernels, pooled: Tensor, grad_x: Tensor | None = None) -> list[Tensor]:
        N, C, R, _ = self.sizes
        grad_x = torch.full_like(self.x, float("nan")) if grad_x is None else grad_x
        found = [grad_x, *(torch.full_like(w, float("nan")) for w in self.weights)]
        partial, room = self.accumulators(N, 32, C), self.accumulators(N * (3 * C + 2 * R))
        tensors = (self.grad, self.x, pooled, *self.weights, partial, room, *found)
        kernels.backward(self.described(kernels), [t.data_ptr() for t in tensors])
        return found

    def torchs(self, dtype: torch.dtype) -> list[Tensor]:
        """y and the gradients, by torch in this dtype."""
        leaves = [t.detach().to(dtype).requires_grad_() for t in (self.x, *self.weights)]
        y = exact.se_scale(*leaves, *self.pair)
        return [y.detach(), *torch.autograd.grad(y, leaves, self.grad.to(dtype))]


def problem(case, dtype, layout, pair=PAIRS[0], weight_dtype=None) -> Problem:
    N, C, H, W, R = case

    def tensor() -> Tensor:
        return torch.empty(N, C, H, W, dtype=dtype, memory_format=FORMATS[layout])

    x, grad = tensor().copy_(torch.randn(N, C, H, W) + 0.5), tensor().copy_(torch.randn(N, C, H, W))
    shapes, scales = ((R, C), (R,), (C, R), (C,)), (C**-0.5, 1.0, max(R, 1) ** -0.5, 1.0)
    wanted = weight_dtype or dtype
    w1, b1, w2, b2 = ((torch.randn(s, dtype=torch.float64) * f).to(wanted) for s, f in zip(shapes, scales))
    for _ in range(50):  # until no hidden value and no gate lies near a knot
        z1 = x.double().mean((2, 3)) @ w1.double().T + b1.double()
        z2 = exact.activation(z1, pair[0]) @ w2.double().T + b2.double()
        near1, near2 = (sum((z - k).abs() < 1e-2 for k in (-3, 0, 3)).any(0) for z in (z1, z2))
        if not near1.any() and not near2.any():
            break
        b1, b2 = (b.double() + 0.037 * near for b, near in ((b1, near1), (b2, near2)))
        b1, b2 = b1.to(wanted), b2.to(wanted)
    return Problem(x, [w1, b1, w2, b2], grad, layout, pair)


def check(made: Problem, kernels) -> list[Tensor]:
    y, pooled = made.forward(kernels)
    got = [y, *made.backward(kernels, pooled)]
    wanted, rival = made.torchs(torch.float64), made.torchs(made.x.dtype)
    assert_close_fp64(pooled, made.x.double().mean((2, 3)), reduction=4, magnitude=made.x.double().abs().mean((2, 3)))
    for name, value, right, other in zip(("y", *NAMES), got, wanted, rival, strict=True):
        assert_close_fp64(value, right, reduction=16, rival=other, label=f"{' '.join(made.pair)} {name}")
    return got


@cases
@layouts
@dtypes
def test_values_and_gradients(kernels, case, layout, dtype):
    check(problem(case, dtype, layout), kernels)


@pytest.mark.parametrize(("C", "R", "dtype"), [(15800, 2, torch.float16), (7600, 3, torch.float64)], ids=str)
def test_layers_beyond_48_kib(kernels, C, R, dtype):
    """Up to the 64 KiB of Turing; EfficientNet-B7 (3,840 and 160) and SENet-154 (2,048 and 128) stay below 48."""
    check(problem((1, C, 1, 2, R), dtype, "channels_last"), kernels)


def test_layers_beyond_shared_memory_are_refused(kernels):
    made = problem((1, 16000, 1, 1, 1), torch.float16, "channels_last")
    _, pooled = made.forward(kernels)
    with pytest.raises(RuntimeError, match="refused with CUDA error 1$"):
        made.backward(kernels, pooled)
    with pytest.raises(RuntimeError, match="refused with CUDA error 1$"):
        problem((1, 16384, 1, 1, 1), torch.float16, "channels_last").forward(kernels)


@layouts
@pytest.mark.parametrize("pair", PAIRS[1:], ids="-".join)
def test_activations(kernels, layout, pair):
    check(problem(CASES["mobilenet-v3"], torch.float32, layout, pair), kernels)


@layouts
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_weights_in_float32(kernels, layout, dtype):
    check(problem(CASES["mobilenet-v3"], dtype, layout, weight_dtype=torch.float32), kernels)


@layouts
@pytest.mark.parametrize("case", ["mobilenet-v3", "vector-tails"])
def test_three_orders_give_the_same_bits(kernels, case, layout, order):
    made = problem(CASES[case], torch.float16, layout)
    kernels.set_order(order, 3)
    y, pooled = made.forward(kernels)
    got = [y, pooled, *made.backward(kernels, pooled)]
    kernels.set_order(0, 0)
    y, pooled = made.forward(kernels)
    assert all(torch.equal(a, b) for a, b in zip(got, [y, pooled, *made.backward(kernels, pooled)], strict=True))


@pytest.mark.parametrize("tiles", [1, 7])
@dtypes
def test_sums_may_come_tile_by_tile(kernels, tiles, dtype):
    made = problem((2, 40, 7, 5, 12), dtype, "channels_last")
    partial = torch.stack([part.double().sum((2, 3)) for part in made.x.chunk(tiles, 2)], 1)
    partial = partial.to(made.accumulators(0).dtype).contiguous()
    y, pooled = made.forward(kernels, partial)
    exact_mean = made.x.double().mean((2, 3))
    assert_close_fp64(pooled, exact_mean, reduction=4, magnitude=made.x.double().abs().mean((2, 3)))
    assert_close_fp64(y, made.torchs(torch.float64)[0], reduction=16, rival=made.torchs(dtype)[0])


@layouts
@pytest.mark.parametrize("which", ["x", "grad", "w1", "w2", "y"])
def test_misaligned_tensors(kernels, which, layout):
    made = problem((2, 24, 5, 8, 16), torch.float16, layout)
    wanted, pooled = made.forward(kernels)
    gradients = made.backward(kernels, pooled)

    def moved(t: Tensor) -> Tensor:
        return t.new_full((t.numel() + 8,), float("nan")).as_strided(t.shape, t.stride(), 1).copy_(t)

    y = moved(torch.zeros_like(made.x)) if which == "y" else None
    if which in ("x", "grad"):
        made = made._replace(**{which: moved(getattr(made, which))})
    elif which != "y":
        made.weights[NAMES.index(which) - 1] = moved(made.weights[NAMES.index(which) - 1])
    got = made.forward(kernels, y=y)
    again = made.backward(kernels, pooled, None if y is None else moved(y))
    for a, b in zip((*got, *again), (wanted, pooled, *gradients), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)


@layouts
@pytest.mark.parametrize("case", ["vector-tails", "efficientnet"])
def test_nothing_outside_is_read_or_written(kernels, case, layout):
    made = problem(CASES[case], torch.float16, layout)
    guards = {name: Guarded(t) for name, t in zip(("grad", *NAMES), (made.grad, made.x, *made.weights))}
    guarded = made._replace(
        x=guards["x"].x, grad=guards["grad"].x, weights=[guards[name].x for name in NAMES[1:]]
    )
    y, grad_x = (Guarded(torch.zeros_like(made.x)) for _ in range(2))
    _, pooled = guarded.forward(kernels, y=y.x)
    guarded.backward(kernels, pooled, grad_x.x)
    wanted, means = made.forward(kernels)
    assert torch.equal(pooled, means)
    torch.testing.assert_close(y.x, wanted, rtol=0, atol=0)
    torch.testing.assert_close(grad_x.x, made.backward(kernels, pooled)[0], rtol=2e-3, atol=2e-3)
    for name, guard in guards.items():
        guard.check(name)
    margin = Guarded.MARGIN
    for guard in (y, grad_x):
        assert guard.buffer[:margin].isnan().all() and guard.buffer[-margin:].isnan().all()


def test_zero_times_a_negative_scale_keeps_its_sign(kernels):
    made = problem((1, 8, 2, 4, 4), torch.float32, "channels_last", ("relu", "identity"))
    made.x.fill_(-0.0)
    made.weights[3].fill_(2.0), made.weights[2].zero_()
    assert made.forward(kernels)[0].signbit().all()


def placed(t: Tensor) -> Tensor:
    storage = torch.zeros(t.numel() + 512, dtype=t.dtype)
    return storage.as_strided(t.shape, t.stride(), -storage.data_ptr() % 512 // t.element_size()).copy_(t)


@layouts
@pytest.mark.parametrize("case", [(1, 96, 28, 28, 24), (2, 480, 14, 14, 120), (2, 960, 7, 7, 240)], ids=str)
def test_bytes(kernels, case, layout):
    """Forward: x twice, y once. Backward: x once, grad twice, grad_x once. The weights once for each block at most."""
    made = problem(case, torch.float16, layout)
    made = made._replace(x=placed(made.x), grad=placed(made.grad), weights=[placed(w) for w in made.weights])
    y = placed(torch.zeros_like(made.x))

    def requested(call, **tensors) -> dict[str, float]:
        known = {**tensors, **dict(zip(NAMES, (made.x, *made.weights)))}
        rest = {f"other {i}": t for i, t in enumerate(kept)}
        everything = {**known, **rest}
        kernels.start_traffic([(name, t.data_ptr(), t.nbytes) for name, t in everything.items()])
        call()
        buffers = kernels.stop_traffic(512 << 10, 528)["buffers"]
        return {name: buffers[name]["requested"] / t.nbytes for name, t in known.items()}

    kept: list[Tensor] = []

    def accumulators(*shape: int) -> Tensor:
        kept.append(Problem.accumulators(made, *shape))
        return kept[-1]

    N, C, R, _ = made.sizes
    described = made.described(kernels)
    partial, pooled, scale = accumulators(N, 32, C), accumulators(N, C), accumulators(N, C)
    forward = [t.data_ptr() for t in (made.x, *made.weights, partial, pooled, scale, y)]
    figures = requested(lambda: kernels.forward(described, forward, 0), y=y)
    blocks = N * -(-C // 64)
    assert figures["x"] == 2.0 and figures["y"] == 1.0
    assert figures["w1"] == blocks and figures["w2"] == N
    found = [placed(torch.zeros_like(t)) for t in (made.x, *made.weights)]
    kept += found[1:]
    room = accumulators(N * (3 * C + 2 * R))
    backward = [t.data_ptr() for t in (made.grad, made.x, pooled, *made.weights, partial, room, *found)]
    figures = requested(lambda: kernels.backward(described, backward), grad=made.grad, grad_x=found[0])
    assert figures["x"] == 1.0 and figures["grad"] == 2.0 and figures["grad_x"] == 1.0
    assert figures["w1"] == 2 * N and figures["w2"] == 2 * N
