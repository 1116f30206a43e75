# SPDX-License-Identifier: Apache-2.0
"""The collection: one file per family; importing the package imports every file beside this one, which registers it."""

import importlib
import pkgutil

from fastcnn.models.registry import canonical_name, create_model, list_models, metadata, register
from fastcnn.models.weights import WeightsError, load_weights

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)

__all__ = [
    "WeightsError",
    "canonical_name",
    "create_model",
    "list_models",
    "load_weights",
    "metadata",
    "register",
]
