# SPDX-License-Identifier: Apache-2.0
"""The parity rule: how a net of ours is held against the package it is modelled on.

Two implementations never agree to the bit, and deep random nets amplify rounding. So logits are compared in fp32 with
the reference in fp64, within what the reference itself loses in fp32; gradients and running statistics in fp64.
"""

import contextlib
import importlib
import io
import pickle
from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn

from fastcnn.check import AMPLIFIES, IN_FP64
from fastcnn.models.registry import create_model, metadata
from fastcnn.models.weights import map_by_position
from fastcnn.reference import reference_model

FORMATS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
FP32_FLOOR, FP32_FACTOR = 1e-5, 5.0
FP64_RELATIVE = 1e-9


def build_reference(reference: str, **kwargs) -> nn.Module:
    """The net behind "package:name", or our own statement of it in plain torch behind "plain:name"; random weights."""
    package, _, name = reference.partition(":")
    if package == "plain":
        return importlib.import_module("tests.models.plain").PLAIN[name](**kwargs)
    net = reference_model(reference, **kwargs)
    if package == "pytorchcv" and isinstance(getattr(net.features, "final_pool", None), nn.AvgPool2d):
        net.features.final_pool = nn.AdaptiveAvgPool2d(1)  # 7x7 there: equal at 224; ours serves the other sizes too
    if package == "pytorchcv":
        net.features.register_forward_hook(_contiguous)  # its heads flatten by view, which channels_last cannot
    if reference == "pytorchcv:xception":
        net.features.final_block.pool = nn.AdaptiveAvgPool2d(1)  # 10x10: equal at 299
    return net


def _contiguous(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    return output.contiguous()


def randomise(net: nn.Module, x: Tensor) -> None:
    """Random BN and head; running statistics calibrated on ``x``, then moved: no eps or folding mistake can hide."""
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for module in norms:
        nn.init.uniform_(module.weight, 0.5, 1.5)
        nn.init.normal_(module.bias, 0.0, 0.2)
    for module in net.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.2)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, module.in_features**-0.5)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0.0, 0.5)
    net.eval()
    momenta = [module.momentum for module in norms]
    for module in norms:
        module.train().momentum = None  # the mean of all batches: of this one
        module.reset_running_stats()
    with torch.no_grad():
        net(x)
    for module, momentum in zip(norms, momenta, strict=True):
        module.eval().momentum = momentum
        module.running_mean += 0.1 * module.running_var.sqrt() * torch.randn_like(module.running_var)
        module.running_var *= torch.empty_like(module.running_var).uniform_(0.7, 1.4)


def build_pair(
    name: str, reference: str | None = None, size: tuple[int, int] = (65, 97), **kwargs
) -> tuple[nn.Module, nn.Module]:
    """Our net ``name`` with the reference's weights, and the reference, both in eval mode without dropout.

    ``reference`` and its ``kwargs`` take the place of the one in metadata.json.
    """
    torch.manual_seed(0)
    facts = metadata(name)
    kwargs = kwargs if reference else facts.get("reference_kwargs", {})
    theirs = build_reference(reference or facts["reference"], **kwargs)
    randomise(theirs, torch.randn(4, facts["input_size"][0], *size))
    ours = create_model(name, weights=theirs.state_dict()).eval()
    for module in (*ours.modules(), *theirs.modules()):
        if isinstance(module, nn.Dropout) or type(module).__name__ == "StochasticDepth":
            module.p = 0.0
        if hasattr(module, "has_residual") and hasattr(module, "drop"):
            module.drop = 0.0
        if hasattr(module, "drop_rate"):  # dropout as a function
            module.drop_rate = 0.0
    return ours, theirs


def largest(x: Tensor) -> float:
    return x.detach().abs().max().item() if x.numel() else 0.0


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """For fp64: torch runs a depthwise convolution there as one tiny GEMM a channel, each behind a barrier."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _logits(net: nn.Module, x: Tensor, dtype: torch.dtype, memory_format: torch.memory_format) -> Tensor:
    """In ``dtype``, as fp64. The net is converted in place and back, exactly: the largest take 4 GB a copy in fp32."""
    net.to(dtype=dtype, memory_format=memory_format)
    with one_thread() if dtype == torch.float64 else contextlib.nullcontext():
        logits = net(x.to(dtype=dtype, memory_format=memory_format)).double()
    net.to(dtype=torch.float32, memory_format=torch.contiguous_format)
    return logits


def eval_errors(ours: nn.Module, theirs: nn.Module, x: Tensor) -> dict[str, float]:
    """Largest errors of the fp32 logits against the reference in fp64, over its largest; "allowed" by the rule."""
    with torch.inference_mode():
        exact = _logits(theirs, x, torch.float64, torch.contiguous_format)

        def error(net: nn.Module, dtype: torch.dtype, memory_format: torch.memory_format) -> float:
            return largest(_logits(net, x, dtype, memory_format) - exact) / largest(exact)

        found = {key: error(ours, torch.float32, FORMATS[key]) for key in FORMATS}
        found |= {f"theirs {key}": error(theirs, torch.float32, FORMATS[key]) for key in FORMATS}
        found["allowed"] = max(FP32_FLOOR, FP32_FACTOR * max(found[f"theirs {key}"] for key in FORMATS))
        if found["allowed"] > AMPLIFIES:
            found["fp64"] = error(ours, torch.float64, torch.contiguous_format)
            noise = error(theirs, torch.float64, torch.channels_last)
            found["allowed fp64"] = max(IN_FP64 * found["allowed"], FP32_FACTOR * noise)
    return found


def assert_eval_parity(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    """Logits in fp32, contiguous and channels_last."""
    errors = eval_errors(ours, theirs, x)
    for key in FORMATS:
        assert errors[key] <= errors["allowed"], f"logits, {key}, {list(x.shape)}: {errors}"  # False for NaN
    assert errors.get("fp64", 0.0) <= errors.get("allowed fp64", 0.0), f"logits in fp64, {list(x.shape)}: {errors}"


def exact_hardsigmoid(x: Tensor) -> Tensor:
    """What ``nn.Hardsigmoid`` means; torch's own backward holds 1/6 in float32 even for fp64, 3e-8 off."""
    return nn.functional.relu6(x + 3) / 6


Step = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]  # output, gradients, buffers


def train_step(net: nn.Module, x: Tensor, memory_format: torch.memory_format) -> Step:
    """One training step's forward and backward in fp64."""
    net = deepcopy(net).double().to(memory_format=memory_format).train()
    for module in net.modules():
        if type(module) is nn.Hardsigmoid:
            module.forward = exact_hardsigmoid
    pixels = x.double().contiguous(memory_format=memory_format).requires_grad_()
    with one_thread():
        logits = net(pixels)
        if isinstance(logits, tuple):  # auxiliary heads
            logits = torch.cat(list(logits), dim=1)
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        (logits * weights).sum().backward()
    gradients = {key: parameter.grad for key, parameter in net.named_parameters()} | {"input.x": pixels.grad}
    return {"output": logits.detach()}, gradients, dict(net.named_buffers())


def train_errors(ours: nn.Module, theirs: nn.Module, x: Tensor, memory_format: torch.memory_format) -> dict[str, float]:
    """One training step in fp64 on both sides: errors over what the rule allows, by tensor.

    The reference is contiguous. A bias with a BN behind it has a gradient of exactly 0, and what the reference has there
    is its noise. A convolution's, below 1e-12 of its weight's, is taken for the 0 that it is. Elsewhere (LeNet with BN:
    1.8e-14 contiguous, 3.5e-14 in channels_last, where 1e-9 of the floor is 1.1e-14) 5 times the reference's own
    difference between the formats is allowed, as for logits, where an error is over 1e-9; that difference is far below
    1e-9 wherever a gradient is not 0.
    """
    got, wanted = train_step(ours, x, memory_format), train_step(theirs, x, torch.contiguous_format)
    errors = _step_errors(got, wanted, wanted)
    if all(error <= 1.0 for error in errors.values()):
        return errors
    return _step_errors(got, wanted, train_step(theirs, x, torch.channels_last))


def _step_errors(ours: Step, theirs: Step, again: Step) -> dict[str, float]:
    errors = {}
    for kind, our_part, their_part, other_part in zip(("", "gradient of ", ""), ours, theirs, again, strict=True):
        if our_part.keys() != their_part.keys():
            their_part, other_part = (map_by_position(part, our_part) for part in (their_part, other_part))
        floor = 1e-6 * max((largest(tensor) for tensor in their_part.values()), default=0.0)
        for key, wanted in their_part.items():
            weight = their_part.get(key.removesuffix("bias") + "weight") if kind and key.endswith(".bias") else None
            if weight is not None and weight.dim() == 4 and largest(wanted) <= 1e-12 * largest(weight):
                wanted = torch.zeros_like(wanted)
            allowed = FP64_RELATIVE * max(largest(wanted), floor)
            allowed = max(allowed, FP32_FACTOR * largest(other_part[key] - their_part[key]))
            errors[kind + key] = largest(our_part[key] - wanted) / allowed if allowed else largest(our_part[key])
    return errors


def assert_train_parity(ours: nn.Module, theirs: nn.Module, x: Tensor, memory_format: torch.memory_format) -> None:
    """Training-mode forward, running statistics, the gradients of all parameters and of the input."""
    errors = train_errors(ours, theirs, x, memory_format)
    wrong = {key: f"{error:.3g} times the allowed" for key, error in errors.items() if not error <= 1.0}
    assert not wrong, f"{len(wrong)} of {len(errors)} differ: {dict(list(wrong.items())[:10])}"


def assert_same_module(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    """A drop-in computes what the torch module does, in fp64: forward, gradients, buffers, both formats, both modes."""
    assert not dict(ours.named_parameters()) or ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for memory_format in FORMATS.values():
        assert_train_parity(ours, theirs, x, memory_format)
        pixels = x.double().contiguous(memory_format=memory_format)
        got, wanted = deepcopy(ours).double().eval()(pixels), deepcopy(theirs).double().eval()(pixels)
        assert largest(got - wanted) <= FP64_RELATIVE * largest(wanted)
        assert got.stride() == wanted.stride() or 1 in got.shape[1:], f"strides {got.stride()}, {wanted.stride()}"


def assert_survives_copies(module: nn.Module, x: Tensor) -> None:
    """deepcopy, pickle and torch.save keep the module and what it computes."""
    module.eval()
    wanted = module(x)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    for twin in (deepcopy(module), pickle.loads(pickle.dumps(module)), torch.load(buffer, weights_only=False)):
        assert repr(twin) == repr(module)
        assert torch.equal(twin(x), wanted)
