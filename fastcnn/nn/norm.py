# SPDX-License-Identifier: Apache-2.0
"""Batch norm with its activation and residual in one pass: what pre-activation nets and dense blocks begin with."""

from torch import Tensor, nn

from fastcnn import ops
from fastcnn.nn.activation import activation_name
from fastcnn.nn.conv import count_batch, is_plain
from fastcnn.ops import batch_norm_act


class BatchNormAct2d(nn.BatchNorm2d):
    """``activation(bn(x) + residual)``, with the constructor and the keys of :class:`torch.nn.BatchNorm2d`.

    See :func:`fastcnn.ops.batch_norm_act`.

    Args:
        activation: a name of :func:`fastcnn.ops.activation`, a torch activation module, its class, or None.
    Raises: ValueError for an activation without a kernel.

    >>> BatchNormAct2d(8, activation="relu")(torch.zeros(2, 8, 4, 4)).shape
    torch.Size([2, 8, 4, 4])
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device=None,
        dtype=None,
        *,
        activation: str | nn.Module | type[nn.Module] | None = "relu",
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.activation = activation_name(activation)

    @classmethod
    def from_torch(cls, module: nn.BatchNorm2d, activation: str | nn.Module | None = "relu") -> "BatchNormAct2d":
        """The twin of a batch norm and the activation behind it, sharing its parameters and statistics."""
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        for name in ("num_features", "eps", "momentum", "affine", "track_running_stats", "training"):
            setattr(new, name, getattr(module, name))
        new._parameters, new._buffers = module._parameters, module._buffers
        new.activation = activation_name(activation)
        return new

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return _fused(self, x, self.activation, residual)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation}"


_NORMS = frozenset({nn.BatchNorm1d, nn.BatchNorm2d, BatchNormAct2d})


def fused_bn_act(bn: nn.Module, x: Tensor, activation: str = "identity", residual: Tensor | None = None) -> Tensor:
    """``activation(bn(x) + residual)`` as one op, for nets whose keys hold ``bn`` without its activation.

    A ``bn`` of another type (SyncBatchNorm), or with a hook, runs as itself, composed with the rest.

    Args:
        x: ``[N, C]`` or ``[N, C, H, W]``.
        activation: a name of :func:`fastcnn.ops.activation`.
        residual: shape of ``x``.
    """
    if is_plain(bn, _NORMS) or (type(bn) in _NORMS and not bn.affine):
        return _fused(bn, x, activation, residual)
    y = bn(x) if residual is None else bn(x) + residual
    return y if activation == "identity" else ops.activation(y, activation)


def _fused(bn: nn.modules.batchnorm._BatchNorm, x: Tensor, activation: str, residual: Tensor | None) -> Tensor:
    mean = bn.running_mean
    momentum = count_batch(bn)
    return batch_norm_act(
        x, mean, bn.running_var, bn.weight, bn.bias, residual, bn.training or mean is None, momentum, bn.eps, activation
    )
