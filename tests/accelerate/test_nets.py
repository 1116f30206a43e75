# SPDX-License-Identifier: Apache-2.0
"""accelerate() on the models of nets.py: the same outputs at every batch size, every batch norm folded, all explained."""

from __future__ import annotations

from copy import deepcopy
from importlib.metadata import PackageNotFoundError, distribution

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_structure

import fastcnn
from fastcnn.accelerate.cost import is_launch
from fastcnn.accelerate.program import BATCH_NORM, CONV, DEPTHWISE, POINTWISE, aten, is_op
from fastcnn.accelerate.rewrites.normalise import arguments
from fastcnn.check import AMPLIFIES, IN_FP64
from fastcnn.cli.demo import labelled_pictures
from fastcnn.data import load_image, preprocess
from fastcnn.models import metadata
from fastcnn.reference import reference_model, relative_error
from tests.accelerate.nets import NETS, Net
from tests.parity import FORMATS, FP32_FACTOR, FP32_FLOOR, one_thread

NORMS = (BATCH_NORM, aten.batch_norm, aten._native_batch_norm_legit_no_training)
CONVS = (CONV, DEPTHWISE, POINTWISE, aten.convolution, aten.conv2d)


def error(y: object, truth: object) -> float:
    """The worst of the tensors of an output."""
    pairs = zip(tree_leaves(y), tree_leaves(truth), strict=True)
    return max(relative_error(mine, other) for mine, other in pairs)


def first(y: object, count: int) -> list[Tensor]:
    return [tensor[:count] for tensor in tree_leaves(y)]


@torch.no_grad()
def assert_same_output(net: Net, model: nn.Module, fast: nn.Module) -> None:
    """The parity rule at batches that the example had not, both memory formats."""
    x = net.pixels(3)
    with one_thread():
        double = deepcopy(model).double()
        truth = double(x.double())
    own = [deepcopy(model).to(memory_format=f)(x.contiguous(memory_format=f)) for f in FORMATS.values()]
    for batch in (3, 1):
        wanted = first(truth, batch)
        allowed = max(FP32_FLOOR, FP32_FACTOR * max(error(first(y, batch), wanted) for y in own))
        for memory_format in FORMATS.values():
            y = fast(x[:batch].contiguous(memory_format=memory_format))
            assert tree_structure(y) == tree_structure(truth)
            found = error(tree_leaves(y), wanted)
            assert found <= allowed, f"{net.name}, batch {batch}, {memory_format}: {found:.1e}, allowed {allowed:.1e}"
    if allowed > AMPLIFIES:  # fp32 says little about such a net
        with one_thread():
            exact = fastcnn.accelerate(double, net.pixels(2).double())(x.double())
            noise = error(deepcopy(double).to(memory_format=torch.channels_last)(x.double()), truth)
        found, allowed = error(exact, truth), max(IN_FP64 * allowed, FP32_FACTOR * noise)
        assert found <= allowed, f"{net.name}, fp64: {found:.1e}, allowed {allowed:.1e}"


def follows_a_convolution(norm: fx.Node) -> bool:
    """Whether its input is the result of a convolution and nothing else: no activation, no sum is part of it."""
    producer = norm.args[0]
    if not is_op(producer, *CONVS):
        return False
    given = arguments(producer)
    return given.get("activation", "identity") == "identity" and given.get("residual") is None


def launches(program: fx.GraphModule) -> list[str]:
    """The operators that are not ours and work on tensors, and the batch norms that stand."""
    nodes = [node for node in program.graph.nodes if is_launch(node)]
    return [node.target for node in nodes if node.target.namespace != "fastcnn" or is_op(node, *NORMS)]


@pytest.mark.parametrize(
    "net", [pytest.param(net, id=net.name, marks=() if net.short else pytest.mark.long) for net in NETS]
)
def test_a_model_of_torchvision_or_timm(net: Net) -> None:
    model = net.build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fast = fastcnn.accelerate(model, net.pixels(2))
    assert fast.report.accelerated
    assert_same_output(net, model, fast)
    state = model.state_dict()
    assert list(state) == list(before) and all(torch.equal(state[key], before[key]) for key in before)

    standing = [node for node in fast.program.graph.nodes if is_op(node, *NORMS)]
    assert not any(follows_a_convolution(node) for node in standing)
    assert len(standing) <= net.kept and bool(net.kept) == bool(net.why), f"{len(standing)} batch norms stand"
    assert fast.report.fused["fold_batch_norm"] >= net.folded
    saved = fast.report.launches["before"] - fast.report.launches["after"]
    assert saved >= net.folded, f"{saved} launches fewer"
    assert sum(each.count for each in fast.report.left) == len(launches(fast.program))
    assert all(each.reason and each.operator and len(each.layers) == each.count for each in fast.report.left)
    assert not any(is_op(node, aten.convolution, aten.conv2d) for node in fast.program.graph.nodes)


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_lite0"])
def test_published_weights_classify_pictures_as_the_original(name: str) -> None:
    facts = metadata(name)
    for package in ("foolbox", facts["weights"]["imagenet"]["package"]):
        try:
            distribution(package)
        except PackageNotFoundError:
            pytest.skip(f"{package} is not installed; `make test` installs it")
    model = reference_model(facts["reference"])
    model.load_state_dict(fastcnn.create_model(name, weights="imagenet").state_dict())
    pictures = [(preprocess(load_image(path), facts), label) for path, label in labelled_pictures()]
    fast = fastcnn.accelerate(model, pictures[0][0][None])
    x = torch.stack([pixels for pixels, _ in pictures])
    with torch.inference_mode():
        best, wanted = (torch.cat([net(part) for part in x.split(5)]).topk(5).indices for net in (fast, model))
    assert len(x) == 20 and best.tolist() == wanted.tolist()
    assert sum(label == row[0] for (_, label), row in zip(pictures, best.tolist(), strict=True)) >= 18
