# SPDX-License-Identifier: Apache-2.0
"""Every op of fastcnn/schemas.txt as the dispatcher sees it: opcheck, fakes, references, memory that nobody wrote."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map

from fastcnn import _library
from fastcnn.ops import _register
from fastcnn.testing import DTYPES, LAYOUTS, UNIT, assert_format
from tests.cross.samples import SAMPLES, SHAPES, samples, tensors_of

OPCHECK = ("test_schema", "test_autograd_registration", "test_faketensor")
names = pytest.mark.parametrize("name", _library.SCHEMAS)


def test_every_schema_has_samples_and_a_reference():
    assert set(SAMPLES) == set(_library.SCHEMAS)
    assert {op.name().removeprefix("fastcnn::") for op in _register.REFERENCES} == set(_library.SCHEMAS)


def _wants_gradient(arguments: tuple) -> tuple:
    return tree_map(lambda t: t.requires_grad_() if isinstance(t, Tensor) else t, arguments)


@names
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "sliced"])
def test_opcheck(name, layout):
    arguments = next(samples(name, torch.float32, layout))
    if not name.endswith("_backward") and name not in _register.INFERENCE_ONLY:
        arguments = _wants_gradient(arguments)
    tests = (*OPCHECK, "test_aot_dispatch_dynamic") if layout == "channels_last" else OPCHECK
    torch.library.opcheck(_register.overload(name), arguments, test_utils=tests)


@names
@pytest.mark.parametrize(
    "layout, dtype",
    [*((layout, torch.float32) for layout in LAYOUTS), ("nchw", torch.float64), ("channels_last", torch.bfloat16)],
    ids=str,
)
def test_the_fake_has_the_shape_strides_and_dtype_of_the_real(name, layout, dtype):
    op, count = _register.overload(name), 0
    mode = FakeTensorMode()
    for arguments in samples(name, dtype, layout):
        real = tensors_of(op(*arguments))
        with mode:
            fake = tensors_of(op(*tree_map(lambda t: mode.from_tensor(t) if isinstance(t, Tensor) else t, arguments)))
        # an empty tensor's strides mean nothing, and torch's own empty_like and its fake disagree on them
        facts = [
            [(t.shape, t.stride() if t.numel() else (), t.dtype, t.device.type) for t in side] for side in (real, fake)
        ]
        assert facts[0] == facts[1], f"{name}{[tuple(t.shape) if isinstance(t, Tensor) else t for t in arguments]}"
        count += 1
    assert count >= len(SHAPES) - 1


def _agree(name: str, dtype: torch.dtype, layout: str) -> None:
    op, wide = _register.overload(name), torch.promote_types(dtype, torch.float32)
    step = 64 * UNIT[wide] + (2 * UNIT[dtype] if dtype is not wide else 0.0)
    for arguments in samples(name, dtype, layout):
        results, wanted = (tensors_of(f(*arguments)) for f in (op, _register.REFERENCES[op]))
        # one scale for all: the gradient of a bias before a batch norm, say, is zero but for the rounding of its terms
        involved = [t for t in (*arguments, *wanted) if isinstance(t, Tensor) and t.numel()]
        scale = max((t.double().abs().max().item() for t in involved), default=0.0)
        for mine, theirs in zip(results, wanted, strict=True):
            assert mine.dtype is theirs.dtype and mine.shape == theirs.shape
            torch.testing.assert_close(mine.double(), theirs.double(), rtol=0, atol=step * scale)


@names
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_the_kernel_agrees_with_the_reference(name, layout, dtype):
    """P14 for the backends of a CPU; closeness to the truth is the business of the op's own tests."""
    _agree(name, dtype, layout)


@pytest.mark.parametrize("name", [name for name in _library.SCHEMAS if not name.endswith(("_backward", "_train"))])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_the_kernel_agrees_with_the_reference_in_half(name, dtype):
    """Forward only: a half that falls on the other side of a knot has another slope."""
    for layout in ("nchw", "channels_last"):
        _agree(name, dtype, layout)


@names
def test_the_output_is_never_an_input(name):
    for layout in ("nchw", "channels_last"):
        for arguments in samples(name, torch.float32, layout):
            given = {t.data_ptr() for t in arguments if isinstance(t, Tensor) and t.numel()}
            results = [t for t in tensors_of(_register.overload(name)(*arguments)) if t.numel()]
            assert given.isdisjoint(t.data_ptr() for t in results)
            assert len({t.data_ptr() for t in results}) == len(results)


@names
def test_the_first_output_has_the_format_of_x(name):
    for layout in ("nchw", "channels_last"):
        for arguments in samples(name, torch.float32, layout):
            y = tensors_of(_register.overload(name)(*arguments))[0]
            if y.dim() == 4 and y.numel():
                x = arguments[1] if name.endswith("_backward") else arguments[0]
                assert_format(y, x, name)


def digests() -> dict[str, str]:
    """One hash over every result of each op: what MALLOC_PERTURB_ must not change."""
    found = {}
    for name in _library.SCHEMAS:
        total = hashlib.sha256()
        for dtype, layout in itertools.product(DTYPES, ("nchw", "channels_last")):
            for arguments in samples(name, dtype, layout):
                for result in tensors_of(_register.overload(name)(*arguments)):
                    total.update(result.double().contiguous().numpy().tobytes())
        found[name] = total.hexdigest()
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="MALLOC_PERTURB_ is glibc's")
def test_no_result_depends_on_memory_that_nobody_wrote():
    """glibc fills every allocation with a byte of ours; an element read before it is written changes the hash."""
    sides = []
    for byte in ("1", "85"):
        environment = {**os.environ, "MALLOC_PERTURB_": byte, "MALLOC_MMAP_THRESHOLD_": str(2**30)}
        command = [
            sys.executable,
            "-c",
            "import json; from tests.cross.test_opcheck import digests; print(json.dumps(digests()))",
        ]
        run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
        assert run.returncode == 0, run.stderr[-3000:]
        sides.append(json.loads(run.stdout))
    assert len(sides[0]) == len(_library.SCHEMAS)
    assert {name for name in sides[0] if sides[0][name] != sides[1][name]} == set()
