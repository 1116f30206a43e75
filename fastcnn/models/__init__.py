# SPDX-License-Identifier: Apache-2.0
"""The collection: one file per family; importing the package registers them all."""

from fastcnn.models import efficientnet, efficientnet_lite, mobilenet_v1, mobilenet_v2, mobilenet_v3, shufflenet_v2
from fastcnn.models.registry import canonical_name, create_model, list_models, metadata, register
from fastcnn.models.weights import WeightsError, load_weights

__all__ = [
    "WeightsError",
    "canonical_name",
    "create_model",
    "efficientnet",
    "efficientnet_lite",
    "list_models",
    "load_weights",
    "metadata",
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3",
    "register",
    "shufflenet_v2",
]
