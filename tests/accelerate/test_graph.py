# SPDX-License-Identifier: Apache-2.0
"""cuda_graph=True without a GPU: what is recorded when, copied where and dropped, on a recording that runs on the CPU."""

import contextlib
import pickle
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fastcnn
from fastcnn.accelerate import graph


class Replayed:
    """Fixed inputs and outputs as a CUDA graph has them; a replay runs the program on the inputs' memory."""

    made: list["Replayed"]

    def __init__(self, program, inputs):
        self.program, self.calls = program, []
        self.inputs = tuple(torch.empty_like(x).copy_(x) for x in inputs)
        self.outputs = tuple(program(*self.inputs))
        self.weights = {name: p.data_ptr() for name, p in program.named_parameters()}
        Replayed.made.append(self)

    def wait(self):
        self.calls.append("wait")

    def replay(self):
        self.calls.append("replay")
        assert {name: p.data_ptr() for name, p in self.program.named_parameters()} == self.weights
        for kept, fresh in zip(self.outputs, self.program(*self.inputs), strict=True):
            if isinstance(kept, torch.Tensor) and kept is not fresh:
                kept.copy_(fresh)

    def done(self):
        self.calls.append("done")

    def close(self):
        self.calls.append("close")


@pytest.fixture
def made(monkeypatch):
    monkeypatch.setattr(Replayed, "made", [], raising=False)
    monkeypatch.setattr(graph, "Recording", Replayed)
    monkeypatch.setattr(graph, "_is_cuda", lambda x: True)
    monkeypatch.setattr(graph, "_on", lambda x: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(fastcnn.accelerate.Accelerated, "runs", lambda fast, device: fast.program)
    return Replayed.made


def small_net():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 4, 1)).eval()


@pytest.fixture(scope="module")
def accelerated():
    return fastcnn.accelerate(small_net(), torch.randn(2, 3, 8, 8))


@pytest.fixture
def fast(accelerated, made):
    found = deepcopy(accelerated)
    found.graphs = graph.CudaGraphs()
    return found


def batch(n=2, size=8):
    return torch.randn(n, 3, size, size)


def test_results_are_those_of_the_program_and_stay(fast, made):
    inputs = [batch() for _ in range(3)]
    wanted = [fast.program(x)[0] for x in inputs]
    results = [fast(x) for x in inputs]
    assert all(torch.equal(y, z) for y, z in zip(results, wanted, strict=True))
    assert len({y.data_ptr() for y in results} | {made[0].outputs[0].data_ptr()}) == 4
    assert [y.stride() for y in results] == [z.stride() for z in wanted]
    assert len(made) == 1 and made[0].calls == ["wait", "replay", "done"] * 3


def test_one_recording_per_shape_and_layout(fast, made):
    x = batch()
    for each in (x, batch(1), x.contiguous(memory_format=torch.channels_last), x, batch(1)):
        assert torch.equal(fast(each), fast.program(each)[0])
    assert [tuple(m.inputs[0].shape) for m in made] == [(2, 3, 8, 8), (1, 3, 8, 8), (2, 3, 8, 8)]
    assert made[2].inputs[0].is_contiguous(memory_format=torch.channels_last)


def test_the_least_recently_used_shape_goes(fast, made, monkeypatch):
    monkeypatch.setattr(graph, "MOST", 2)
    for n in (1, 2, 1, 3, 1, 2):  # 3 puts out 2, and 2 then 3
        fast(batch(n))
    assert [m.inputs[0].shape[0] for m in made] == [1, 2, 3, 2]
    assert [m.calls[-1] for m in made] == ["done", "close", "close", "done"]


@pytest.mark.parametrize("change", [
    lambda fast: fast.double().float(),
    lambda fast: nn.Sequential(fast).to(torch.float64).float(),
    lambda fast: fast.load_state_dict(fast.state_dict()),
    lambda fast: nn.Sequential(fast).load_state_dict(nn.Sequential(fast).state_dict()),
    lambda fast: fast.graphs.clear(),
])  # fmt: skip
def test_changes_of_the_module_drop_the_recordings(fast, made, change):
    x = batch()
    fast(x), fast(batch(1))
    change(fast)
    assert not fast.graphs._recordings and [m.calls[-1] for m in made] == ["close"] * 2
    assert torch.equal(fast(x), fast.program(x)[0])
    assert len(made) == 3


def test_weights_changed_behind_its_back(fast, made):
    x = batch()
    before = fast(x)
    weight = next(p for p in fast.program.parameters() if p.dim() == 4)
    weight.data.mul_(2)  # the graph reads that memory
    assert torch.equal(fast(x), fast.program(x)[0]) and not torch.equal(fast(x), before) and len(made) == 1
    fast.program.load_state_dict({k: v * 3 for k, v in fast.program.state_dict().items()}, assign=True)
    assert torch.equal(fast(x), fast.program(x)[0]) and len(made) == 2
    assert made[0].calls[-1] == "close"
    weight = next(p for p in fast.program.parameters() if p.dim() == 4)
    weight.data = weight.data.clone().neg_()
    assert torch.equal(fast(x), fast.program(x)[0]) and len(made) == 3


def test_copies_start_without_recordings(fast, made):
    x = batch()
    y = fast(x)
    for copy in (deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert not copy.graphs._recordings and copy.graphs._lock is not fast.graphs._lock
        assert torch.equal(copy(x), y)
    assert len(made) == 3
    assert fast.state_dict().keys() == fast.program.state_dict(prefix="program.").keys()


def test_modes_of_the_caller_do_not_meet(fast, made):
    x = batch()
    with torch.inference_mode():
        y = fast(x)
        z = fast(batch())
    assert y.is_inference() and z.is_inference() and not made[0].inputs[0].is_inference()
    with torch.inference_mode():
        x2 = batch()
    later = fast(x2)
    assert not later.is_inference() and torch.equal(later, fast.program(x2)[0]) and len(made) == 1


def test_threads_share_a_recording(fast, made):
    inputs = [batch() for _ in range(24)]
    wanted = [fast.program(x)[0] for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(fast, inputs))
    assert all(torch.equal(y, z) for y, z in zip(results, wanted, strict=True))
    assert len(made) == 1


def test_where_no_graph_can_be_the_program_runs(fast, made, monkeypatch):
    x = batch()
    y = fast.program(x)[0]
    assert torch.compile(fast, backend="eager", fullgraph=True)(x).equal(y)
    torch.testing.assert_close(torch.export.export(fast, (x,)).module()(x), y)
    with FlopCounterMode(display=False):
        assert fast(x).equal(y)
    leaf = x.clone().requires_grad_()
    fast(leaf).sum().backward()
    assert leaf.grad is not None and bool(leaf.grad.any())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert fast(x).equal(y)
    monkeypatch.undo()
    torch.testing.assert_close(fast(x), y)  # on the CPU, where a model may have been moved: by a plan
    assert made == []


def test_outputs_of_every_kind(made):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            y = self.conv(x)
            return {"map": y, "again": y, "input": x, "count": 3}

    fast = fastcnn.accelerate(Net().eval(), batch())
    fast.graphs = graph.CudaGraphs()
    x = batch()
    found = fast(x)
    assert torch.equal(found["map"], fast.program(x)[0]) and found["again"].equal(found["map"])
    assert found["input"] is x and found["count"] == 3
    assert found["map"].data_ptr() != made[0].outputs[0].data_ptr()


def test_what_cannot_be_recorded_says_so(fast, monkeypatch):
    def refuse(program, inputs):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graph, "Recording", refuse)
    with pytest.raises(
        RuntimeError, match=r"cuda_graph=True: no CUDA graph .* \[2, 3, 8, 8\]: operation not permitted"
    ):
        fast(batch())


def test_the_option_needs_a_cuda_device():
    with pytest.raises(ValueError, match="cuda_graph=True needs the model and example on a CUDA device, got cpu"):
        fastcnn.accelerate(small_net(), batch(), cuda_graph=True)
    with pytest.raises(TypeError, match="cuda_graph must be True or False, got int"):
        fastcnn.accelerate(small_net(), batch(), cuda_graph=1)
    assert fastcnn.accelerate(small_net(), batch()).graphs is None


def test_a_recording_warms_up_on_a_side_stream_before_it_captures(monkeypatch):
    log = []

    class Stream:
        def __init__(self, name="side"):
            self.name = name

        def wait_stream(self, other):
            log.append(f"{self.name} waits for {other.name}")

        def wait_event(self, event):
            log.append(f"{self.name} waits for the event")

    class Event:
        record = staticmethod(lambda: log.append("event"))
        synchronize = staticmethod(lambda: log.append("synchronize"))

    class Graph:
        replay = staticmethod(lambda: log.append("replay"))

    @contextlib.contextmanager
    def within(name):
        log.append(f"on {name}")
        yield
        log.append(f"off {name}")

    main = Stream("main")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: main)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: within(stream.name))
    monkeypatch.setattr(torch.cuda, "graph", lambda g, capture_error_mode: within(capture_error_mode))

    def program(x):
        log.append("run")
        return (x + 1,)

    x = torch.zeros(2)
    recording = graph.Recording(program, (x,))
    recording.wait(), recording.replay(), recording.done(), recording.close()
    warm_up = ["on side", *["run"] * graph.WARM_UP, "off side"]
    assert log == [
        "side waits for main", *warm_up, "main waits for side", "on thread_local", "run", "off thread_local", "event",
        "main waits for the event", "replay", "event", "synchronize",
    ]  # fmt: skip
    assert recording.inputs[0] is not x and recording.outputs[0].tolist() == [1, 1]
