# SPDX-License-Identifier: Apache-2.0
"""accelerate(cuda_graph=True): the same results as without a graph, on any stream, thread and shape."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import fastcnn
from fastcnn.accelerate import graph
from fastcnn.reference import calibrate
from tests.gpu.tools import DEVICE


def _net() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish(),
              nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
              nn.Conv2d(16, 24, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5))  # fmt: skip
    return calibrate(nn.Sequential(*layers), [3, 32, 32]).to(DEVICE)


def _batch(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, 32, 32, device=DEVICE)


@pytest.fixture(params=[None, torch.float16], ids=str)
def pair(request) -> tuple[nn.Module, nn.Module]:
    """With and without graphs."""
    found = tuple(
        fastcnn.accelerate(_net(), _batch(), dtype=request.param, cuda_graph=graphs) for graphs in (True, False)
    )
    assert found[0].graphs._recordings  # accelerate() itself compared and timed the replay
    return found


def test_replays_equal_the_program_and_results_stay(pair):
    fast, plain = pair
    inputs = [_batch(n) for n in (2, 1, 7, 2, 1)]
    results = [fast(x) for x in inputs]
    for x, y in zip(inputs, results):
        assert torch.equal(y, plain(x))


def test_on_other_streams(pair):
    fast, plain = pair
    inputs = [_batch() for _ in range(30)]
    wanted = [plain(x) for x in inputs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(3)]
    results = []
    for place, x in enumerate(inputs):
        with torch.cuda.stream(streams[place % 3]):
            torch.cuda._sleep(100_000 * (place % 2))
            results.append(fast(x))
    torch.cuda.synchronize()
    assert all(torch.equal(y, z) for y, z in zip(results, wanted))


def test_from_threads_with_a_stream_each(pair):
    fast, plain = pair
    inputs = [_batch(1 + place % 3) for place in range(48)]
    wanted = [plain(x) for x in inputs]
    torch.cuda.synchronize()

    def call(x: torch.Tensor) -> torch.Tensor:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            y = fast(x)
        stream.synchronize()
        return y

    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(y, z) for y, z in zip(pool.map(call, inputs), wanted))


def test_shapes_are_bounded_and_changes_seen(pair, monkeypatch):
    fast, plain = pair
    monkeypatch.setattr(graph, "MOST", 2)
    for n in (1, 2, 3, 4, 1):
        x = _batch(n)
        assert torch.equal(fast(x), plain(x))
        assert len(fast.graphs._recordings) <= 2
    for model in pair:
        model.load_state_dict({name: 0.5 * weight for name, weight in model.state_dict().items()})
    assert not fast.graphs._recordings
    x = _batch()
    assert torch.equal(fast(x), plain(x))
    for model in pair:
        model.bfloat16().float()
    assert torch.equal(fast(x), plain(x))
    assert torch.equal(fast.cpu()(x.cpu()), plain.cpu()(x.cpu()))
    assert not fast.graphs._recordings


def test_inside_a_capture_of_the_callers(pair):
    fast, plain = pair
    x = _batch(3)
    fastcnn.warmup(plain, x)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        y = fast(x)
    x.copy_(_batch(3))
    recorded.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, plain(x))


def test_triton_compiles_before_the_capture():
    if fastcnn.backends.BACKENDS["triton"].missing() is not None:
        pytest.skip("Triton is not usable")
    with fastcnn.use_backend("triton"):
        fast = fastcnn.accelerate(_net(), _batch(), cuda_graph=True)
        x = _batch(5)
        y = fast(x)
        assert fast.graphs._recordings
        assert torch.equal(y, fast.program(x)[0])


def test_what_cannot_be_recorded_says_so():
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x.cpu().sum().to(x.device)  # waits for the device, which no capture may

    with pytest.raises(RuntimeError, match="cuda_graph=True: no CUDA graph can be recorded for"):
        fastcnn.accelerate(Net().eval(), _batch(), cuda_graph=True)
    assert torch.equal(torch.ones(2, device=DEVICE) + 1, torch.full((2,), 2.0, device=DEVICE))
