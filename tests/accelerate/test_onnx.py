# SPDX-License-Identifier: Apache-2.0
"""Each inference op and three nets as ONNX, run in ONNX Runtime on another batch than the example's."""

import inspect
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import fastcnn
from fastcnn import onnx
from fastcnn._library import SCHEMAS
from fastcnn.ops._register import overload
from fastcnn.reference import calibrate, relative_error
from tests.accelerate.onnx_cases import CASES, Calls

FORWARD_OPS = sorted(name for name in SCHEMAS if not name.endswith(("_backward", "_train")))


def run(path: Path, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    feed = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    return [torch.from_numpy(np.asarray(y)) for y in session.run(None, feed)]


def errors(found: list[Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    return {label: relative_error(y, truth) for (label, truth), y in zip(exact.items(), found, strict=True)}


def too_large(found: dict[str, float], allowed: float = 1e-5) -> dict[str, float]:
    return {label: error for label, error in found.items() if not error <= allowed}


def test_every_inference_op_has_a_translation_and_cases():
    assert sorted(op.name().split("::")[1] for op in onnx.translation_table()) == FORWARD_OPS
    assert set(FORWARD_OPS) <= set(CASES)


@pytest.mark.parametrize("op", FORWARD_OPS)
def test_a_translation_takes_what_the_schema_says(op):
    translation = onnx.translation_table()[overload(op)]
    wanted = [argument.name for argument in overload(op)._schema.arguments]
    assert list(inspect.signature(translation).parameters) == wanted


@pytest.mark.parametrize("op", FORWARD_OPS)
def test_the_op_in_onnx_runtime(op, tmp_path):
    net = Calls(op, CASES[op]()).eval()
    program = onnx.export(net, tuple(each.draw(2) for each in net.maps), tmp_path / "op.onnx")
    assert {node.domain for node in program.model_proto.graph.node} == {""} and not program.model_proto.functions
    wider = tuple(each.draw(3) for each in net.maps)
    assert too_large(errors(run(tmp_path / "op.onnx", wider), net.exact(wider))) == {}


class AnySize(nn.Module):
    """What depends on the height and width, called with sizes that only the run knows, and by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(4, 1, 3, 3))

    def forward(self, x: Tensor) -> list[Tensor]:
        ops, same = torch.ops.fastcnn, [-1] * 4
        return [
            ops.depthwise_conv2d(x, self.weight, None, None, [2, 2], same, [2, 2], "relu"),
            ops.depthwise_conv2d(x, self.weight, None, None, [2, 1], same, [1, 1], "relu"),
            ops.max_pool2d(x, [3, 3], [2, 2], [1, 1], True),
            ops.channel_shuffle(x, groups=2),
            ops.channel_shuffle_concat(x1=x, x2=x),
            ops.activation(x, kind="silu"),
        ]


def test_any_height_and_width(tmp_path):
    net = AnySize().eval()
    sizes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=4), 3: torch.export.Dim("w", min=4)}
    program = torch.onnx.export(net, (torch.randn(2, 4, 11, 14),), dynamic_shapes=(sizes,), dynamo=True,
                                custom_translation_table=onnx.translation_table(), verbose=False)  # fmt: skip
    program.save(tmp_path / "any.onnx", external_data=False)
    for shape in ((3, 4, 12, 9), (1, 4, 5, 8), (2, 4, 7, 13)):
        x = torch.randn(shape)
        exact = {str(i): y for i, y in enumerate(AnySize.forward(net.double(), x.double()))}
        assert too_large(errors(run(tmp_path / "any.onnx", (x,)), exact)) == {}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(
            fastcnn.nn.ConvBNAct(3, 8, 3, stride=2, padding=1, activation="relu6"),
            fastcnn.nn.SqueezeExcite(8, 4),
            fastcnn.nn.DepthwiseConv2d(8, 8, 3, padding=1),
            fastcnn.nn.HardSwish(),
            fastcnn.nn.GlobalAvgPool2d(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


def test_half_precision_with_vectors_in_float32(tmp_path):
    """Inputs and results are float16; batch norm, squeeze-and-excitation and activations are float32 inside."""
    net = calibrate(Block(), [3, 9, 9])
    x = torch.randn(5, 3, 9, 9).half()
    exact = net.double()(x.double()).detach()
    net = net.float()
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.data.half()
    onnx.export(net, x, tmp_path / "half.onnx")
    (y,) = run(tmp_path / "half.onnx", (x,))
    assert y.dtype is torch.float16
    with torch.no_grad():
        ours = net(x)
    assert relative_error(y, exact) <= max(torch.finfo(torch.float16).eps, 5 * relative_error(ours, exact))


def test_double_precision_in_the_reference_evaluator():
    """ONNX Runtime has no float64 convolution. Attributes of ONNX are float32: eps = 1e-5 is not exact there."""
    net = calibrate(Block(), [3, 9, 9]).double()
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    program = torch.onnx.export(
        net, (x,), dynamo=True, custom_translation_table=onnx.translation_table(), verbose=False
    )
    (y,) = program.call_reference(x)
    assert y.dtype is torch.float64 and relative_error(y, net(x).detach()) <= 1e-7


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "efficientnet_lite0"])
def test_a_net_in_onnx_runtime(name, tmp_path):
    net = calibrate(fastcnn.create_model(name), [3, 64, 64])
    onnx.export(net, torch.randn(1, 3, 64, 64), tmp_path / "net.onnx")
    assert [each.name for each in tmp_path.iterdir()] == ["net.onnx"]
    x = torch.randn(3, 3, 64, 64)
    (y,) = run(tmp_path / "net.onnx", (x,))
    with torch.no_grad():
        assert relative_error(y, net.double()(x.double())) <= 1e-5


def test_a_fixed_batch(tmp_path):
    program = onnx.export(Block().eval(), (torch.randn(1, 3, 8, 8),), tmp_path / "one.onnx", dynamic_batch=False)
    assert list(program.model.graph.inputs[0].shape) == [1, 3, 8, 8]


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.fastcnn.hardswish_backward(x, x)


def test_an_op_without_a_translation_writes_nothing(tmp_path):
    with pytest.raises(Exception, match="No ONNX function found for .*fastcnn.hardswish_backward"):
        onnx.export(Unknown().eval(), torch.randn(2, 3), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("model", "args", "message"), [
    (torch.relu, torch.ones(1), "export: model must be an nn.Module, got "),
    (Block(), torch.ones(1, 3, 8, 8), "export: model must be in eval mode, got one in training mode"),
    (Block().eval(), (), r"export: args must be a tensor or a tuple with one, got \[\]"),
    (Block().eval(), 3, r"export: args must be a tensor or a tuple with one, got \['int'\]"),
    (nn.Linear(2**15, 2**15, device="meta").eval(), torch.ones(1), "export: model must have less than 2 GiB"),
])  # fmt: skip
def test_bad_arguments(model, args, message, tmp_path):
    with pytest.raises((TypeError, ValueError), match=message):
        onnx.export(model, args, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []
