# SPDX-License-Identifier: Apache-2.0
"""What a model is compared with: its reference package's model, statistics that hide nothing, the parity rule."""

import importlib
import operator
import shlex
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

# package: the module that holds its constructors, and the arguments that keep them from downloading weights
PACKAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "torchvision": ("torchvision.models", {"weights": None}),
    "timm": ("timm.models", {"pretrained": False}),
    "pytorchcv": ("pytorchcv.models", {"pretrained": False}),
    "pretrainedmodels": ("pretrainedmodels", {"pretrained": None}),
    "efficientnet_pytorch": ("efficientnet_pytorch", {}),
    "efficientnet_lite_pytorch": ("efficientnet_lite_pytorch", {}),
}


class WrongOutput(AssertionError):
    """A model that would have been timed does not compute what its reference computes."""


class MissingReference(ImportError):
    """The package that holds a model's reference is not installed."""


def pip_command(*requirements: str, no_deps: bool = False) -> str:
    """The command that installs ``requirements`` into the running Python, ready to paste."""
    options = ["--no-deps"] if no_deps else []
    return shlex.join([sys.executable or "python3", "-m", "pip", "install", *options, *requirements])


def reference_model(reference: str, **kwargs: Any) -> nn.Module:
    """The model that ``reference`` names, "package:name" as in metadata.json, in eval mode; nothing is downloaded.

    A dotted name ("torchvision:densenet.DenseNet") is a module and what to call in it. The random weights are those of
    seed 0. ``kwargs`` are the constructor's, ``reference_kwargs`` of the metadata.

    Raises: MissingReference with the pip command; ValueError for a string of another form.
    """
    package, _, name = reference.partition(":")
    if package not in PACKAGES or not name:
        raise ValueError(
            f"reference must be 'package:name' with package one of {', '.join(PACKAGES)}, got {reference!r}"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _build(package, name, kwargs).eval()
    except ImportError as error:
        raise MissingReference(f"the reference {reference} is not here ({error}): {pip_command(package)}") from error


def _build(package: str, name: str, kwargs: dict[str, Any]) -> nn.Module:
    module, unpretrained = PACKAGES[package]
    if "." in name:
        first, _, path = name.partition(".")
        found = importlib.import_module(module)
        found = getattr(found, first, None) or importlib.import_module(f"{module}.{first}")
        return operator.attrgetter(path)(found)(**kwargs)
    if package == "pytorchcv":
        from pytorchcv.model_provider import get_model

        return get_model(name, **unpretrained, **kwargs)
    return getattr(importlib.import_module(module), name)(**unpretrained, **kwargs)


@torch.no_grad()
def calibrate(model: nn.Module, input_size: list[int], seed: int = 0) -> nn.Module:
    """Give every BatchNorm of ``model`` statistics of data, then disturb them and the affine terms.

    Fresh ones (mean 0, variance 1, weight 1, bias 0) would hide a wrong eps, a dropped bias or two swapped vectors.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain average
        model.train()
        model(torch.randn(4, *input_size))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.running_mean.add_(0.05 * torch.randn_like(norm.running_mean) * norm.running_var.sqrt())
            norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.9, 1.1))
            if norm.affine:
                norm.weight.uniform_(0.8, 1.2)
                norm.bias.normal_(0, 0.1)
    return model.eval()


def relative_error(y: Tensor, truth: Tensor) -> float:
    """max|y - truth| / max|truth|; infinite when ``y`` is not finite or of another shape."""
    if y.shape != truth.shape or not torch.isfinite(y).all():
        return float("inf")
    truth = truth.double()
    return float((y.double() - truth).abs().max() / truth.abs().max())


def assert_matches(
    name: str, y: Tensor, references: Mapping[str, Tensor], truth: Tensor, dtype: torch.dtype | None = None
) -> float:
    """The parity rule: within 1e-5 of the fp64 ``truth``, or 5 times the references' own error, whichever is larger.

    In half precision the 1e-5 becomes one unit of the mantissa. ``dtype`` is that of the arithmetic, where the output
    has another.

    Returns: the relative error. Raises: WrongOutput naming both.
    """
    dtype = dtype or y.dtype
    floor = 1e-5 if dtype in (torch.float32, torch.float64) else torch.finfo(dtype).eps
    allowed = max(floor, 5 * max(relative_error(other, truth) for other in references.values()))
    error = relative_error(y, truth)
    if not error <= allowed:
        raise WrongOutput(
            f"{name}: the output differs from the reference by {error:.1e} (allowed: {allowed:.1e}); it is not timed"
        )
    return error
