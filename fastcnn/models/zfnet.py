# SPDX-License-Identifier: Apache-2.0
"""ZFNet, arXiv:1311.2901: AlexNet with a first layer of 7x7 and stride 2. Keys: pytorchcv's."""

from typing import Any

from fastcnn.models.alexnet_lrn import StagedAlexNet
from fastcnn.models.registry import register

STEM = [[(96, 7, 2, 1)], [(256, 5, 2, 0)]]
PAPER = [*STEM, [(384, 3, 1, 1), (384, 3, 1, 1), (256, 3, 1, 1)]]  # figure 3
WIDE = [*STEM, [(512, 3, 1, 1), (1024, 3, 1, 1), (512, 3, 1, 1)]]  # table 2, its larger layers 3, 4 and 5


@register("zfnet")
def zfnet(**kwargs: Any) -> StagedAlexNet:
    """ZFNet."""
    return StagedAlexNet(PAPER, **kwargs)


@register("zfnet_wide", "zfnetb")
def zfnet_wide(**kwargs: Any) -> StagedAlexNet:
    """ZFNet with 512, 1024 and 512 channels in its last three convolutions."""
    return StagedAlexNet(WIDE, **kwargs)
