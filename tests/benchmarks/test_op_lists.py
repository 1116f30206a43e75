# SPDX-License-Identifier: Apache-2.0
"""The lists against the networks' own layers, the bytes against a count by hand, the goal."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastcnn
from benchmarks import report, shapes
from benchmarks.models import op_lists
from benchmarks.models.op_lists import NETS, Op
from fastcnn.models import shufflenet_v2
from fastcnn.reference import reference_model

REGISTERED = {"mobilenet_v1": "mobilenet_v1_x1_0"} | {
    name: name
    for name in ("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "shufflenet_v2_x1_0", "efficientnet_b0")
}
FOREIGN = ["mnasnet1_0", "densenet121", "resnet50"]
# What ours moves over layer+ where the goal is missed; why: test_what_is_missing.
MISSED = {"shufflenet_v2_x1_0": 1.130}


class _Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def _image(shape):
    return (*shape[1:], 1, 1)[:3]


def _trace(net):
    """Every convolution, linear layer and windowed pool: (kind, x, y, kernel, stride, name); and the aten calls."""
    found = []

    def record(name, module, x, y):
        pair = _image(x[0].shape), _image(y.shape)
        if isinstance(module, nn.Linear):
            found.append(("gemm", *pair, 1, 1, name))
        elif isinstance(module, nn.Conv2d):
            (k, _), (s, _) = module.kernel_size, module.stride
            kind = "depthwise" if module.groups > 1 else "gemm" if k == 1 else "implicit gemm"
            assert module.groups in (1, module.in_channels)
            found.append((kind, *pair, k, s, name))
        else:
            kind = "max pool" if isinstance(module, nn.MaxPool2d) else "average pool"
            found.append((kind, *pair, module.kernel_size, module.stride, name))

    for name, module in net.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.MaxPool2d, nn.AvgPool2d)):
            module.register_forward_hook(lambda m, x, y, name=name: record(name, m, x, y))
    with torch.device("meta"), torch.inference_mode(), _Calls() as calls:
        net.eval()(torch.empty(1, *op_lists.IMAGE))
    return found, calls.names


def _network(name):
    with torch.device("meta"):
        if name in REGISTERED:
            return fastcnn.create_model(REGISTERED[name])
        return reference_model(f"torchvision:{name}")


def _listed(op: Op):
    if op.kind == "se gate":
        hidden = (op.hidden, 1, 1)
        return [("gemm", op.x, hidden, 1, 1), ("gemm", hidden, op.y, 1, 1)]
    if op.kind in ("global pool", "shuffle concat", "batch norm"):
        return []
    kind = "average pool" if op.kind == "depthwise" and op.kernel == 2 else op.kind
    return [(kind, op.x, op.y, op.kernel, op.stride)]


@pytest.mark.parametrize("name", NETS)
def test_the_layers_are_the_networks_own(name):
    traced = [layer[:5] for layer in _trace(_network(name))[0]]
    listed = [layer for op in op_lists.op_list(name) for layer in _listed(op)]
    if name == "resnet50":  # the downsampling 1x1 runs before the 1x1 that adds it
        traced, listed = sorted(traced), sorted(listed)
    assert listed == traced


@pytest.mark.parametrize("name", REGISTERED)
def test_activations_and_residuals_of_our_models(name):
    calls = [call for call in shapes.model_calls(REGISTERED[name], 1) if call.op == "conv_bn_act"]
    wanted = [
        (_image(call.arguments[0].shape), _image(call.output), call.arguments[-1], call.arguments[7] is not None)
        for call in calls
    ]
    ops = op_lists.op_list(name)
    ops = ops[: [op.kind for op in ops].index("global pool")]
    assert [
        (op.x, op.y, op.activation, op.residual) for op in ops if op.kind in ("gemm", "implicit gemm", "depthwise")
    ] == wanted


@pytest.mark.parametrize("name", FOREIGN)
def test_activations_and_residuals_of_the_others(name):
    names = _trace(_network(name))[1]
    ops = op_lists.op_list(name)
    activations = sum(op.activation == "relu" for op in ops) + sum(op.prologue for op in ops)
    assert activations == sum(n in ("relu", "relu_") for n in names) > 0
    assert sum(op.residual for op in ops) == sum(n in ("add", "add_") for n in names)
    norms = sum(n in ("native_batch_norm", "cudnn_batch_norm", "batch_norm", "_native_batch_norm_legit_no_training")
                for n in names)  # fmt: skip
    convolutions = sum(op.kind in ("gemm", "implicit gemm", "depthwise") and op.kernel != 2 for op in ops) - 1
    unfolded = sum(op.prologue or op.kind == "batch norm" for op in ops)
    folded_elsewhere = 0 if name != "densenet121" else 61  # 58 3x3 and 3 transitions have no batch norm behind them
    assert norms == convolutions - folded_elsewhere + unfolded


def _size(shape):
    return shape[0] * shape[1] * shape[2]


@pytest.mark.parametrize("name", NETS)
def test_the_column_beside_ours(name):
    """layer+ once more from the modules: each layer's input and output, and one more read where a residual is added."""
    from_torchvision = name not in ("mobilenet_v1",)
    with torch.device("meta"):
        net = reference_model(f"torchvision:{name}") if from_torchvision else _network(name)
    layers, _ = _trace(net)
    elements = sum(_size(x) + _size(y) for _, x, y, *_ in layers)
    elements += sum(_size(op.y) for op in op_lists.op_list(name) if op.residual)
    pools = [m for n, m in net.named_modules() if isinstance(m, nn.AdaptiveAvgPool2d) and n == "avgpool"]
    if pools or name == "mobilenet_v1":  # the others average by a function, which that count did not see
        pool = next(op for op in op_lists.op_list(name) if op.kind == "global pool")
        elements += _size(pool.x) + _size(pool.y)
    assert round(2 * elements / 1e6, 1) == NETS[name][1].layer_plus


def test_bytes_by_hand():
    assert Op("max pool", (64, 112, 112), (64, 56, 56), 3, 2).written == 2 * 64 * 3136
    plain = Op("gemm", (16, 112, 112), (96, 112, 112))
    assert (plain.read, plain.written) == (2 * 16 * 12544, 2 * 96 * 12544)
    assert plain._replace(residual=True).read == plain.read + plain.written
    assert plain._replace(gate=True).read == plain.read + 4 * 16
    assert plain._replace(into=192, prologue=True).read + plain._replace(into=192).written == plain.read + plain.written
    squeezed = Op("depthwise", (72, 56, 56), (72, 28, 28), 5, 2, sums=28)
    assert squeezed.written == 2 * 72 * 784 + 4 * 72 * 28
    gate = Op("se gate", (72, 1, 1), (72, 1, 1), sums=28, hidden=24)
    assert (gate.read, gate.written) == (4 * 72 * 28, 4 * 72)
    assert op_lists.megabytes([plain, gate]) == (2 * 112 * 12544 + 4 * 72 * 29) / 1e6


def test_as_many_sums_as_the_kernel_has_tiles():
    header = (report.ROOT / "csrc/cuda/depthwise_conv2d_tile.cuh").read_text(encoding="utf-8")
    assert "kStrip = kKernel == 7 ? 1 : kKernel == 3 && kStride == 1 ? 4 : 2;" in header
    assert "kRows = kKernel == 3 ? 7 : 14;" in header
    assert [op_lists._sums((8, 28, 28), k, s) for k, s in ((3, 1), (3, 2), (5, 1), (7, 1))] == [28, 56, 28, 56]
    for name in NETS:
        ops = op_lists.op_list(name)
        for op, after in zip(ops, ops[1:]):
            assert (op.sums > 0 and op.kind == "depthwise") == (after.kind == "se gate")
            assert after.kind != "se gate" or (op.y[0], op.sums) == (after.y[0], after.sums)
        gates = sum(op.kind == "se gate" for op in ops)
        assert gates == sum(op.gate for op in ops)


@pytest.mark.parametrize("name", NETS)
def test_at_most_5_percent_over_layer_plus(name):
    over = op_lists.megabytes(op_lists.op_list(name)) / NETS[name][1].layer_plus
    if name in MISSED:
        assert over == pytest.approx(MISSED[name], abs=0.005)
    else:
        assert 0.98 <= over <= op_lists.ALLOWED


def test_what_is_missing():
    """A channel index map on the operand load in place of the shuffles."""
    ops = [op for op in op_lists.op_list("shufflenet_v2_x1_0") if op.kind != "shuffle concat"]
    assert op_lists.megabytes(ops) / NETS["shufflenet_v2_x1_0"][1].layer_plus <= 1.02


@pytest.mark.parametrize("stage", range(3))
def test_the_shuffle_plan_feeds_every_unit_its_channels(stage):
    """The docstring's layout, channel by channel, against split and shuffle as the paper has them."""
    channels, repeats = shufflenet_v2.CHANNELS[1.0][1 + stage], shufflenet_v2.REPEATS[stage]
    half, quarter = channels // 2, channels // 4
    copies = 0

    def fresh(unit):
        return [(unit, i) for i in range(half)]

    def interleave(x1, x2):
        return [c for pair in zip(x1, x2, strict=True) for c in pair]

    by, through = fresh("by"), fresh("through")
    logical = interleave(by, through)
    lies = by + through[quarter:] + through[:quarter]  # [stay, go | go, stay]
    for unit in range(1, repeats):
        assert sorted(lies[quarter : quarter + half], key=str) == sorted(logical[half:], key=str)
        made = fresh(unit)
        logical = interleave(logical[:half], made)
        if unit < repeats - 1:
            lies = interleave(lies[:quarter], lies[quarter + half :]) + made[quarter:] + made[:quarter]
            copies += 1
        else:
            lies[quarter : quarter + half] = made
    assert sorted(lies, key=str) == sorted(logical, key=str)
    ops = op_lists.op_list("shufflenet_v2_x1_0")
    assert copies == sum(op.kind == "shuffle concat" and op.y[0] == half for op in ops)


def test_the_table_has_every_network_and_says_what_is_missed():
    lines = op_lists.table().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == list(NETS)
    assert [name for name, line in zip(NETS, lines[2:]) if "(missed)" in line] == list(MISSED)
    assert len({line.count("|") for line in lines}) == 1


def test_write_puts_the_table_between_its_markers(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    results = tmp_path / "RESULTS.md"
    results.write_text("before\n<!-- bytes -->\nold\n<!-- /bytes -->\nafter\n", encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["op_lists", "--write"])
    report.section_main("bytes", op_lists.table, op_lists.__doc__)
    table = op_lists.table()
    assert results.read_text(encoding="utf-8") == f"before\n<!-- bytes -->\n{table}\n<!-- /bytes -->\nafter\n"
    assert capsys.readouterr().out == table + "\n"


def test_results_has_the_table_of_today():
    text = (report.ROOT / "RESULTS.md").read_text(encoding="utf-8")
    assert f"<!-- bytes -->\n{op_lists.table()}\n<!-- /bytes -->" in text
