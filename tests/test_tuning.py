# SPDX-License-Identifier: Apache-2.0
"""tune() and warmup(), what they store, and that nothing is tuned or compiled by surprise.

Kernels are compiled for a GPU that is not there (tests/triton/driver.py); tuning that runs kernels is in
tests/triton/test_tuning.py.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch

import fastcnn
from fastcnn import _triton, tuning

if _triton.why_not() is not None:
    pytest.skip(f"Triton is not usable: {_triton.why_not()}", allow_module_level=True)

import triton

from tests.triton.driver import Driver

CPU = torch.device("cpu")


class Pair(NamedTuple):
    a: int
    b: int


@pytest.fixture(autouse=True)
def launch(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Iterator:
    """The module that every launch goes through, with nothing tuned."""
    monkeypatch.setenv("FASTCNN_TUNING_FILE", str(tmp_path / "deep" / "tuning.json"))
    module = _triton.launches()
    monkeypatch.setattr(module, "lookup", tuning._found_on)
    for cached in (tuning._stored, tuning._found_on):
        cached.cache_clear()
    yield module
    for cached in (tuning._stored, tuning._found_on):
        cached.cache_clear()


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Iterator[Driver]:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    made = Driver()
    before = triton.runtime.driver._active
    triton.runtime.driver.set_active(made)
    yield made
    triton.runtime.driver._active = before


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Callable[[], contextlib.AbstractContextManager]:
    """``with capture():`` is inside a CUDA-graph capture, as far as torch says."""

    @contextlib.contextmanager
    def run() -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_initialized", lambda: True)
            patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            yield

    return run


def choose(launch, x: torch.Tensor, shape: tuple = (1, 2), candidates: tuple = ()) -> tuple[Pair, list[Pair]]:
    """(what was run last, everything that was run)."""
    ran = []
    launch.launch("kind", shape, x, Pair(1, 2), lambda: candidates, ran.append)
    return ran[-1], ran


def test_without_tuning_the_table_decides_in_a_capture_too(launch, capture):
    with capture():
        assert choose(launch, torch.zeros(2)) == (Pair(1, 2), [Pair(1, 2)])


def test_a_session_times_each_configuration_once_and_keeps_the_fastest(launch, monkeypatch):
    costs = {Pair(1, 2): 3.0, Pair(3, 4): 1.0, Pair(5, 6): 2.0}
    timed = []

    def seconds(run):
        run()
        return costs[timed[-1]]

    def run(config):
        timed.append(config)

    session = launch.Session(seconds)
    monkeypatch.setattr(launch, "session", session)
    x = torch.zeros(2, dtype=torch.float16)
    for _ in range(2):
        launch.launch("kind", (7, "nhwc"), x, Pair(1, 2), lambda: [*costs, *costs], run)
    assert timed == [Pair(1, 2), Pair(3, 4), Pair(5, 6), Pair(3, 4), Pair(3, 4)]
    assert session.found == {"kind float16 7 nhwc": (Pair(3, 4), 1.0, 3.0)}


def test_a_configuration_that_the_gpu_has_no_room_for_is_skipped(launch):
    def run(config):
        if config.a > 1:
            raise triton.OutOfResources(200, 100, "shared memory")

    session = launch.Session(lambda run: run() or 1.0)
    assert session.best("key", Pair(1, 2), [Pair(2, 2), Pair(0, 1)], run) == Pair(1, 2)
    with pytest.raises(triton.OutOfResources):
        session.best("other", Pair(3, 2), [], run)


def test_what_was_tuned_is_found_by_gpu_kernel_dtype_and_shape(launch):
    x = torch.zeros(2)
    another = {"Another GPU, Triton 1": {"kind float32 1 3": [1, 1]}}
    tuning._store({tuning._name(CPU): {"kind float32 1 2": [8, 9]}, **another})
    assert choose(launch, x)[0] == Pair(8, 9) and isinstance(choose(launch, x)[0], Pair)
    assert choose(launch, x, (1, 3))[0] == choose(launch, x.half())[0] == Pair(1, 2)
    tuning._store({tuning._name(CPU): {"kind float32 1 3": [7, 7], "kind float32 1 4": [7, 7, 7]}})
    assert [choose(launch, x, (1, n))[0] for n in (2, 3, 4)] == [Pair(8, 9), Pair(7, 7), Pair(1, 2)]
    stored = json.loads(tuning.cache_file().read_text())
    assert set(stored) == {tuning._name(CPU), "Another GPU, Triton 1"} and triton.__version__ in tuning._name(CPU)
    assert [p.name for p in tuning.cache_file().parent.iterdir()] == ["tuning.json"]


@pytest.mark.parametrize("content", ["{", "[]", '{"cpu": 3}', '{"cpu": {"kind": [1, "2"]}}', '{"cpu": {"kind": 1}}'])
def test_a_damaged_file_is_ignored_with_one_warning(launch, content):
    tuning.cache_file().parent.mkdir()
    tuning.cache_file().write_text(content)
    with pytest.warns(RuntimeWarning, match="tuning.json is ignored") as caught:
        assert choose(launch, torch.zeros(2))[0] == choose(launch, torch.zeros(2))[0] == Pair(1, 2)
    assert len(caught) == 1


def test_where_the_file_is(monkeypatch):
    assert str(tuning.cache_file()).endswith("deep/tuning.json")
    monkeypatch.delenv("FASTCNN_TUNING_FILE")
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert tuning.cache_file().parts == ("cache", "fastcnn", "tuning.json")


@pytest.mark.parametrize("size", [2, 4, 8])
def test_what_tuning_tries(size):
    configs = importlib.import_module(f"{_triton._package()}._configs")
    dtype = {2: torch.float16, 4: torch.float32, 8: torch.float64}[size]
    for columns, depth, rows, last in itertools.product((8, 24, 96, 320), (16, 27, 960), (49, 401408), (True, False)):
        tile = configs.gemm_tile(torch.zeros(1, dtype=dtype), rows, columns, depth, last)
        tried = list(configs.gemm_candidates(tile, columns, depth))
        assert 2 <= len(tried) <= 12 and tile not in tried and len(set(tried)) == len(tried)
        for other in tried:
            assert all(n & (n - 1) == 0 for n in other[:4]) and min(other[:3]) >= 16 and other.rows <= 256
            assert other.columns <= max(16, 2 * columns) and other.depth <= max(16, 2 * depth)
    for block in (configs.Block(64, 32, 4), configs.Block(2048, 1, 4), configs.Block(1, 16, 4)):
        for other in configs.block_candidates(block):
            assert other != block and all(n & (n - 1) == 0 for n in other)


def test_tune_refuses_by_name(launch, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="^tune: example must have a tensor on a CUDA device, got one on cpu$"):
        fastcnn.tune(fastcnn.ops.hardswish, torch.zeros(2))
    with pytest.raises(ValueError, match="got none$"):
        fastcnn.tune(fastcnn.ops.hardswish, 2)
    monkeypatch.setattr(_triton, "runs_on", lambda device: True)
    with pytest.raises(RuntimeError, match="^tune: another call of tune is running$"):
        fastcnn.tune(lambda x: fastcnn.tune(torch.sin, x), torch.zeros(2))
    assert launch.session is None
    monkeypatch.setattr(_triton, "why_not", lambda: "ImportError: none here")
    with pytest.raises(RuntimeError, match="^tune: Triton is not usable: ImportError: none here$"):
        fastcnn.tune(torch.sin, torch.zeros(2))


@pytest.mark.parametrize("function", [fastcnn.tune, fastcnn.warmup], ids=["tune", "warmup"])
def test_neither_runs_inside_a_capture_or_a_trace(function, monkeypatch, capture):
    with capture(), pytest.raises(RuntimeError, match=f"^{function.__name__}: must be called before a CUDA-graph"):
        function(torch.sin, torch.zeros(2))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with pytest.raises(RuntimeError, match=f"^{function.__name__}: must be called before torch.compile"):
        function(torch.sin, torch.zeros(2))


def test_a_capture_never_compiles_and_says_what_to_do(driver, launch, capture):
    hardswish, x = _triton.launcher("hardswish"), torch.zeros(64)
    kernel = "_activation_forward_kernel"
    with capture():
        with pytest.raises(launch.NotCompiled, match=f"{kernel}: not yet compiled .*; call fastcnn.warmup"):
            hardswish(x)
        assert driver.launched == []
    assert fastcnn.warmup(hardswish, x) == 1
    assert fastcnn.warmup(hardswish, x, torch.zeros(128)) == 0
    with capture():
        hardswish(x)
        with pytest.raises(launch.NotCompiled, match=kernel):
            hardswish(x.half())
    assert driver.launched == [kernel] * 4


def test_a_hook_that_was_there_before_is_still_called(driver, launch, monkeypatch):
    seen = []
    monkeypatch.setattr(launch, "_after", lambda **given: seen.append((given["fn"].name, given["is_manual_warmup"])))
    _triton.launcher("activation")(torch.zeros(64), "relu6")
    assert [(name.endswith("_activation_forward_kernel"), manual) for name, manual in seen] == [(True, False)]


def test_kernels_of_others_are_none_of_our_business(launch, capture):
    class Function:
        module, name = "somebody.kernels", "kernel"

    before = launch.compiled
    with capture():
        assert launch._before_compiling(fn=Function, key="", repr="", compile={}) is None
    assert launch.compiled == before
    Function.module = f"{launch._PACKAGE}.activation"
    with capture(), pytest.raises(launch.NotCompiled):
        launch._before_compiling(fn=Function)


def test_warmup_leaves_the_model_as_it_was():
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.ReLU()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fastcnn.warmup(model, torch.randn(2, 3, 4, 4), (torch.randn(4, 3, 4, 4),))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="^warmup: examples must have one example at least, got none$"):
        fastcnn.warmup(model)
