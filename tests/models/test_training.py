# SPDX-License-Identifier: Apache-2.0
"""Training through the ops: small nets learn scikit-learn's digits as their torch.nn twins do from the same start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation, SqueezeExcitation

from fastcnn.models import create_model
from fastcnn.nn import ConvBNAct, SqueezeExcite
from fastcnn.ops import activation
from tests.models.collection import COLLECTION
from tests.parity import build_reference

SEEDS, RATE, BATCH, HELD_OUT = (0, 1, 2), 4e-3, 64, 497
LEARNED, NOISE = 80.0, 1.0  # percent; one seed's accuracy on so few pictures has a standard error of 0.6


class Parts(NamedTuple):
    """What the squeeze-excite ResNet below is made of; the keys are the same."""

    conv: Callable[..., nn.Module]  # in, out, kernel, stride, whether a ReLU follows
    squeeze: Callable[[int, int], nn.Module]
    relu: Callable[[Tensor], Tensor]


OURS = Parts(
    lambda i, o, k, s, relu: ConvBNAct(i, o, k, s, activation="relu" if relu else None),
    lambda channels, hidden: SqueezeExcite(channels, hidden, gate="sigmoid"),
    lambda x: activation(x, "relu"),
)
TORCHS = Parts(
    lambda i, o, k, s, relu: Conv2dNormActivation(i, o, k, s, activation_layer=nn.ReLU if relu else None),
    SqueezeExcitation,
    F.relu,
)


class Block(nn.Module):
    def __init__(self, parts: Parts, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.parts = parts
        self.conv1 = parts.conv(in_channels, channels, 3, stride, True)
        self.conv2 = parts.conv(channels, channels, 3, 1, False)
        self.se = parts.squeeze(channels, channels // 4)
        self.shortcut = parts.conv(in_channels, channels, 1, stride, False)

    def forward(self, x: Tensor) -> Tensor:
        return self.parts.relu(self.se(self.conv2(self.conv1(x))) + self.shortcut(x))


def small_se_resnet(parts: Parts) -> nn.Module:
    blocks = [Block(parts, i, o, 2) for i, o in ((16, 16), (16, 32), (32, 64))]
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return nn.Sequential(parts.conv(3, 16, 3, 2, True), *blocks, *pooled)


def of_the_collection(name: str, **theirs: Any) -> Callable[[], tuple[nn.Module, nn.Module]]:
    reference, width = COLLECTION[name]["reference"], {key: theirs[key] for key in theirs if key == "width_mult"}
    return lambda: (create_model(name, num_classes=10, **width), build_reference(reference, **theirs))


# (ours, its twin), epochs
NETS: dict[str, tuple[Callable[[], tuple[nn.Module, nn.Module]], int]] = {
    "lenet5_cifar": (of_the_collection("lenet5_cifar"), 4),
    "shufflenet_v2_x0_5": (of_the_collection("shufflenet_v2_x0_5", num_classes=10), 4),
    "mobilenet_v3_small": (of_the_collection("mobilenet_v3_small", num_classes=10, width_mult=0.5), 3),
    "se_resnet": (lambda: (small_se_resnet(OURS), small_se_resnet(TORCHS)), 2),
}


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """1,797 pictures of 8 x 8 at 32 x 32 in three channels, shuffled once."""
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    pictures = torch.from_numpy(found.images).float()[order, None] / 8 - 1
    larger = F.interpolate(pictures, size=(32, 32), mode="bilinear").expand(-1, 3, -1, -1).contiguous()
    return larger, torch.from_numpy(found.target)[order]


def accuracy_after_training(net: nn.Module, digits: tuple[Tensor, Tensor], seed: int, epochs: int) -> float:
    """Percent of the held-out pictures; batches, dropout and schedule depend on the seed alone."""
    torch.manual_seed(seed)
    pictures, labels = (part[HELD_OUT:] for part in digits)
    batches = len(labels) // BATCH
    optimizer = torch.optim.AdamW(net.parameters(), RATE, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=epochs * batches)
    net.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels))[: batches * BATCH].view(batches, BATCH):
            optimizer.zero_grad()
            F.cross_entropy(net(pictures[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    with torch.inference_mode():
        right = net.eval()(digits[0][:HELD_OUT]).argmax(1) == digits[1][:HELD_OUT]
    return 100 * right.double().mean().item()


@pytest.mark.parametrize("name", NETS)
def test_accuracy_is_that_of_the_torch_twin(name: str, digits: tuple[Tensor, Tensor]) -> None:
    build, epochs = NETS[name]
    found = []
    for seed in SEEDS:
        torch.manual_seed(seed)
        ours, theirs = build()
        for module in theirs.modules():  # build_reference draws one start for all seeds
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        for module in (*ours.modules(), *theirs.modules()):
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1  # MobileNetV3's 0.01 has not seen the data after so few steps
        ours.load_state_dict(theirs.state_dict(), strict=True)
        found.append([accuracy_after_training(net, digits, seed, epochs) for net in (ours, theirs)])
    ours, theirs = torch.tensor(found).T
    assert min(ours.min(), theirs.min()) > LEARNED, found
    noise = max(NOISE, (theirs.max() - theirs.min()).item())
    assert abs(ours.mean() - theirs.mean()) <= noise, found
