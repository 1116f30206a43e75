# SPDX-License-Identifier: Apache-2.0
"""Offsets beyond 2^31 elements: maps of 5 GB whose pages exist only where a kernel touches them.

Of a grid with many programs a few run, the last among them; the interpreter computes with integers of the compiled
kernel's width, so an offset that is kept in 32 bits wraps here as it would there.
"""

import builtins
import contextlib
import mmap
from unittest import mock

import torch
from triton.runtime import interpreter

from fastcnn import _triton
from fastcnn.testing import assert_close_fp64
from tests.cross import exact

from .interpreter import needs_triton, run_checks
from .traffic import counted

LARGE = 2**31
NORESERVE = 0x4000  # MAP_NORESERVE of Linux, which mmap names from Python 3.13 on
FORMATS = (torch.channels_last, torch.contiguous_format)
_allocate = torch.empty
GEOMETRY = (1, 1), (0, 0, 0, 0), (1, 1)
ONE_PIXEL = (1, 1), (1, 1), (0, 0), False  # a pool's window, stride and padding


def _sparse(shape: tuple[int, ...], memory_format: torch.memory_format = torch.contiguous_format) -> torch.Tensor:
    strides = _allocate(shape, device="meta", memory_format=memory_format).stride()
    count = torch.Size(shape).numel()
    memory = mmap.mmap(-1, 2 * count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
    memory.madvise(mmap.MADV_NOHUGEPAGE)  # one pixel touched would be 2 MB
    return torch.frombuffer(memory, dtype=torch.float16, count=count).as_strided(shape, strides)


def _few(*args):
    """range() that walks over the ends of what is long."""
    whole = builtins.range(*args)
    return whole if len(whole) <= 64 else [whole[i] for i in (0, 1, -2, -1)]


@contextlib.contextmanager
def _large_machine():
    """Results are sparse too, and of a long dimension of a grid the first and last programs run."""

    def empty(*args, dtype=None, memory_format=torch.contiguous_format, **kwargs):
        shape = args[0] if len(args) == 1 and not isinstance(args[0], int) else args
        if torch.Size(shape).numel() >= LARGE:
            return _sparse(tuple(shape), memory_format)
        return _allocate(*args, dtype=dtype, memory_format=memory_format, **kwargs)

    def empty_like(x):
        return _sparse(x.shape).as_strided(x.shape, x.stride()) if x.numel() >= LARGE else _allocate(x.shape)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch, "empty", empty))
        stack.enter_context(mock.patch.object(torch, "empty_like", empty_like))
        stack.enter_context(mock.patch.object(interpreter, "range", _few, create=True))
        stack.enter_context(counted())  # which tells an address outside of every map
        yield


def _launch(op: str, *args, **kwargs):
    return _triton.launcher(op)(*args, **kwargs)


def check_dense_maps():
    C, H, W = 64, 1024, 1024
    for memory_format in FORMATS:
        x = _sparse((33, C, H, W), memory_format)
        assert x.numel() > LARGE
        values = torch.randn(C, 8).half()
        x[-1, :, -1, -8:] = values  # of the last pixels, which the last programs own in channels_last
        vectors = [torch.rand(C) + 0.5 for _ in range(4)]
        scale = torch.rand(33, C)
        with _large_machine():
            found = {
                "activation": _launch("activation", x, "relu"),
                "batch_norm_act": _launch("batch_norm_act", x, *vectors, None, 1e-3, "identity"),
                "shuffle": _launch("channel_shuffle", x, 4),
                "interleave": _launch("channel_shuffle", x, 2),
                "split": _launch("channel_shuffle", x, C // 2),
                "max_pool2d": _launch("max_pool2d", x, *ONE_PIXEL),
                "max_pool2d_backward": _launch("max_pool2d_backward", x, x, *ONE_PIXEL),
            }
            from fastcnn.triton_kernels.se_scale import _scaled

            found["se_scale"] = _scaled(x, memory_format is torch.channels_last, scale, None)
        z = values.double()
        mean, var, weight, bias = (v.double()[:, None] for v in vectors)
        wanted = {
            "activation": z.clamp(min=0),
            "batch_norm_act": (z - mean) / (var + 1e-3).sqrt() * weight + bias,
            "se_scale": z * scale[-1].double()[:, None],
            "max_pool2d": z,
            "max_pool2d_backward": z,
        }
        for name, groups in (("shuffle", 4), ("interleave", 2), ("split", C // 2)):
            wanted[name] = exact.channel_shuffle(z.view(1, C, 8, 1), groups).view(C, 8)
        for name, y in found.items():
            rows = slice(None) if memory_format is torch.channels_last else slice(-1, None)  # what ran: the last plane
            got = y[-1, :, -1, -8:][rows]
            assert_close_fp64(got, wanted[name][rows], magnitude=4.0, label=f"{name} {memory_format}")


def check_slices_of_wide_maps():
    """A few channels of many, read and written: the pixels or images of both maps lie 2^20 elements apart."""
    from fastcnn.triton_kernels.conv_bn_act import launch_conv_bn_act
    from fastcnn.triton_kernels.depthwise_conv2d import launch_depthwise_conv2d

    weight, taps = torch.randn(8, 8, 1, 1).half() / 3, torch.randn(8, 1, 1, 1).half()
    for memory_format, shape in (
        (torch.channels_last, (1, 1 << 20, 42, 50)),
        (torch.channels_last, (2100, 1 << 20, 1, 1)),
        (torch.contiguous_format, (600, 1 << 20, 2, 2)),
    ):
        x, y = (_sparse(shape, memory_format)[:, 8:16] for _ in range(2))
        x.copy_(torch.randn(x.shape).half())
        wanted = exact.convolution(x.double(), weight.double(), None, 1, 0)
        with counted():
            launch_conv_bn_act(x, weight, *(None,) * 6, *GEOMETRY, 1, 0.0, "identity", out=y)
        assert_close_fp64(y, wanted, reduction=8, magnitude=8.0, label=f"conv_bn_act {shape}")
        wanted = exact.convolution(x.double(), taps.double(), None, 1, 0, 1, 8)
        with counted():
            launch_depthwise_conv2d(x, taps, None, None, *GEOMETRY, "identity", out=y)
        assert_close_fp64(y, wanted, magnitude=4.0, label=f"depthwise_conv2d {shape}")
        with counted():
            _launch("max_pool2d", x, *ONE_PIXEL, out=y.fill_(0))
        assert torch.equal(y, x), f"max_pool2d {shape}"


@needs_triton
def test_in_the_interpreter():
    run_checks(__name__)
