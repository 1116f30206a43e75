# SPDX-License-Identifier: Apache-2.0
"""Images of any size: a plan for each, on weights that are packed once."""

import threading

import pytest
import torch

import fastcnn
from fastcnn.accelerate import packed
from fastcnn.accelerate.plan import AVAILABLE
from fastcnn.accelerate.plan.sizes import at_sizes
from fastcnn.accelerate.plan.weights import Blob
from fastcnn.reference import relative_error
from tests.accelerate.plan_nets import accelerated

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="no compiled CPU library")


def exact(original: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    found = original.double()(x.double()).detach()
    original.float()
    return found


def test_each_size_has_its_plan_and_the_weights_are_packed_once(monkeypatch):
    original, fast = accelerated(dynamic_size=True)
    written = []
    write = packed.Blob.tensor

    def counted(blob):
        written.append(sum(source.numel() for _, source, _ in blob._waiting))
        return write(blob)

    monkeypatch.setattr(packed.Blob, "tensor", counted)
    addresses = set()
    for height, width in ((24, 24), (24, 31), (40, 17), (24, 24), (33, 64)):
        for batch in (1, 3, 0):
            x = torch.randn(batch, 3, height, width)
            y = fast(x)
            assert y.shape == (batch, 5)
            assert batch == 0 or relative_error(y, exact(original, x)) < 1e-5
        plans = fast.report.plans
        assert plans.count == 1 and plans.outside == []
        addresses.add(fast._packed._blob.tensor().data_ptr())
    assert len(addresses) == 1
    weights = sum(p.numel() for p in fast.program.parameters())
    squeeze = 4 * 20  # divided by the number of pixels, so of its own for each size
    assert max(written) <= squeeze + 10 < weights and len([each for each in written if each]) <= 3


def test_the_sizes_used_last_are_kept(monkeypatch):
    monkeypatch.setattr(packed, "SIZES", 2)
    _, fast = accelerated(dynamic_size=True)
    made = []
    make = packed.Packed._make
    monkeypatch.setattr(packed.Packed, "_make", lambda self, shapes: made.append(shapes[0][-1]) or make(self, shapes))
    for width in (24, 30, 24, 40, 24, 30):
        fast(torch.randn(1, 3, 24, width))
    assert made == [30, 40, 30]
    assert len(fast._packed._forms) == 2


def test_a_full_blob_begins_anew():
    original, fast = accelerated(dynamic_size=True)
    first = fast._packed._blob
    for width in range(24, 90):
        x = torch.randn(1, 3, 24, width)
        assert relative_error(fast(x), exact(original, x)) < 1e-5
        blob = fast._packed._blob
        assert blob.size <= blob._memory.numel() <= 4 * first._memory.numel()
    assert fast._packed._blob is not first


def test_threads_make_plans_and_run_them_at_the_same_time():
    original, fast = accelerated(dynamic_size=True)
    inputs = [torch.randn(1 + i % 3, 3, 24 + i % 5, 24) for i in range(20)]
    wanted = [exact(original, x) for x in inputs]
    failed = []

    def work(start: int) -> None:
        for i in range(len(inputs)):
            j = (start + i) % len(inputs)
            with torch.inference_mode(start % 2 == 0):
                if relative_error(fast(inputs[j]), wanted[j]) > 1e-5:
                    failed.append(j)

    threads = [threading.Thread(target=work, args=(3 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_a_size_that_the_net_cannot_take_is_refused_by_its_operators():
    original, fast = accelerated(dynamic_size=True)
    for size in (3, 6):
        with pytest.raises(RuntimeError):
            original(torch.randn(1, 3, size, size))
        with pytest.raises((RuntimeError, ValueError)) as error:
            fast(torch.randn(1, 3, size, size))
        assert "run_plan" not in str(error.value)
    x = torch.randn(1, 3, 26, 26)
    assert relative_error(fast(x), exact(original, x)) < 1e-5 and fast.report.plans.count == 1


def test_in_inference_mode_first(tmp_path):
    original, fast = accelerated(dynamic_size=True)
    fast.save(tmp_path / "net")
    for make in (lambda: fastcnn.load(tmp_path / "net"), lambda: fast.float()):
        found = make()
        x = torch.randn(1, 3, 24, 25)
        with torch.inference_mode():
            first = found(x)
        torch.testing.assert_close(found(torch.cat([x, x]))[:1], first)
        assert relative_error(found(torch.cat([x, x]))[:1], exact(original, x)) < 1e-5
        assert found(torch.randn(1, 3, 24, 27)).shape == (1, 5)


def test_what_depends_on_the_batch_is_no_number_and_what_does_not_is():
    class Odd(torch.nn.Module):
        def forward(self, x):
            n, c, h, w = x.shape
            return x.reshape(n * c, h * w), x.new_ones(n, w)

    program = torch.export.export(Odd(), (torch.randn(3, 2, 8, 8),),
                                  dynamic_shapes=[dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)]).module(check_guards=False)  # fmt: skip
    graph = torch.fx.Graph()
    copied = {}
    for node in program.graph.nodes:
        if "guards" not in node.name:
            copied[node] = graph.node_copy(node, copied.__getitem__)
    found = at_sizes(torch.fx.GraphModule(program, graph), ((None, 2, 5, 7),), [torch.float32])
    for batch in (1, 4):
        flat, ones = found(torch.ones(batch, 2, 5, 7))
        assert flat.shape == (2 * batch, 35) and ones.shape == (batch, 7)
    values = {node.op: node.meta.get("val") for node in found.graph.nodes if node.op == "placeholder"}
    assert values["placeholder"].shape[1:] == (2, 5, 7)
    assert not any(
        isinstance(arg, torch.fx.Node) and "sym_size_int_2" in arg.name for n in found.graph.nodes for arg in n.args
    )


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_a_blob_holds_what_was_asked_for(lanes):
    weight = torch.arange(7.0 * 6).reshape(7, 6) + 1
    grouped = torch.arange(2.0 * 5 * 3 * 2).reshape(2, 5, 3, 2).transpose(2, 3)
    bias = torch.arange(10.0) + 1
    blob = Blob(lanes, [weight, bias])
    places = blob.matrix(weight), blob.groups(grouped), blob.vector(bias, 2), blob.matrix(weight)
    assert places[0] == places[3] and all(place % 16 == 0 for place in places)
    memory = blob.tensor()

    def unpacked(place: int, groups: int, rows: int, columns: int) -> torch.Tensor:
        vectors = -(-rows // lanes)
        part = memory[place : place + groups * vectors * columns * lanes].view(groups, vectors, columns, lanes)
        rest = part.transpose(2, 3).reshape(groups, vectors * lanes, columns)
        assert not rest[:, rows:].any()
        return rest[:, :rows]

    torch.testing.assert_close(unpacked(places[0], 1, 7, 6)[0], weight)
    torch.testing.assert_close(unpacked(places[1], 2, 5, 6), grouped.reshape(2, 5, 6))
    torch.testing.assert_close(unpacked(places[2], 2, 5, 1).reshape(-1), bias)
    assert torch.isfinite(memory).all() and blob.tensor().data_ptr() == memory.data_ptr()
