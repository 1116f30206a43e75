# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels: which ops have one, imported only when one is needed."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

OPS = {  # op: the file of triton_kernels that has launch_<op>
    "activation": "activation",
    "activation_backward": "activation",
    "hardswish": "hardswish",
    "hardswish_backward": "hardswish",
    "batch_norm_act": "batch_norm_act",
    "batch_norm_act_train": "batch_norm_act",
    "batch_norm_act_backward": "batch_norm_act",
    "channel_shuffle": "channel_shuffle",
    "channel_shuffle_concat": "channel_shuffle",
    "global_avg_pool": "global_avg_pool",
    "global_avg_pool_backward": "global_avg_pool",
    "max_pool2d": "max_pool2d",
    "max_pool2d_backward": "max_pool2d",
    "pointwise_conv2d": "conv_bn_act",
    "se_gate": "se_scale",
    "se_scale": "se_scale",
    "se_scale_backward": "se_scale",
    "depthwise_conv2d": "depthwise_conv2d",
    "depthwise_conv2d_backward": "depthwise_conv2d",
    "depthwise_se_gate": "se_scale",
    "conv_bn_act": "conv_bn_act",
    "conv_bn_act_train": "conv_bn_act",
    "conv_bn_act_backward": "conv_bn_act_backward",
}
_PACKAGE = "fastcnn.triton_kernels"


@functools.cache
def why_not() -> str | None:
    """Why no Triton kernel can be compiled here, None when one can."""
    if sys.platform != "linux":
        return f"Triton is for Linux, this is {sys.platform}"
    try:
        importlib.import_module("triton")
    except (
        Exception
    ) as error:  # a broken Triton raises anything from ImportError to AttributeError, and must not take fastcnn along
        return f"{type(error).__name__}: {error}"
    return None


def version() -> str | None:
    return None if why_not() else sys.modules["triton"].__version__


def runs_on(device: torch.device) -> bool:
    """Triton takes CUDA tensors, and those of the CPU in its interpreter."""
    return device.type == ("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")


@functools.cache
def launcher(op: str) -> Callable:
    """``launch_<op>``; raises what importing Triton raises."""
    launches()
    return getattr(importlib.import_module(f"{_package()}.{OPS[op]}"), f"launch_{op}")


@functools.cache
def launches() -> ModuleType:
    """``_launch`` of the kernels, which knows what was tuned once this has run."""
    from .tuning import connect

    module = importlib.import_module(f"{_package()}._launch")
    connect(module)
    return module


def _package() -> str:
    # an installed copy has triton_kernels inside fastcnn; a source tree used without an install has it beside
    folder = Path(__file__).resolve().parents[1] / "triton_kernels"
    if importlib.util.find_spec(_PACKAGE) is None and _PACKAGE not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            _PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules[_PACKAGE] = module
        spec.loader.exec_module(module)
    return _PACKAGE


REGISTERED: set[str] = set()  # ops whose CUDA key Triton took, for want of a compiled kernel


def register(library: torch.library.Library) -> None:
    """Gives CUDA tensors a Triton kernel for every op that no compiled library brought one for."""
    if importlib.util.find_spec("triton") is not None:
        for op in OPS:
            if not torch._C._dispatch_has_kernel_for_dispatch_key(f"{library.ns}::{op}", "CUDA"):
                library.impl(op, functools.partial(serve, op), "CUDA")
                REGISTERED.add(op)


def serve(op: str, *args: Any) -> Any:
    """The Triton kernel of the op, or its plain-torch reference where Triton turns out not to work."""
    reason = why_not()
    if reason is None:
        return launcher(op)(*args)
    from .ops._register import REFERENCES, overload

    warnings.warn(
        f"fastcnn: Triton is installed but not usable ({reason}); {op} runs its plain-torch reference",
        RuntimeWarning,
        stacklevel=2,
    )
    return REFERENCES[overload(op)](*args)
