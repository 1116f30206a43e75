# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of channel_shuffle on the emulator: a permutation, bit for bit, each byte read and written once."""

import mmap

import pytest
import torch

from fastcnn.testing import FORMATS, Guarded

KERNELS = "channel_shuffle"
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
# N, C, H, W, groups
CASES = {
    "two-groups": (2, 64, 5, 7, 2),
    "two-groups-of-58": (2, 116, 7, 6, 2),
    "two-groups-of-odd": (3, 30, 5, 5, 2),
    "two-groups-of-4": (3, 8, 9, 7, 2),
    "inverse": (2, 64, 5, 7, 32),
    "inverse-of-58": (2, 116, 7, 6, 58),
    "inverse-of-odd": (3, 30, 5, 5, 15),
    "g3": (2, 240, 7, 7, 3),
    "g3-inverse": (2, 240, 7, 7, 80),
    "g8": (1, 384, 9, 8, 8),
    "g8-inverse": (1, 384, 9, 8, 48),
    "g5-of-odd-vectors": (2, 35, 4, 4, 5),
    "g7-no-vectors": (1, 77, 3, 3, 7),
    "wide-pixels": (1, 6144, 1, 5, 4),
    "too-wide-to-stage": (1, 24582, 1, 2, 3),
    "one-group": (2, 16, 4, 5, 1),
    "a-group-per-channel": (2, 9, 4, 5, 9),
    "even-plane": (2, 12, 4, 4, 3),
    "one-pixel": (4, 24, 1, 1, 3),
}


def shuffled(x: torch.Tensor, groups: int) -> torch.Tensor:
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def bits(width: int, *shape: int, layout: str = "nchw") -> torch.Tensor:
    info = torch.iinfo(BITS[width])
    x = torch.empty(shape, dtype=BITS[width], memory_format=FORMATS[layout])
    return x.copy_(torch.randint(info.min, info.max, shape, dtype=BITS[width]))


def run(kernels, x1, groups, layout, x2=None, y=None) -> torch.Tensor:
    """``x1`` and ``x2`` may be channel slices."""
    channels = x1.shape[1] * (1 if x2 is None else 2)
    shape = (x1.shape[0], channels, *x1.shape[2:])
    y = torch.zeros(shape, dtype=x1.dtype).contiguous(memory_format=FORMATS[layout]) if y is None else y
    strides = [0 if x is None else x.stride(3 if layout == "channels_last" else 0) for x in (x1, x2)]
    kernels.channel_shuffle(
        x1.element_size(), x1.data_ptr(), 0 if x2 is None else x2.data_ptr(), strides, y.data_ptr(),
        [shape[0], channels, shape[2] * shape[3], groups], layout == "channels_last",
    )  # fmt: skip
    return y


widths = pytest.mark.parametrize("width", BITS)
layouts = pytest.mark.parametrize("layout", FORMATS)


@widths
@layouts
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values(kernels, case, layout, width):
    *shape, groups = case
    x = bits(width, *shape, layout=layout)
    assert torch.equal(run(kernels, x, groups, layout), shuffled(x, groups))


@layouts
@pytest.mark.parametrize("case", ["two-groups", "inverse", "two-groups-of-58", "g8"])
def test_three_orders(kernels, case, layout, order):
    *shape, groups = CASES[case]
    x = bits(2, *shape, layout=layout)
    kernels.set_order(order, groups)
    assert torch.equal(run(kernels, x, groups, layout), shuffled(x, groups))


def sliced(width: int, layout: str, first: int, channels: int, of: int) -> torch.Tensor:
    return bits(width, 2, of, 5, 6, layout=layout)[:, first : first + channels]


SLICES = [(0, 16, 32), (16, 16, 32), (8, 16, 40), (4, 58, 116), (58, 58, 116), (1, 16, 33), (3, 6, 16)]


@widths
@layouts
@pytest.mark.parametrize("where", SLICES, ids=str)
def test_concat_of_channel_slices(kernels, where, layout, width):
    x1, x2 = sliced(width, layout, *where), bits(width, 2, where[1], 5, 6, layout=layout)
    for pair in ((x1, x2), (x2, x1), (x1, x1)):
        y = run(kernels, pair[0], 2, layout, pair[1])
        assert torch.equal(y, shuffled(torch.cat(pair, 1), 2))


@widths
@layouts
@pytest.mark.parametrize("groups", [1, 2, 3, 6, 8, 24])
@pytest.mark.parametrize("where", [(0, 48, 96), (48, 48, 96), (2, 48, 53)], ids=str)
def test_shuffle_of_a_channel_slice(kernels, where, groups, layout, width):
    x = sliced(width, layout, *where)
    assert torch.equal(run(kernels, x, groups, layout), shuffled(x, groups))


@layouts
@pytest.mark.parametrize("groups", [2, 3, 24])
@pytest.mark.parametrize("which", ["x", "y"])
def test_misaligned_tensors(kernels, which, groups, layout):
    def moved(t: torch.Tensor) -> torch.Tensor:
        storage = torch.zeros(t.numel() + 1, dtype=t.dtype)
        return storage[1:].as_strided(t.shape, t.stride(), storage_offset=1).copy_(t)

    x = bits(2, 2, 48, 4, 6, layout=layout)
    y = torch.zeros_like(x)
    got = run(kernels, moved(x) if which == "x" else x, groups, layout, y=moved(y) if which == "y" else y)
    assert torch.equal(got, shuffled(x, groups))
    parts = [moved(half.contiguous(memory_format=FORMATS[layout])) for half in x.chunk(2, 1)]
    assert torch.equal(run(kernels, *parts[:1], 2, layout, parts[1]), shuffled(x, 2))


@layouts
@pytest.mark.parametrize("groups", [2, 3, 4, 22])
def test_nothing_outside_is_read_or_written(kernels, groups, layout):
    x = Guarded(torch.randn(3, 132 if groups == 3 else 44, 5, 3).contiguous(memory_format=FORMATS[layout]))
    y = Guarded(torch.zeros_like(x.x))
    assert torch.equal(run(kernels, x.x, groups, layout, y=y.x), shuffled(x.x, groups))
    x.check()
    margin = Guarded.MARGIN
    assert y.buffer[:margin].isnan().all() and y.buffer[-margin:].isnan().all()


def placed(t: torch.Tensor) -> torch.Tensor:
    """The same at a multiple of 512 bytes, as a device's tensors lie."""
    storage = torch.zeros(t.numel() + 512, dtype=t.dtype)
    start = -storage.data_ptr() % 512 // t.element_size()
    return storage.as_strided(t.shape, t.stride(), start).copy_(t)


@layouts
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((2, 116, 16, 14), 2), ((2, 232, 14, 8), 2), ((1, 464, 8, 8), 2), ((2, 116, 16, 14), 58), ((1, 464, 8, 8), 232),
     ((2, 240, 8, 14), 3), ((2, 240, 8, 14), 80), ((1, 384, 8, 8), 8), ((1, 384, 8, 8), 48)],
    ids=str,
)  # fmt: skip
def test_each_byte_moves_once_in_full_sectors(kernels, shape, groups, layout):
    x, y = (placed(bits(2, *shape, layout=layout)) for _ in range(2))
    kernels.start_traffic([("x", x.data_ptr(), x.nbytes), ("y", y.data_ptr(), y.nbytes)])
    run(kernels, x, groups, layout, y=y)
    traffic = kernels.stop_traffic(512 << 10, 528)
    assert torch.equal(y, shuffled(x, groups))
    assert {name: b["requested"] for name, b in traffic["buffers"].items()} == {"x": x.nbytes, "y": y.nbytes}
    assert traffic["dram"] == x.nbytes + y.nbytes and traffic["left_l1"] <= 1.005 * traffic["dram"]
    # the half of a pixel ends within a sector: after 3.625, 7.25 and 14.5 of them with these channels
    of_halves = {116: 0.68, 232: 0.83, 464: 0.93}.get(shape[1], 1.0) if layout == "channels_last" else 1.0
    least = {"x": of_halves, "y": 1.0} if groups == 2 else {"x": 1.0, "y": of_halves}
    used = {name: b["efficiency"] for name, b in traffic["buffers"].items()}
    assert all(used[name] >= least[name] for name in used), used


@layouts
def test_concat_reads_the_slices_where_they_lie(kernels, layout):
    whole, x2 = placed(bits(2, 2, 232, 14, 16, layout=layout)), placed(bits(2, 2, 116, 14, 16, layout=layout))
    y = placed(torch.zeros_like(whole))
    x1 = whole[:, :116]
    kernels.start_traffic([(name, t.data_ptr(), t.nbytes) for name, t in {"x1": whole, "x2": x2, "y": y}.items()])
    run(kernels, x1, 2, layout, x2, y)
    traffic = kernels.stop_traffic(512 << 10, 528)
    assert torch.equal(y, shuffled(torch.cat((x1, x2), 1), 2))
    assert {name: b["requested"] for name, b in traffic["buffers"].items()} == {
        "x1": whole.nbytes / 2, "x2": x2.nbytes, "y": y.nbytes
    }  # fmt: skip
    # the slice of 232 bytes begins and ends within sectors: 8 of them where 7.25 are asked for
    assert traffic["dram"] <= 1.10 * (whole.nbytes / 2 + x2.nbytes + y.nbytes)


@layouts
@pytest.mark.parametrize("groups", [2, 3, 6])
def test_offsets_beyond_32_bits(kernels, groups, layout):
    """Channel slices of tensors of 2^31 elements and more, never touched and so never in memory beside the slice."""
    C, pixels, far = 12, 5, 2**31 + 64
    stride = far // 4
    # as much before it, where an offset that has wrapped around would point
    storage = torch.frombuffer(mmap.mmap(-1, 2 * (2 * far + 4096)), dtype=torch.int16)
    if layout == "channels_last":
        x = storage.as_strided((1, C, 1, pixels), (pixels * stride, 1, pixels * stride, stride), far)
    else:
        x = storage.as_strided((pixels, C, 1, 4), (stride, 4, 4, 1), far)
    assert sum((n - 1) * s for n, s in zip(x.shape, x.stride())) > 2**31
    x.copy_(bits(2, *x.shape))
    assert torch.equal(run(kernels, x, groups, layout), shuffled(x, groups))
    assert torch.equal(run(kernels, x, 2, layout, x), shuffled(torch.cat((x, x), 1), 2))
