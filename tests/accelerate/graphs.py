# SPDX-License-Identifier: Apache-2.0
"""Small graphs in the dialect of the rewrites, and what a before/after test asserts of them."""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from fastcnn.accelerate import program as p

aten = torch.ops.aten
ACTIVATIONS = {aten.relu: "relu", aten.relu6: "relu6", aten.hardswish: "hardswish", aten.hardsigmoid: "hardsigmoid",
               aten.silu: "silu", aten.sigmoid: "sigmoid"}  # fmt: skip
VIEWS = (aten.view, aten._unsafe_view, aten.flatten, aten.squeeze, aten.unsqueeze, aten.reshape)


class Function(nn.Module):
    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def original(module: nn.Module | Callable) -> nn.Module:
    """A copy in fp64 and eval, batch norm with statistics that are not 0 and 1."""
    found = copy.deepcopy(module if isinstance(module, nn.Module) else Function(module)).double().eval()
    for each in found.modules():
        if isinstance(each, nn.modules.batchnorm._BatchNorm):
            for tensor in (each.running_mean, each.weight, each.bias):
                if tensor is not None:
                    nn.init.normal_(tensor)
            nn.init.uniform_(each.running_var, 0.5, 2.0)
    return found


def dialect(module: nn.Module | Callable, *example: Tensor) -> fx.GraphModule:
    """``module`` captured with a dynamic batch and normalised; ``example`` holds its inputs, all with the same batch."""
    module = module if isinstance(module, nn.Module) else Function(module)
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    shapes = ({0: batch},) * len(example)
    shapes = (shapes,) if isinstance(module, Function) else shapes
    exported = torch.export.export(module, example, dynamic_shapes=shapes).run_decompositions({})
    program = exported.module(check_guards=False)
    state = {**exported.state_dict, **exported.constants}
    mode = p.fake_mode(program)
    for node in program.graph.nodes:
        if node.op == "get_attr":
            node.meta["val"] = mode.from_tensor(p.tensor_of(program, node), static_shapes=True)
    del state
    for node in p.calls(program, *ACTIVATIONS, *VIEWS, aten.conv2d, aten.batch_norm, aten.adaptive_avg_pool2d, aten.mean,
                        aten.hardtanh):  # fmt: skip
        _normalise(program, node)
    return p.sweep(program)


def _normalise(program: fx.GraphModule, node: fx.Node) -> None:
    packet, x = node.target.overloadpacket, node.args[0]
    if packet in ACTIVATIONS:
        p.replace(program, node, p.emit(program, node, p.ACTIVATION, (x, ACTIVATIONS[packet])))
    elif packet is aten.hardtanh and node.args[1:] in ((0, 6), (0.0, 6.0)):
        p.replace(program, node, p.emit(program, node, p.ACTIVATION, (x, "relu6")))
    elif packet in VIEWS:
        sizes = [-1 if isinstance(size, torch.SymInt) else size for size in p.shape(node)]
        p.replace(program, node, p.emit(program, node, aten.reshape.default, (x, sizes)))
    elif packet is aten.conv2d:
        names = ("weight", "bias", "stride", "padding", "dilation", "groups")
        given = (
            dict(zip(names, (None, None, [1, 1], [0, 0], [1, 1], 1))) | dict(zip(names, node.args[1:])) | node.kwargs
        )
        (h, w), stride, dilation = given["padding"], tuple(given["stride"]), tuple(given["dilation"])
        conv = p.Conv(
            x, given["weight"], given["bias"], None, stride, (w, w, h, h), dilation, given["groups"], "identity"
        )
        p.replace(program, node, p.emit(program, node, p.CONV, conv.args))
    elif packet is aten.batch_norm:
        _, weight, bias, mean, var, _, _, eps, _ = node.args
        args = (x, mean, var, weight, bias, None, eps, "identity")
        p.replace(program, node, p.emit(program, node, p.BATCH_NORM, args))
    elif packet is aten.adaptive_avg_pool2d and list(node.args[1]) == [1, 1]:
        p.replace(program, node, p.emit(program, node, p.GLOBAL_AVG_POOL, (x,)))
    elif packet is aten.mean and len(node.args) > 1 and sorted(d % 4 for d in node.args[1]) == [2, 3] and p.is_map(x):
        pooled = p.emit(program, node, p.GLOBAL_AVG_POOL, (x,))
        if len(node.args) < 3 or not node.args[2]:
            pooled = p.emit(program, node, aten.reshape.default, (pooled, [-1, p.shape(x)[1]]))
        p.replace(program, node, pooled)


def ops(program: fx.GraphModule) -> Counter:
    """How often each operator stands in the graph: ``conv_bn_act``, ``aten.mul`` ..., an activation by its kind."""
    found: Counter = Counter()
    for node in program.graph.nodes:
        if node.op != "call_function" or node.target in (operator.getitem, aten.sym_size.int):
            continue
        if node.target is p.ACTIVATION:
            found[node.args[1]] += 1
        elif isinstance(node.target, torch._ops.OpOverload):
            space, _, name = node.target._schema.name.partition("::")
            found[name if space == "fastcnn" else f"aten.{name}"] += 1
        else:
            found[node.target.__name__] += 1
    return found


def assert_equal(program: fx.GraphModule, module: nn.Module, *example: Tensor) -> None:
    """In fp64 to 1e-12, for the example, for another batch and for another memory format; the fake shapes hold too."""
    program.graph.lint()
    for batch in (len(example[0]), 5, 1):
        generator = torch.Generator().manual_seed(batch)
        inputs = [3 * torch.randn(batch, *each.shape[1:], dtype=each.dtype, generator=generator) for each in example]
        with torch.no_grad():
            torch.testing.assert_close(program(*inputs), module(*inputs), rtol=1e-12, atol=1e-12)
    for node in program.graph.nodes:
        if node.op == "call_function":
            assert "val" in node.meta, f"{node} has no shape"


def check(rewrite: Callable, module: nn.Module | Callable, *example: Tensor, count: int, present: dict[str, int],
          absent: tuple[str, ...] = (), prepare: Callable | None = None) -> tuple[fx.GraphModule, p.Notes]:  # fmt: skip
    """Run ``rewrite`` on the graph of ``module``: it replaces ``count``, ``present`` stands afterwards, ``absent`` does not."""
    module, example = original(module), tuple(each.double() for each in example)
    program, notes = dialect(module, *example), p.Notes()
    if prepare is not None:
        prepare(program, notes)
    before = ops(program)
    assert rewrite(program, notes) == count
    p.sweep(program)
    found = ops(program)
    assert {name: found[name] for name in present} == present
    assert [name for name in absent if found[name]] == []
    if count == 0:
        assert found == before
    assert_equal(program, module, *example)
    assert rewrite(program, p.Notes()) == 0, "a second run must find nothing"
    return program, notes
