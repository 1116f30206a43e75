# SPDX-License-Identifier: Apache-2.0
"""LeNet-5, LeCun et al. 1998 (Proc. IEEE 86(11), figure 2), with every map of S2 connected to every map of C3.

Three forms: with tanh and average pools as in the paper; with ReLU and max pools on colour pictures, under the keys of
the CIFAR tutorials; and with a batch norm behind every layer but the last.
"""

from typing import Any

from torch import Tensor, nn

from fastcnn.models.blocks import Chain
from fastcnn.models.registry import register
from fastcnn.nn import fused_conv_bn_act
from fastcnn.ops import activation

MAPS, UNITS = (6, 16), (120, 84)  # C1 and C3, C5 and F6


class LeNet5(Chain):
    """C1, S2, C3, S4, C5, F6, output. ``padding`` 2 takes 28 x 28 pictures, as the paper's 32 x 32 hold digits of 28.

    Args:
        activation: "tanh", or a name of :func:`fastcnn.ops.activation`.
    """

    def __init__(self, num_classes: int = 10, in_chans: int = 1, activation: str = "tanh", padding: int = 0) -> None:
        def act() -> nn.Module | str:
            return nn.Tanh() if activation == "tanh" else activation

        super().__init__(
            nn.Conv2d(in_chans, MAPS[0], 5, padding=padding),
            act(),
            nn.AvgPool2d(2),
            nn.Conv2d(*MAPS, 5),
            act(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(MAPS[1] * 5 * 5, UNITS[0]),
            act(),
            nn.Linear(*UNITS),
            act(),
            nn.Linear(UNITS[1], num_classes),
        )


class LeNet5Cifar(nn.Module):
    """ReLU and max pools; 32 x 32 input."""

    def __init__(self, num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, MAPS[0], 5)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(*MAPS, 5)
        self.pool2 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(MAPS[1] * 5 * 5, UNITS[0])
        self.fc2 = nn.Linear(*UNITS)
        self.fc3 = nn.Linear(UNITS[1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(fused_conv_bn_act(self.conv1, None, x, "relu"))
        x = self.pool2(fused_conv_bn_act(self.conv2, None, x, "relu")).flatten(1)
        return self.fc3(activation(self.fc2(activation(self.fc1(x), "relu")), "relu"))


class LeNetBN(Chain):
    """Batch norm and sigmoid behind every layer but the last, max pools; 28 x 28 input, unpadded."""

    def __init__(self, num_classes: int = 10, in_chans: int = 1) -> None:
        layers: list[nn.Module | str] = []
        for channels, maps in zip((in_chans, *MAPS), MAPS, strict=False):
            layers += [nn.Conv2d(channels, maps, 5), nn.BatchNorm2d(maps), "sigmoid", nn.MaxPool2d(2)]
        layers.append(nn.Flatten())
        for width, units in zip((MAPS[1] * 4 * 4, *UNITS), UNITS, strict=False):
            layers += [nn.Linear(width, units), nn.BatchNorm1d(units), "sigmoid"]
        super().__init__(*layers, nn.Linear(UNITS[1], num_classes))


@register("lenet5")
def lenet5(**kwargs: Any) -> LeNet5:
    """LeNet-5, tanh, average pools, one channel of 32 x 32."""
    return LeNet5(**kwargs)


@register("lenet5_cifar")
def lenet5_cifar(**kwargs: Any) -> LeNet5Cifar:
    """LeNet-5 for CIFAR-10: ReLU, max pools."""
    return LeNet5Cifar(**kwargs)


@register("lenet_bn")
def lenet_bn(**kwargs: Any) -> LeNetBN:
    """LeNet with batch norm and sigmoid, one channel of 28 x 28."""
    return LeNetBN(**kwargs)
