# SPDX-License-Identifier: Apache-2.0
"""Channel shuffle as a module."""

from torch import Tensor, nn

from fastcnn.ops import channel_shuffle


class ChannelShuffle(nn.Module):
    """Interleave the channels of ``groups`` groups, in place of :class:`torch.nn.ChannelShuffle`.

    See :func:`fastcnn.ops.channel_shuffle`. Source: ShuffleNet, arXiv:1707.01083, sec. 3.1.

    >>> ChannelShuffle(2)(torch.arange(6.0).view(1, 6, 1, 1)).flatten().tolist()
    [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
    """

    __constants__ = ["groups"]

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    @classmethod
    def from_torch(cls, module: nn.ChannelShuffle) -> "ChannelShuffle":
        """The twin of a ``torch.nn.ChannelShuffle``."""
        new = cls(module.groups)
        new.training = module.training
        return new

    def forward(self, x: Tensor) -> Tensor:
        return channel_shuffle(x, self.groups)

    def extra_repr(self) -> str:
        return f"groups={self.groups}"
