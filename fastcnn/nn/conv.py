# SPDX-License-Identifier: Apache-2.0
"""Convolution layers: the fused conv + BN + residual + activation, depthwise, and TensorFlow's SAME padding.

The fused path serves plain layers only. A child that somebody replaced (SyncBatchNorm, a parametrised or quantised
convolution) or hung a hook on runs as itself, composed with the rest, so such tools keep their meaning.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn import ops
from fastcnn.nn.activation import activation_name
from fastcnn.ops import conv_bn_act, depthwise_conv2d

_Pair = int | tuple[int, int]


class Conv2dSame(nn.Conv2d):
    """:class:`torch.nn.Conv2d` with TensorFlow's SAME padding at any stride: ``Ho = ceil(H / stride)``.

    The odd pixel of padding goes to the bottom and the right; how much depends on the input's size. Same constructor
    as ``nn.Conv2d``; ``padding`` is accepted for its place in the signature and must be 0 or "same".

    Raises: ValueError for another ``padding`` or ``padding_mode``.

    >>> Conv2dSame(3, 8, 3, stride=2)(torch.zeros(1, 3, 225, 224)).shape
    torch.Size([1, 8, 113, 112])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Pair,
        stride: _Pair = 1,
        padding: int | str = "same",
        dilation: _Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device=None,
        dtype=None,
    ) -> None:
        if padding not in (0, "same") or padding_mode != "zeros":
            raise ValueError(f"Conv2dSame: padding must be 'same' of zeros, got {padding!r} of {padding_mode!r}")
        super().__init__(
            in_channels, out_channels, kernel_size, stride, 0, dilation, groups, bias, device=device, dtype=dtype
        )
        self.padding = "same"  # set afterwards: nn.Conv2d refuses it together with a stride

    @classmethod
    def from_torch(cls, module: nn.Conv2d) -> "Conv2dSame":
        """The SAME-padded twin of a convolution, sharing its parameters; the padding of ``module`` is dropped."""
        return _adopt(cls, module, padding="same")

    def forward(self, x: Tensor) -> Tensor:
        return conv_bn_act(
            x, self.weight, None, None, None, None, self.bias, None, self.stride, "same", self.dilation, self.groups
        )


class DepthwiseConv2d(nn.Conv2d):
    """:class:`torch.nn.Conv2d` with one filter bank a channel. See :func:`fastcnn.ops.depthwise_conv2d`.

    The constructor of ``nn.Conv2d``; ``groups`` left out means ``in_channels``, ``out_channels`` is a multiple of it.

    Raises: ValueError when ``groups`` differs from ``in_channels`` or ``out_channels`` is no multiple of it.

    >>> DepthwiseConv2d(16, 32, 3, padding=1)(torch.zeros(2, 16, 8, 8)).shape
    torch.Size([2, 32, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Pair,
        stride: _Pair = 1,
        padding: _Pair | str = 0,
        dilation: _Pair = 1,
        groups: int | None = None,
        bias: bool = True,
        padding_mode: str = "zeros",
        device=None,
        dtype=None,
    ) -> None:
        groups = in_channels if groups is None else groups
        if groups != in_channels:
            raise ValueError(f"DepthwiseConv2d: groups must be in_channels = {in_channels}, got {groups}")
        if out_channels % in_channels:
            raise ValueError(f"DepthwiseConv2d: out_channels must be a multiple of {in_channels}, got {out_channels}")
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )

    @classmethod
    def from_torch(cls, module: nn.Conv2d) -> "DepthwiseConv2d":
        """The twin of a depthwise ``nn.Conv2d``, sharing its parameters."""
        return _adopt(cls, module, padding=module.padding, padding_mode=module.padding_mode)

    def forward(self, x: Tensor) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, self.padding_mode), 0
        return depthwise_conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation)


def _adopt(cls: type[nn.Conv2d], module: nn.Conv2d, **padding) -> nn.Conv2d:
    new = cls(
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        module.stride,
        dilation=module.dilation,
        groups=module.groups,
        bias=module.bias is not None,
        device="meta",  # the parameters are module's own
        **padding,
    )
    new.weight, new.bias, new.training = module.weight, module.bias, module.training
    return new


_FUSED_CONVS = frozenset({nn.Conv2d, Conv2dSame, DepthwiseConv2d})


def is_plain(module: nn.Module, types: frozenset[type[nn.Module]]) -> bool:
    """Whether reading ``module``'s tensors is all its forward would have done: one of ``types`` itself, and no hooks.

    The replicas of ``nn.DataParallel`` hold their weights outside ``_parameters``; they are not plain either.
    """
    return (
        type(module) in types
        and "weight" in module._parameters
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
    )


_FUSED_NORMS = frozenset({nn.BatchNorm2d})


def fused_conv_bn_act(
    conv: nn.Conv2d,
    bn: nn.BatchNorm2d | None,
    x: Tensor,
    activation: str = "identity",
    residual: Tensor | None = None,
) -> Tensor:
    """``activation(bn(conv(x)) + residual)`` as one op, for nets whose keys hold ``conv`` and ``bn`` as siblings.

    Each module keeps its own mode: a ``bn`` in eval inside a training net uses and leaves its running statistics.

    Args:
        conv: reads ``x`` ``[N, C, H, W]``.
        bn: None for a convolution with bias alone.
        activation: a name of :func:`fastcnn.ops.activation`.
        residual: shape of the output.
    """
    plain = is_plain(conv, _FUSED_CONVS) and conv.padding_mode == "zeros" and (bn is None or is_plain(bn, _FUSED_NORMS))
    if not plain:
        return _composed(conv, bn, x, activation, residual)
    # The tensors come from the dictionaries: nn.Module.__getattr__ costs more than the rest of this function.
    tensors = conv._parameters
    weight, bias = tensors["weight"], tensors["bias"]
    if bn is None:
        return conv_bn_act(
            x, weight, None, None, None, None, bias, residual,
            conv.stride, conv.padding, conv.dilation, conv.groups, activation=activation,
        )  # fmt: skip
    affine, buffers = bn._parameters, bn._buffers
    mean = buffers["running_mean"]
    # Without running statistics the batch's own serve in eval too, as in torch.
    return conv_bn_act(
        x, weight, affine["weight"], affine["bias"], mean, buffers["running_var"], bias, residual,
        conv.stride, conv.padding, conv.dilation, conv.groups,
        bn.training or mean is None, count_batch(bn), bn.eps, activation,
    )  # fmt: skip


def count_batch(bn: nn.modules.batchnorm._BatchNorm) -> float:
    """Count a training batch as torch's own forward does; the share of it in the running statistics (momentum)."""
    momentum = bn.momentum
    if bn.training and bn.track_running_stats:
        count = bn._buffers["num_batches_tracked"]
        if count is not None:
            count.add_(1)
            if momentum is None:
                momentum = 1.0 / float(count)
    return momentum or 0.0


def _composed(conv: nn.Module, bn: nn.Module | None, x: Tensor, activation: str, residual: Tensor | None) -> Tensor:
    y = conv(x)
    if bn is not None:
        y = bn(y)
    if residual is not None:
        y = y + residual
    return y if activation == "identity" else ops.activation(y, activation)


class ConvBNAct(nn.Sequential):
    """``activation(bn(conv(x)) + residual)``, with the keys of torchvision's Conv2dNormActivation.

    Children are "0" (the convolution) and "1" (``nn.BatchNorm2d``); the activation is a name, not a child.
    See :func:`fastcnn.ops.conv_bn_act`.

    Args:
        kernel_size, stride, dilation, groups, bias: as in ``nn.Conv2d``.
        padding: None for ``(k - 1) // 2 * dilation``, a number, a pair, "valid", or "same" (TensorFlow's, any stride).
        activation: a name of :func:`fastcnn.ops.activation`, a torch activation module, its class, or None.
        eps, momentum: of the batch norm.
    Raises: ValueError for an activation without a kernel.

    >>> ConvBNAct(3, 16, 3, stride=2, activation="relu6")(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 16, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Pair = 3,
        stride: _Pair = 1,
        padding: _Pair | str | None = None,
        groups: int = 1,
        dilation: _Pair = 1,
        bias: bool = False,
        activation: str | nn.Module | type[nn.Module] | None = "relu",
        eps: float = 1e-5,
        momentum: float | None = 0.1,
    ) -> None:
        conv_type = nn.Conv2d
        if padding is None:
            k, d = (v if isinstance(v, tuple) else (v, v) for v in (kernel_size, dilation))
            padding = ((k[0] - 1) // 2 * d[0], (k[1] - 1) // 2 * d[1])
        elif padding == "same":
            conv_type = Conv2dSame
        super().__init__(
            conv_type(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias),
            nn.BatchNorm2d(out_channels, eps, momentum),
        )
        self.out_channels = out_channels
        self.activation = activation_name(activation)

    @classmethod
    def from_torch(cls, module: nn.Sequential) -> "ConvBNAct":
        """The twin of a Sequential of Conv2d, BatchNorm2d and at most one activation, sharing the two layers.

        Raises: ValueError for another row of layers, TypeError for what is no Sequential.
        """
        if not isinstance(module, nn.Sequential):
            raise TypeError(f"ConvBNAct.from_torch: module must be an nn.Sequential, got {type(module).__name__}")
        layers = list(module)
        wanted = (nn.Conv2d, nn.BatchNorm2d, nn.Module)
        if not 2 <= len(layers) <= 3 or not all(map(isinstance, layers, wanted)):
            got = [type(layer).__name__ for layer in layers]
            raise ValueError(f"ConvBNAct.from_torch: module must hold Conv2d, BatchNorm2d[, activation], got {got}")
        new = cls.__new__(cls)
        nn.Sequential.__init__(new, layers[0], layers[1])
        new.out_channels = layers[0].out_channels
        new.activation = activation_name(layers[2] if len(layers) == 3 else getattr(module, "activation", None))
        new.training = module.training
        return new

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        children = self._modules
        return fused_conv_bn_act(children["0"], children["1"], x, self.activation, residual)

    def extra_repr(self) -> str:
        return f"activation={self.activation}"
