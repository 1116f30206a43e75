# SPDX-License-Identifier: Apache-2.0
"""Global average pooling as a module."""

from torch import Tensor, nn

from fastcnn.ops import global_avg_pool


class GlobalAvgPool2d(nn.Module):
    """``[N, C, H, W] -> [N, C, 1, 1]``, the mean of each plane, in place of ``nn.AdaptiveAvgPool2d(1)``.

    See :func:`fastcnn.ops.global_avg_pool`.

    >>> GlobalAvgPool2d()(torch.arange(4.0).view(1, 1, 2, 2)).item()
    1.5
    """

    @classmethod
    def from_torch(cls, module: nn.AdaptiveAvgPool2d) -> "GlobalAvgPool2d":
        """The twin of ``nn.AdaptiveAvgPool2d(1)``. Raises: ValueError for another output size."""
        if module.output_size not in (1, (1, 1), [1, 1]):
            raise ValueError(f"GlobalAvgPool2d.from_torch: output_size must be 1, got {module.output_size}")
        new = cls()
        new.training = module.training
        return new

    def forward(self, x: Tensor) -> Tensor:
        return global_avg_pool(x)
