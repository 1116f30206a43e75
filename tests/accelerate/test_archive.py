# SPDX-License-Identifier: Apache-2.0
"""Saved programs come back as they were."""

import json
import operator
import zipfile
from collections import OrderedDict, namedtuple

import pytest
import torch
from torch import fx, nn
from torch.utils._pytree import tree_flatten

from fastcnn.accelerate import archive
from fastcnn.accelerate.archive import ArchiveError, load, save
from fastcnn.accelerate.capture import capture
from fastcnn.accelerate.targets import ATEN, allowed

aten = torch.ops.aten
ours = torch.ops.fastcnn
SPEC = tree_flatten({"out": [0, (1,)], "aux": OrderedDict(a=2)})[1]


def small_program() -> fx.GraphModule:
    """Conv + activation, split, concat, pool, sizes, an infinite bound, shared and channels_last weights."""
    root = fx.GraphModule(nn.Module(), fx.Graph())
    weight = torch.randn(8, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    for name, tensor in (
        ("stem.0.weight", weight),
        ("stem.0.bias", torch.randn(8)),
        ("head.weight", torch.randn(5, 8)),
    ):
        *path, leaf = name.split(".")
        owner = root
        for part in path:
            owner.add_module(part, nn.Module()) if part not in owner._modules else None
            owner = owner._modules[part]
        owner.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    root.head.register_parameter("tied", root.head.weight)
    root.head.register_buffer("scale", torch.tensor([2.0]).half())
    root.register_buffer("offset", torch.arange(5), persistent=False)
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(2, 4, 6, 6, device="meta")
    w, b, tied, scale, offset = (graph.create_node("get_attr", name) for name in (
        "stem.0.weight", "stem.0.bias", "head.tied", "head.scale", "offset"))  # fmt: skip
    y = graph.call_function(ours.conv_bn_act.default, (x, w, b, None, None, None, None, None, (1, 1), (1, 1, 1, 1), [1, 1],
                                                       1, 0.0, "relu"))  # fmt: skip
    y.meta["layer"] = "stem.0"
    parts = graph.call_function(aten.split.Tensor, (y, 4, 1))
    first, second = (graph.call_function(operator.getitem, (parts, i)) for i in (0, 1))
    joined = graph.call_function(aten.cat.default, ([second, first], 1))
    low = graph.call_function(aten.clamp.default, (joined, float("-inf")), {"max": float("inf")})
    copy = graph.call_function(aten.contiguous.default, (low,), {"memory_format": torch.channels_last})
    pooled = graph.call_function(ours.global_avg_pool.default, (copy,))
    batch = graph.call_function(aten.sym_size.int, (x, 0))
    flat = graph.call_function(aten.reshape.default, (pooled, [batch, 8]))
    logits = graph.call_function(aten.linear.default, (flat, tied))
    cast = graph.call_function(aten._to_copy.default, (scale,), {"dtype": torch.float32, "device": torch.device("cpu")})
    scaled = graph.call_function(aten.mul.Tensor, (logits, cast))
    ends = graph.call_function(aten.add.Tensor, (scaled, offset), {"alpha": 0.5})
    double = graph.call_function(operator.mul, (batch, 2))
    twice = graph.call_function(aten.add.Tensor, (logits, double))
    graph.output((ends, twice, copy, None))
    root.graph = graph
    return root


def forged(path, document, weights=None, **members):
    """A file like ours that was not written by us."""
    with zipfile.ZipFile(path) as good:
        weights = good.read("weights.safetensors") if weights is None else weights
    target = path.with_name("forged.fcnn")
    with zipfile.ZipFile(target, "w") as bad:
        bad.writestr("program.json", document if isinstance(document, bytes) else json.dumps(document))
        bad.writestr("weights.safetensors", weights)
        for name, data in members.items():
            bad.writestr(name, data)
    return target


def document_of(path) -> dict:
    with zipfile.ZipFile(path) as good:
        return json.loads(good.read("program.json"))


@pytest.fixture
def saved(tmp_path):
    program, path = small_program(), tmp_path / "net.fcnn"
    extra = {"inputs": [["x", [None, 4, 6, 6]]], "worst": float("inf"), "pair": (1, 2.5), "dtype": torch.bfloat16}
    save(path, program, in_spec=None, out_spec=SPEC, extra=extra)
    return program, path, extra


def test_it_computes_the_same_at_any_batch(saved):
    program, path, _ = saved
    got = load(path).program
    for n in (1, 2, 5):
        x = torch.randn(n, 4, 6, 6)
        for mine, theirs in zip(got(x), program(x), strict=True):
            assert (mine is None and theirs is None) or (torch.equal(mine, theirs) and mine.stride() == theirs.stride())


def test_graph_and_the_rest_come_back(saved):
    program, path, extra = saved
    got = load(path)
    assert got.program.code == program.code
    assert [(n.op, n.name, n.args, n.kwargs) for n in got.program.graph.nodes].__repr__() == [
        (n.op, n.name, n.args, n.kwargs) for n in program.graph.nodes
    ].__repr__()
    assert got.in_spec is None
    assert got.out_spec == SPEC
    assert got.extra == extra
    assert isinstance(got.extra["pair"], tuple)
    x, conv = (next(n for n in got.program.graph.nodes if n.op == op) for op in ("placeholder", "call_function"))
    assert x.meta == {"input": {"shape": (2, 4, 6, 6), "dtype": torch.float32}}
    assert conv.meta == {"layer": "stem.0"}


def test_weights_come_back_in_order_kind_and_memory_format(saved):
    program, path, _ = saved
    got = load(path).program
    assert list(got.state_dict()) == list(program.state_dict()) == [
        "stem.0.weight", "stem.0.bias", "head.weight", "head.tied", "head.scale"]  # fmt: skip
    assert [n for n, _ in got.named_buffers()] == [n for n, _ in program.named_buffers()]
    assert {n for n, _ in got.named_buffers()} == {"head.scale", "offset"}
    for (name, mine), theirs in zip(got.named_parameters(), program.parameters(), strict=True):
        assert type(mine) is nn.Parameter, name
        assert not mine.requires_grad
        assert torch.equal(mine, theirs)
        assert mine.stride() == theirs.stride()
    assert got.get_parameter("stem.0.weight").is_contiguous(memory_format=torch.channels_last)
    assert got.head.tied is got.head.weight
    with zipfile.ZipFile(path) as file:
        assert len(file.read("weights.safetensors")) < 1000 + 4 * (8 * 4 * 9 + 8 + 5 * 8) + 2 + 8 * 5


def test_saving_again_gives_the_same_bytes(saved, tmp_path):
    program, path, extra = saved
    save(tmp_path / "same.fcnn", program, in_spec=None, out_spec=SPEC, extra=extra)
    assert (tmp_path / "same.fcnn").read_bytes() == path.read_bytes()
    got = load(path)
    save(path, **got._asdict())
    assert (tmp_path / "same.fcnn").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("tensor", [
    torch.randn(3, 4, 1, 1).to(memory_format=torch.channels_last), torch.randn(6, 1, 3, 3), torch.zeros(0, 3), torch.ones(()),
    torch.arange(6).view(2, 3).t(), torch.tensor([True, False]), torch.randn(4, 4).bfloat16(), torch.randn(9)[2:5],
    torch.empty_strided((3, 4, 1, 1), (4, 1, 4, 4)).zero_(),
], ids=lambda tensor: f"{list(tensor.shape)}-{tensor.stride()}-{tensor.dtype}")  # fmt: skip
def test_every_weight(tensor, tmp_path):
    graph = fx.Graph()
    graph.output((graph.create_node("get_attr", "w"),))
    program = fx.GraphModule(nn.Module(), fx.Graph())
    program.register_buffer("w", tensor)
    program.graph = graph
    save(tmp_path / "w", program, in_spec=None, out_spec=None, extra={})
    got = load(tmp_path / "w").program.w
    assert got.dtype == tensor.dtype
    assert torch.equal(got, tensor)
    if tensor.dim() == 4:
        assert got.stride() == tensor.stride()


@pytest.mark.parametrize("name", [
    "squeezenet1_1", "lraspp", pytest.param("regnet_y_400mf", marks=pytest.mark.long),
    pytest.param("shufflenet_v2_x0_5", marks=pytest.mark.long),
])  # fmt: skip
def test_nets_of_torchvision(name, tmp_path):
    models = pytest.importorskip("torchvision.models")
    if name == "lraspp":
        model = models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    else:
        model = models.get_model(name, weights=None)
    x = torch.randn(2, 3, 64, 64)
    captured = capture(model.eval(), (x,))
    save(tmp_path / "net", captured.program, in_spec=None, out_spec=captured.out_spec, extra={"name": name})
    got = load(tmp_path / "net")
    assert got.out_spec == captured.out_spec
    assert got.program.code == captured.program.code
    for mine, theirs in zip(got.program(x[:1]), captured.program(x[:1]), strict=True):
        assert torch.equal(mine, theirs)


def test_a_failed_write_leaves_what_was_there(saved, monkeypatch):
    program, path, _ = saved
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(path, program, in_spec=None, out_spec=None, extra={})
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_nothing_that_writes_reads_files_or_draws_numbers_may_be_called():
    listed = [target for target in allowed().values() if hasattr(target, "_schema")]
    assert len(listed) > 250
    assert [
        str(t) for t in listed if t._schema.is_mutable or t._schema.name.endswith(("_", "_train", "_backward"))
    ] == []
    words = ("as_strided", "from_file", "resize", "set_", "empty", "rand", "bernoulli", "storage", "record", "quantize")
    assert [str(t) for t in listed if any(word in t._schema.name for word in words)] == []
    types = {str(a.real_type) for t in listed for a in t._schema.arguments}
    assert not types & {"Generator", "Optional[Generator]", "Storage", "Stream", "Any", "PyObject"}
    assert {f"aten.{name}" for name in ATEN} <= allowed().keys() | {"aten.rms_norm.default"}


def with_call(target, *args):
    graph = fx.Graph()
    graph.output((graph.call_function(target, (graph.placeholder("x"), *args)),))
    return fx.GraphModule(nn.Module(), graph)


def no_method():
    graph = fx.Graph()
    graph.output((graph.call_method("relu", (graph.placeholder("x"),)),))
    return fx.GraphModule(nn.Module(), graph)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: with_call(aten.relu_.default), r"node 'relu__default': calls aten\.relu_\.default, wanted an operator"),
    (lambda: with_call(aten.as_strided.default, [1], [1]), "as_strided"),
    (lambda: with_call(ours.hardswish_backward.default), "hardswish_backward"),
    (lambda: with_call(print), "node '.*': calls <built-in function print>"),
    (lambda: with_call(aten.max_pool2d.default, "2"), "max_pool2d.default: kernel_size must be List.int., got '2'"),
    (lambda: with_call(aten.cat.default), "cat.default: tensors must be List.Tensor., got x"),
    (lambda: with_call(aten.batch_norm.default, None, None, None, None, True, 0.1, 1e-5, True), "training must be False"),
    (no_method, "is a call_method"),
])  # fmt: skip
def test_a_program_that_would_not_load_is_not_saved(make, message, tmp_path):
    with pytest.raises(ArchiveError, match=message):
        save(tmp_path / "net", make(), in_spec=None, out_spec=None, extra={})
    assert list(tmp_path.iterdir()) == []


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(("change", "message"), [
    ({"extra": {"f": print}}, "extra has a value of type builtin_function_or_method"),
    ({"extra": {1: 2}}, "extra has the key 1"),
    ({"extra": []}, "extra must be a dict"),
    ({"out_spec": tree_flatten(Pair(1, 2))[1]}, "out_spec has a structure with a value of type Pair"),
    ({"in_spec": tree_flatten({1: 2})[1]}, "in_spec has a structure with the key 1"),
])  # fmt: skip
def test_what_has_no_json_form_is_refused(change, message, tmp_path):
    given = {"in_spec": None, "out_spec": None, "extra": {}} | change
    with pytest.raises(ArchiveError, match=message):
        save(tmp_path / "net", small_program(), **given)


def test_bad_weights_are_not_saved(tmp_path):
    program = small_program()
    program.head.weight.data[0, 0] = float("nan")
    with pytest.raises(ArchiveError, match="NaN or infinity in 1 weights: head.weight"):
        save(tmp_path / "net", program, in_spec=None, out_spec=None, extra={})
    program.head.weight = nn.Parameter(torch.ones(5, 8, dtype=torch.complex64), requires_grad=False)
    with pytest.raises(ArchiveError, match="'head.weight' must be dense, of float64.*complex64"):
        save(tmp_path / "net", program, in_spec=None, out_spec=None, extra={})
    with pytest.raises(TypeError, match="program must be a torch.fx.GraphModule, got Linear"):
        save(tmp_path / "net", nn.Linear(1, 1), in_spec=None, out_spec=None, extra={})
