# SPDX-License-Identifier: Apache-2.0
"""Global average pooling and max pooling as modules."""

from torch import Tensor, nn

from fastcnn.ops import global_avg_pool, max_pool2d


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


class MaxPool2d(nn.MaxPool2d):
    """The maximum of each window, in place of :class:`torch.nn.MaxPool2d`, with the same constructor and attributes.

    See :func:`fastcnn.ops.max_pool2d`. Raises: ValueError for ``return_indices=True`` and a ``dilation`` other than 1.

    >>> MaxPool2d(3, 2, 1)(torch.arange(16.0).view(1, 1, 4, 4)).flatten().tolist()
    [5.0, 7.0, 13.0, 15.0]
    """

    def __init__(self, kernel_size: int | tuple[int, int], stride: int | tuple[int, int] | None = None,
                 padding: int | tuple[int, int] = 0, dilation: int | tuple[int, int] = 1,
                 return_indices: bool = False, ceil_mode: bool = False) -> None:  # fmt: skip
        if return_indices:
            raise ValueError(
                "MaxPool2d: return_indices must be False, no index is stored; torch.nn.MaxPool2d returns them"
            )
        if dilation not in (1, (1, 1), [1, 1]):
            raise ValueError(f"MaxPool2d: dilation must be 1, got {dilation!r}; torch.nn.MaxPool2d takes others")
        super().__init__(kernel_size, stride, padding, dilation, return_indices, ceil_mode)

    @classmethod
    def from_torch(cls, module: nn.MaxPool2d) -> "MaxPool2d":
        """The twin of a ``torch.nn.MaxPool2d``. Raises: ValueError for what the constructor refuses."""
        new = cls(
            module.kernel_size,
            module.stride,
            module.padding,
            module.dilation,
            module.return_indices,
            module.ceil_mode,
        )
        new.training = module.training
        return new

    def forward(self, x: Tensor) -> Tensor:
        return max_pool2d(x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)
