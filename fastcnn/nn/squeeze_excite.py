# SPDX-License-Identifier: Apache-2.0
"""Squeeze-and-excitation as a module."""

from torch import Tensor, nn

from fastcnn import ops
from fastcnn.nn.activation import activation_name
from fastcnn.nn.conv import is_plain
from fastcnn.ops import se_scale

_LINEAR = frozenset({nn.Conv2d})


class SqueezeExcite(nn.Module):
    """``x * gate(fc2(activation(fc1(mean(x)))))``, with the keys of torchvision's SqueezeExcitation.

    See :func:`fastcnn.ops.se_scale`.

    Args:
        input_channels: channels of ``x``.
        squeeze_channels: width between ``fc1`` and ``fc2``, both 1x1 convolutions with bias.
        activation, gate: a name of :func:`fastcnn.ops.activation`, a torch activation module or its class.
    Source: arXiv:1709.01507, eq. 3.

    >>> SqueezeExcite(16, 4)(torch.zeros(2, 16, 7, 7)).shape
    torch.Size([2, 16, 7, 7])
    """

    def __init__(
        self,
        input_channels: int,
        squeeze_channels: int,
        activation: str | nn.Module | type[nn.Module] = "relu",
        gate: str | nn.Module | type[nn.Module] = "hardsigmoid",
    ) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(input_channels, squeeze_channels, 1)
        self.fc2 = nn.Conv2d(squeeze_channels, input_channels, 1)
        self.activation = activation_name(activation)
        self.gate = activation_name(gate)

    @classmethod
    def from_torch(cls, module: nn.Module) -> "SqueezeExcite":
        """The twin of a ``torchvision.ops.SqueezeExcitation``, sharing ``fc1`` and ``fc2``."""
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        new.fc1, new.fc2, new.training = module.fc1, module.fc2, module.training
        new.activation, new.gate = activation_name(module.activation), activation_name(module.scale_activation)
        return new

    def forward(self, x: Tensor) -> Tensor:
        fc1, fc2 = self._modules["fc1"], self._modules["fc2"]
        if is_plain(fc1, _LINEAR) and is_plain(fc2, _LINEAR):
            p1, p2 = fc1._parameters, fc2._parameters
            return se_scale(x, p1["weight"], p1["bias"], p2["weight"], p2["bias"], self.activation, self.gate)
        squeezed = ops.activation(fc1(ops.global_avg_pool(x)), self.activation)
        return x * ops.activation(fc2(squeezed), self.gate)

    def extra_repr(self) -> str:
        return f"activation={self.activation}, gate={self.gate}"
