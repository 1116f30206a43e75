# SPDX-License-Identifier: Apache-2.0
"""accelerate(): capture, rewrite, verify, report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from . import report as reporting
from . import verify
from .capture import CaptureError, capture, flat_example
from .cost import cost
from .module import Accelerated, Unchanged, input_rules, use_channels_last
from .portable import to_aten
from .program import sweep
from .report import Report
from .rewrites import PLAN, check_mapping, rewrite

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class ToleranceError(ValueError):
    """The accelerated model differs from the original by more than is allowed; ``report`` has the figures."""

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


def accelerate(
    model: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    *,
    dtype: torch.dtype | None = None,
    dynamic_size: bool = False,
    strict: bool = True,
    tolerance: float | None = None,
    require_speedup: bool = False,
    portable: bool = False,
    cuda_graph: bool = False,
    mapping: Mapping[str, bool] | None = None,
) -> Accelerated | Unchanged:
    """``model`` for inference on the fused ops: captured, rewritten, compared with the original, reported on.

    Args:
        model: any CNN in eval mode; it is left as it is. Its weights are copied: later changes do not reach the result.
        example: an input, or the tuple of inputs. Other batch sizes work, other shapes with ``dynamic_size``.
        dtype: of weights and arithmetic, default the model's own. Inputs and outputs keep theirs.
        dynamic_size: height and width of maps may change too. On the CPU the first call of a size makes its plan, which
            takes some 0.05 to 0.2 s; the last 8 sizes are kept.
        strict: raise where the model cannot be captured or the result is off; False returns :class:`Unchanged`.
        tolerance: largest relative error against the original in fp64; default 1e-5 (an epsilon of a half ``dtype``), or
            5 times the original's own error in its dtype and ``dtype`` where that is larger.
        require_speedup: return :class:`Unchanged` where the result is slower on the example.
        portable: fold and simplify, but keep ATen's operators alone, for TensorRT, ONNX and mobile.
        cuda_graph: replay one CUDA graph per input shape, of which the last 8 are kept with the memory of their
            activations; inputs are copied in, outputs out. For small batches, where launches cost more than kernels.
        mapping: names of rewrites to switch, ``{"sibling_convs": False}``; ``{"plan": False}`` runs operator by operator.
    Returns: a module that computes what ``model`` does, with ``.report``; ``print`` that.
    Raises: TypeError or ValueError naming the argument; CaptureError (a ValueError) with torch.export's reason and the
        model's line; ToleranceError (a ValueError).

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> fast = fastcnn.accelerate(net, torch.randn(1, 3, 16, 16))
    >>> fast.report.fused["fold_batch_norm"], fast(torch.zeros(4, 3, 16, 16)).shape
    (1, torch.Size([4, 8, 14, 14]))
    """
    _check_switches(strict=strict, dynamic_size=dynamic_size, require_speedup=require_speedup, portable=portable)
    inputs = _check(model, example, dtype, tolerance)
    _check_cuda_graph(cuda_graph, inputs)
    switches = check_mapping(mapping)
    found = Report(type(model).__name__, dtype=str(dtype or inputs[0].dtype).removeprefix("torch."))
    found.tf32 = torch.backends.cuda.matmul.allow_tf32
    found.threads = torch.get_num_threads()
    try:
        captured = capture(model, inputs, dynamic_size)
    except CaptureError as error:
        if strict:
            raise
        return _unchanged(model, found, str(error))
    program = captured.program
    size = (dtype or inputs[0].dtype).itemsize if (dtype or inputs[0].dtype).is_floating_point else 4
    before = cost(program, size)
    if not captured.dynamic:
        found.notes.append("the model fixes its batch size: the example's is the only one that the result takes")
    found.notes += [
        f"the original writes to {name}, which the result does not" for name in verify.written(model, inputs)
    ]
    found.fused = rewrite(program, mapping, inputs[0].device.type)
    if portable:
        to_aten(program)
        sweep(program)
    found.left = reporting.left(program)
    use_channels_last(program)
    fast = Accelerated(program, input_rules(program), captured.out_spec, found, cuda_graph, switches[PLAN])
    if dtype is not None:
        fast.to(dtype)
    after = cost(fast.runs(inputs), size)
    found.bytes = {"before": before.bytes, "after": after.bytes}
    found.launches = {"before": before.launches, "after": after.launches}
    if inputs[0].device.type != "cpu":
        found.operators = reporting.traced_operators(fast, inputs)
    return _verified(model, fast, inputs, strict, tolerance, require_speedup)


def _verified(model: nn.Module, fast: Accelerated, inputs: tuple[Tensor, ...], strict: bool, tolerance: float | None,
              require_speedup: bool) -> Accelerated | Unchanged:  # fmt: skip
    found = fast.report
    for name, values in (("example", inputs), ("random inputs", verify.random_like(inputs))):
        row, why = verify.errors(model, fast, values)
        found.errors[name] = row
        if why is not None and why not in found.notes:
            found.notes.append(why)
        error = row["fp64"] if row["fp64"] is not None else row["relative"]
        allowed = tolerance if tolerance is not None else row["allowed"]
        if not error <= allowed:
            message = f"the output on {name} differs by {error:.1e} of the largest value, allowed {allowed:.1e}"
            message += f"; {why}" if why else ""
            if strict:
                raise ToleranceError(f"accelerate: {found.model}: {message}", found)
            return _unchanged(model, found, message)
    found.milliseconds = verify.milliseconds(model, fast, inputs)
    if require_speedup and found.speedup < 1.0:
        return _unchanged(
            model, found, f"it is slower: {1 / found.speedup:.2f} times the original's time on the example"
        )
    return fast


def _unchanged(model: nn.Module, found: Report, why: str) -> Unchanged:
    found.accelerated, found.refused = False, why
    return Unchanged(model, found)


def _check_switches(**switches: Any) -> None:
    for name, given in switches.items():
        if not isinstance(given, bool):
            raise TypeError(f"accelerate: {name} must be True or False, got {given!r}")


def _check(model: Any, example: Any, dtype: Any, tolerance: Any) -> tuple[Tensor, ...]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model must be an nn.Module, got {type(model).__name__}")
    if model.training or any(m.training for m in model.modules() if _changes_in_training(m)):
        raise ValueError("accelerate: model must be in eval mode, got one in training mode: call model.eval() first")
    if dtype is not None and dtype not in _DTYPES:
        wanted = ", ".join(str(each).removeprefix("torch.") for each in _DTYPES)
        raise TypeError(f"accelerate: dtype must be one of {wanted} or None, got {dtype!r}")
    if tolerance is not None and (isinstance(tolerance, bool) or not isinstance(tolerance, (int, float))):
        raise TypeError(f"accelerate: tolerance must be a number or None, got {type(tolerance).__name__}")
    if tolerance is not None and not 0.0 <= tolerance < math.inf:
        raise ValueError(f"accelerate: tolerance must be finite and not negative, got {tolerance}")
    inputs = flat_example(example)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    _check_weights(tensors)
    weights = next((t for t in tensors.values() if t.is_floating_point()), None)
    for i, x in enumerate(inputs):
        _check_input(f"example[{i}]" if len(inputs) > 1 else "example", x, weights)
    return tuple(x.detach() for x in inputs)


def _check_cuda_graph(cuda_graph: Any, inputs: tuple[Tensor, ...]) -> None:
    if not isinstance(cuda_graph, bool):
        raise TypeError(f"accelerate: cuda_graph must be True or False, got {type(cuda_graph).__name__}")
    others = [str(x.device) for x in inputs if not x.is_cuda]
    if cuda_graph and others:
        raise ValueError(f"accelerate: cuda_graph=True needs the model and example on a CUDA device, got {others[0]}")


def _changes_in_training(module: nn.Module) -> bool:
    return isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd))


def _check_weights(tensors: dict[str, Tensor]) -> None:
    lazy = [name for name, t in tensors.items() if nn.parameter.is_lazy(t)]
    if lazy:
        raise ValueError(f"accelerate: model must have weights of known shape, got lazy ones, {', '.join(lazy[:5])}: "
                         "call it once first")  # fmt: skip
    devices = sorted({str(t.device) for t in tensors.values()})
    if len(devices) > 1:
        raise ValueError(f"accelerate: model must be on one device, got {', '.join(devices)}")
    if devices == ["meta"]:
        raise ValueError("accelerate: model must hold weights, got one on the meta device: load them first")
    broken = [name for name, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if broken:
        raise ValueError(f"accelerate: model must have finite weights, got NaN or infinity in {', '.join(broken[:5])}")


def _check_input(name: str, x: Tensor, weights: Tensor | None) -> None:
    if x.layout is not torch.strided or x.is_nested or x.is_quantized:
        kind = "quantized" if x.is_quantized else "nested" if x.is_nested else str(x.layout).removeprefix("torch.")
        raise TypeError(f"accelerate: {name} must be a dense tensor, got a {kind} one")
    if x.is_complex():
        raise TypeError(f"accelerate: {name} must be real, got {str(x.dtype).removeprefix('torch.')}")
    if x.numel() == 0:
        raise ValueError(f"accelerate: {name} must have elements, its batch too, got {list(x.shape)}")
    if weights is None:
        return
    if x.device != weights.device:
        raise ValueError(f"accelerate: {name} must be on the model's device, {weights.device}, got {x.device}")
    if x.is_floating_point() and x.dtype != weights.dtype:
        wanted, got = (str(each.dtype).removeprefix("torch.") for each in (weights, x))
        raise TypeError(f"accelerate: {name} must have the model's dtype, {wanted}, got {got}")
