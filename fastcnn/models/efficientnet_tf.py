# SPDX-License-Identifier: Apache-2.0
"""EfficientNet, arXiv:1905.11946, with TensorFlow's SAME padding, for the weights trained there. Keys: timm's."""

from typing import Any

from fastcnn.models.blocks import make_divisible
from fastcnn.models.blocks_timm import Style, TimmNet
from fastcnn.models.efficientnet import PHI, compound_scaling, scaled_rows
from fastcnn.models.registry import register


class EfficientNetTF(TimmNet):
    """Table 1, scaled; without dropout or stochastic depth by default, as timm's.

    Args:
        padding, momentum: see :class:`Style`; "static" is efficientnet-pytorch's padding at its nominal size.
    """

    def __init__(
        self,
        width_mult: float = 1.0,
        depth_mult: float = 1.0,
        padding: str = "same",
        momentum: float = 0.1,
        **kwargs: Any,
    ) -> None:
        rows = scaled_rows(width_mult, depth_mult)
        stem, head = make_divisible(32 * width_mult), make_divisible(1280 * width_mult)
        style = Style("silu", padding=padding, eps=1e-3, momentum=momentum)
        super().__init__(rows, stem, head, style, **kwargs)


@register("tf_efficientnet_b0")
def tf_efficientnet_b0(**kwargs: Any) -> EfficientNetTF:
    """EfficientNet-B0 with SAME padding."""
    return EfficientNetTF(**kwargs)


@register("tf_efficientnet_b4")
def tf_efficientnet_b4(**kwargs: Any) -> EfficientNetTF:
    """EfficientNet-B4 with SAME padding."""
    return EfficientNetTF(*compound_scaling(PHI[4])[:2], **kwargs)


@register("tf_efficientnet_b7")
def tf_efficientnet_b7(**kwargs: Any) -> EfficientNetTF:
    """EfficientNet-B7 with SAME padding."""
    return EfficientNetTF(*compound_scaling(PHI[7])[:2], **kwargs)


@register("efficientnet_b0_lukemelas")
def efficientnet_b0_lukemelas(**kwargs: Any) -> EfficientNetTF:
    """EfficientNet-B0 with the padding and the defaults of efficientnet-pytorch."""
    defaults = {"padding": "static", "momentum": 1 - 0.99, "dropout": 0.2, "stochastic_depth": 0.2}
    return EfficientNetTF(**{**defaults, **kwargs})
