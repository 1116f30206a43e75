# SPDX-License-Identifier: Apache-2.0
"""More than 2^31 elements, where 32-bit offsets end, and NVIDIA's compute-sanitizer over every op."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import torch

from fastcnn import _library, ops
from tests.gpu.tools import DEVICE, here
from tests.packaging.tools import ROOT

PIXELS = (4096, 4097)  # times 128 channels: 2^31 + 2^19 elements
FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
formats = pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)


@pytest.fixture
def large(memory_format):
    """[1, 128, 4096, 4097] in float16: zero but for some values near both ends."""
    if torch.cuda.mem_get_info()[0] < 15 * 2**30:
        pytest.skip("needs 15 GiB of free GPU memory")
    x = torch.zeros(1, 128, *PIXELS, device=DEVICE, dtype=torch.float16).contiguous(memory_format=memory_format)
    assert x.numel() > 2**31
    values = torch.randn(128, 8, 8, device=DEVICE).half()
    x[0, :, :8, :8] = x[0, :, -8:, -8:] = values
    yield x
    del x
    torch.cuda.empty_cache()


def ends(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return y[0, :, :8, :8], y[0, :, -8:, -8:]


@formats
def test_elementwise(large):
    y = ops.hardswish(large)
    for got, x in zip(ends(y), ends(large)):
        torch.testing.assert_close(got, torch.nn.functional.hardswish(x), rtol=1e-3, atol=1e-3)
    assert not y[0, :, 8:-8].any()


@formats
def test_shuffle(large):
    y = ops.channel_shuffle(large, 2)
    order = torch.arange(128, device=DEVICE).view(2, 64).t().flatten()
    assert all(torch.equal(got, x[order]) for got, x in zip(ends(y), ends(large)))


@formats
def test_depthwise(large):
    weight = torch.randn(128, 1, 3, 3, device=DEVICE).half()
    y = ops.depthwise_conv2d(large, weight, padding=1, activation="relu")
    for x, got in zip(ends(large), ends(y)):
        exact = torch.nn.functional.conv2d(x.double()[None], weight.double(), padding=1, groups=128).relu()[0]
        # one edge of each corner lies inside the map, where zeros follow as the padding does here
        torch.testing.assert_close(got.double(), exact, rtol=1e-2, atol=1e-2)


@formats
def test_pool_and_pointwise(large):
    mean = ops.global_avg_pool(large + 1)
    torch.testing.assert_close(mean.double(), torch.ones_like(mean).double(), rtol=1e-3, atol=0)
    for x, got in zip(ends(large), ends(ops.max_pool2d(large, 1))):
        assert torch.equal(got, x)
    weight = torch.randn(8, 128, 1, 1, device=DEVICE).half()
    y = ops.conv_bn_act(large, weight)
    for x, got in zip(ends(large), ends(y)):
        exact = torch.einsum("oc,chw->ohw", weight[:, :, 0, 0].double(), x.double())
        torch.testing.assert_close(got.double(), exact, rtol=1e-2, atol=1e-1)


SANITIZED = """
import sys, torch, fastcnn
from fastcnn.ops._register import overload
from tests.gpu.tools import here, samples_on
for dtype in (torch.float32, torch.float16):
    for layout in ("nchw", "channels_last", "offset"):
        for arguments in samples_on("cuda", sys.argv[1], dtype, layout, shapes=((2, 8, 7, 5), (1, 33, 9, 9))):
            with fastcnn.use_backend("cuda"):
                overload(sys.argv[1])(*arguments)
torch.cuda.synchronize()
print("ran")
"""


@pytest.mark.long
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
@pytest.mark.parametrize("name", _library.SCHEMAS)
def test_compute_sanitizer(name, tool):
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not on PATH")
    if "cuda" not in here(name):
        pytest.skip("no compiled kernel")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--kernel-regex", "kns=fastcnn"]
    done = subprocess.run(
        [*command, sys.executable, "-c", SANITIZED, name],
        cwd=ROOT, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "ran" in done.stdout, done.stdout[-4000:] + done.stderr[-2000:]
