# SPDX-License-Identifier: Apache-2.0
"""fastcnn: fused kernels for the core of mobile CNNs, as ordinary torch ops, and the networks built on them."""

from __future__ import annotations

__version__ = "0.1.0"

from . import _dispatch, ops

_dispatch.install()

__all__ = ["__version__", "create_model", "list_models", "nn", "ops"]


def __getattr__(name: str):
    """``fastcnn.nn``, ``create_model`` and ``list_models`` on first use: ``import fastcnn`` alone stays quick."""
    import importlib

    if name in ("accelerate", "nn", "models", "testing", "data", "benchmark", "onnx"):
        return importlib.import_module(f".{name}", __name__)
    if name in ("create_model", "list_models"):
        return getattr(importlib.import_module(".models", __name__), name)
    if name in ("explain", "use_backend"):
        return getattr(importlib.import_module(".backends", __name__), name)
    if name == "load":
        return importlib.import_module(".accelerate", __name__).load
    if name in ("tune", "warmup"):
        return getattr(importlib.import_module(".tuning", __name__), name)
    raise AttributeError(f"module 'fastcnn' has no attribute {name!r}")
