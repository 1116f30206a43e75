# SPDX-License-Identifier: Apache-2.0
"""EfficientNet-Lite (tensorflow/tpu, 2020): no squeeze-excite, ReLU6 for SiLU, TensorFlow's SAME padding.

Keys of timm's ``tf_efficientnet_lite*``. The stem, the head and the repeats of the first and last stage are not scaled.
"""

from typing import Any

from fastcnn.models.blocks_timm import Style, TimmNet
from fastcnn.models.efficientnet import ROWS, scaled_rows
from fastcnn.models.registry import register


class EfficientNetLite(TimmNet):
    """The rows of EfficientNet-B0, scaled in width and depth.

    Args:
        padding, momentum: see :class:`Style`; "static" is efficientnet-lite-pytorch's padding at its nominal sizes.
    """

    def __init__(self, width: float, depth: float, padding: str = "same", momentum: float = 0.1, **kwargs: Any) -> None:
        first, *middle, last = scaled_rows(width, depth)
        rows = [first._replace(n=ROWS[0].n), *middle, last._replace(n=ROWS[-1].n)]
        style = Style("relu6", padding=padding, eps=1e-3, momentum=momentum)
        super().__init__([row._replace(se=False) for row in rows], 32, 1280, style, **kwargs)


@register("efficientnet_lite0", "tf_efficientnet_lite0")
def efficientnet_lite0(**kwargs: Any) -> EfficientNetLite:
    """EfficientNet-Lite0, 224 pixels."""
    return EfficientNetLite(1.0, 1.0, **kwargs)


@register("efficientnet_lite0_ml")
def efficientnet_lite0_ml(**kwargs: Any) -> EfficientNetLite:
    """EfficientNet-Lite0 with the padding and the defaults of efficientnet-lite-pytorch."""
    return EfficientNetLite(1.0, 1.0, **{"padding": "static", "momentum": 1 - 0.99, "dropout": 0.2, **kwargs})


@register("efficientnet_lite1", "tf_efficientnet_lite1")
def efficientnet_lite1(**kwargs: Any) -> EfficientNetLite:
    """EfficientNet-Lite1, 240 pixels."""
    return EfficientNetLite(1.0, 1.1, **kwargs)


@register("efficientnet_lite2", "tf_efficientnet_lite2")
def efficientnet_lite2(**kwargs: Any) -> EfficientNetLite:
    """EfficientNet-Lite2, 260 pixels."""
    return EfficientNetLite(1.1, 1.2, **kwargs)


@register("efficientnet_lite3", "tf_efficientnet_lite3")
def efficientnet_lite3(**kwargs: Any) -> EfficientNetLite:
    """EfficientNet-Lite3, 280 pixels."""
    return EfficientNetLite(1.2, 1.4, **kwargs)


@register("efficientnet_lite4", "tf_efficientnet_lite4")
def efficientnet_lite4(**kwargs: Any) -> EfficientNetLite:
    """EfficientNet-Lite4, 300 pixels."""
    return EfficientNetLite(1.4, 1.8, **kwargs)
