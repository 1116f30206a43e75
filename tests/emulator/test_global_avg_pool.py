# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of global_avg_pool on the emulator: values, tails, misaligned planes, thread orders, traffic."""

import pytest
import torch

from fastcnn.testing import DTYPES, FORMATS, Guarded, assert_close_fp64

KERNELS = "global_avg_pool"
SHAPES = {
    "head": (2, 320, 7, 7),
    "vector-tails": (3, 33, 5, 6),
    "more-than-a-chunk": (1, 264, 3, 3),
    "one-channel": (2, 1, 13, 9),
    "one-pixel": (2, 17, 1, 1),
    "tiles": (2, 24, 50, 41),
    "tiles-of-odd": (1, 7, 61, 37),
    "one-group": (2, 8, 29, 31),
    "even-plane": (2, 12, 14, 14),
}
layouts = pytest.mark.parametrize("layout", FORMATS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def filled(shape, dtype, layout) -> torch.Tensor:
    values = (torch.randn(shape, dtype=torch.float64) + 1).to(dtype)
    return torch.empty(shape, dtype=dtype, memory_format=FORMATS[layout]).copy_(values)


def arguments(x: torch.Tensor, layout: str) -> tuple[list[int], bool]:
    return [x.shape[0], x.shape[1], x.shape[2] * x.shape[3]], layout == "channels_last"


def forward(kernels, x, layout, y=None, partial=None) -> torch.Tensor:
    y = x.new_full((*x.shape[:2], 1, 1), float("nan")) if y is None else y
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    partial = torch.full((32 * y.numel(),), float("nan"), dtype=wide) if partial is None else partial
    kernels.global_avg_pool(
        str(x.dtype), x.data_ptr(), partial.data_ptr(), partial.numel(), y.data_ptr(), *arguments(x, layout)
    )
    return y


def backward(kernels, grad, x, layout, grad_x=None) -> torch.Tensor:
    grad_x = torch.full_like(x, float("nan")) if grad_x is None else grad_x
    kernels.global_avg_pool_backward(str(x.dtype), grad.data_ptr(), grad_x.data_ptr(), *arguments(x, layout))
    return grad_x


def check(kernels, x, layout, label=""):
    exact = x.double()
    wanted, magnitude = exact.mean((2, 3), keepdim=True), exact.abs().mean((2, 3), keepdim=True)
    y = forward(kernels, x, layout)
    assert_close_fp64(y, wanted, reduction=4, magnitude=magnitude, label=label)
    grad = torch.randn(y.shape, dtype=torch.float64).to(x.dtype)
    right = (grad.double() / (x.shape[2] * x.shape[3])).expand(x.shape)
    assert_close_fp64(backward(kernels, grad, x, layout), right, magnitude=right.abs(), label=f"gradient {label}")
    return y


@shapes
@layouts
@dtypes
def test_values(kernels, shape, layout, dtype):
    check(kernels, filled(shape, dtype, layout), layout)


@layouts
@pytest.mark.parametrize("shape", ["head", "tiles", "vector-tails"])
def test_three_orders_give_the_same_bits(kernels, shape, layout, order):
    x = filled(SHAPES[shape], torch.float16, layout)
    y = forward(kernels, x, layout)
    kernels.set_order(order, 5)
    assert torch.equal(check(kernels, x, layout), y)


@layouts
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_a_hundred_thousand_pixels(kernels, layout, offset):
    x = filled((1, 3, 320, 331), torch.float32, layout) + offset
    wanted = x.double().mean((2, 3), keepdim=True)
    assert_close_fp64(forward(kernels, x, layout), wanted, magnitude=x.double().abs().mean())


@layouts
@dtypes
@pytest.mark.parametrize("offset", [1, 3])
def test_misaligned_tensors(kernels, layout, dtype, offset):
    x = filled((2, 16, 9, 8), dtype, layout)
    storage = x.new_full((x.numel() + 64,), float("nan"))
    check(kernels, storage.as_strided(x.shape, x.stride(), offset).copy_(x), layout)
    grad = torch.randn(2, 16, 1, 1, dtype=torch.float64).to(dtype)
    moved = [t.new_zeros(t.numel() + 8).as_strided(t.shape, t.stride(), offset).copy_(t) for t in (grad, x)]
    assert torch.equal(backward(kernels, moved[0], x, layout, moved[1]), backward(kernels, grad, x, layout))


@layouts
@pytest.mark.parametrize("shape", ["vector-tails", "even-plane", "tiles-of-odd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_nothing_outside_is_read_or_written(kernels, shape, layout, dtype):
    x = Guarded(filled(SHAPES[shape], dtype, layout))
    y, grad_x = Guarded(torch.zeros(*x.x.shape[:2], 1, 1, dtype=dtype)), Guarded(torch.zeros_like(x.x))
    forward(kernels, x.x, layout, y.x)
    assert torch.equal(y.x, forward(kernels, x.x, layout)) and y.x.isfinite().all()
    grad = Guarded(torch.ones_like(y.x))
    backward(kernels, grad.x, x.x, layout, grad_x.x)
    assert grad_x.x.isfinite().all()
    x.check(), grad.check("grad")
    margin = Guarded.MARGIN
    for guard in (y, grad_x):
        assert guard.buffer[:margin].isnan().all() and guard.buffer[-margin:].isnan().all()


@layouts
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_nan_stays_in_its_plane(kernels, layout, value):
    x = filled((2, 40, 7, 7), torch.float32, layout)
    clean = forward(kernels, x, layout)
    x[1, 36, 5, 6] = value
    y = forward(kernels, x, layout)
    assert (~y.isfinite()).nonzero().tolist() == [[1, 36, 0, 0]]
    y[1, 36] = clean[1, 36]
    assert torch.equal(y, clean)


def placed(t: torch.Tensor) -> torch.Tensor:
    storage = torch.zeros(t.numel() + 512, dtype=t.dtype)
    return storage.as_strided(t.shape, t.stride(), -storage.data_ptr() % 512 // t.element_size()).copy_(t)


def counted(kernels, tensors: dict[str, torch.Tensor], call) -> tuple[dict[str, tuple[float, float]], float, float]:
    """(bytes requested, use of sectors) by tensor; bytes that leave L1, DRAM bytes: as shares of the tensors'."""
    kernels.start_traffic([(name, t.data_ptr(), t.nbytes) for name, t in tensors.items()])
    call()
    traffic = kernels.stop_traffic(512 << 10, 528)
    total = sum(t.nbytes for t in tensors.values())
    figures = {name: (b["requested"] / tensors[name].nbytes, b["efficiency"]) for name, b in traffic["buffers"].items()}
    return figures, traffic["left_l1"] / total, traffic["dram"] / total


@layouts
@pytest.mark.parametrize("shape", [(1, 480, 14, 14), (2, 32, 56, 56), (2, 960, 7, 7), (4, 64, 16, 16)], ids=str)
def test_bytes_of_the_sums(kernels, shape, layout):
    """The first stage, beside which the second is small: a launch at a time is counted."""
    x, partial = placed(filled(shape, torch.float16, layout)), placed(torch.zeros(shape[0], 32, shape[1]))
    found = []

    def call() -> None:
        found.append(kernels.plane_sums("torch.float16", x.data_ptr(), partial.data_ptr(), *arguments(x, layout)))

    figures, left_l1, dram = counted(kernels, {"x": x, "partial": partial}, call)
    written = 4 * shape[0] * found[0] * shape[1]
    assert figures["x"][0] == 1.0 and figures["partial"][0] * partial.nbytes == written <= x.nbytes / 16
    scale = (x.nbytes + partial.nbytes) / (x.nbytes + written)
    # where a plane begins within a sector, its edges are requests of their own
    odd = layout == "nchw" and shape[2] * shape[3] % 16 != 0
    assert figures["x"][1] >= (0.55 if odd else 1.0), figures
    assert left_l1 * scale <= (1.09 if odd else 1.0) and dram * scale <= 1.01, (left_l1 * scale, dram * scale)


@layouts
@pytest.mark.parametrize("shape", [(1, 480, 14, 14), (2, 960, 7, 7), (4, 64, 16, 16)], ids=str)
def test_bytes_of_the_gradient(kernels, shape, layout):
    grad_x, grad = placed(filled(shape, torch.float16, layout)), placed(torch.ones(*shape[:2], 1, 1).half())
    tensors = {"grad": grad, "grad_x": grad_x}
    figures, left_l1, dram = counted(kernels, tensors, lambda: backward(kernels, grad, grad_x, layout, grad_x))
    assert figures["grad_x"] == (1.0, 1.0) and dram <= 1.005
    # NHWC: once for three or four pixels; NCHW: an element or two for each 16 bytes, most from L1
    assert figures["grad"][0] <= shape[2] * shape[3] / 3 and left_l1 <= 1.13, (figures, left_l1)
