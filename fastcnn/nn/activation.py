# SPDX-License-Identifier: Apache-2.0
"""HardSwish, and the names by which every fused layer calls its activation."""

from torch import Tensor, nn

from fastcnn.ops import hardswish

_NAMES: dict[type[nn.Module], str] = {
    nn.Identity: "identity",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid",
    nn.SiLU: "silu",
    nn.Sigmoid: "sigmoid",
}


class HardSwish(nn.Module):
    """``x * relu6(x + 3) / 6``, in place of :class:`torch.nn.Hardswish`. See :func:`fastcnn.ops.hardswish`.

    ``inplace`` is accepted and kept so that the constructor fits; the result is a new tensor in either case.

    Source: MobileNetV3, arXiv:1905.02244, sec. 5.2.

    >>> HardSwish()(torch.tensor([-4.0, 0.0, 1.5, 4.0])).tolist()
    [-0.0, 0.0, 1.125, 4.0]
    """

    __constants__ = ["inplace"]

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    @classmethod
    def from_torch(cls, module: nn.Hardswish) -> "HardSwish":
        """The twin of a ``torch.nn.Hardswish``."""
        new = cls(module.inplace)
        new.training = module.training
        return new

    def forward(self, x: Tensor) -> Tensor:
        return hardswish(x)

    def extra_repr(self) -> str:
        return "inplace=True" if self.inplace else ""


_NAMES[HardSwish] = "hardswish"


def activation_name(activation: str | nn.Module | type[nn.Module] | None) -> str:
    """The name our ops give to an activation that is written as a name, a torch module, its class, or None (identity).

    Raises: ValueError for an activation without a fused kernel, naming it and those that have one.

    >>> activation_name(nn.ReLU6(inplace=True)), activation_name(None)
    ('relu6', 'identity')
    """
    if activation is None:
        return "identity"
    if isinstance(activation, str):
        name = activation if activation in _NAMES.values() else None
    else:
        name = _NAMES.get(activation if isinstance(activation, type) else type(activation))
    if name is None:
        known = sorted(set(_NAMES.values()))
        raise ValueError(f"activation must be one of {known} or its torch module, got {activation!r}")
    return name
