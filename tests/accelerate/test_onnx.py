# SPDX-License-Identifier: Apache-2.0
"""Each inference op and three nets as ONNX, run in ONNX Runtime on another batch than the example's."""

import inspect
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from fastcnn import onnx
from fastcnn._library import SCHEMAS
from fastcnn.ops._register import overload
from fastcnn.reference import relative_error
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
