# SPDX-License-Identifier: Apache-2.0
"""Squeeze-and-excitation however it is written; what only resembles it stays, with a reason."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastcnn.accelerate.program import SE_SCALE, calls
from fastcnn.accelerate.rewrites.conv_activation import conv_activation
from fastcnn.accelerate.rewrites.fold_batch_norm import fold_batch_norm
from fastcnn.accelerate.rewrites.squeeze_excite import squeeze_excite
from fastcnn.accelerate.rewrites.written_out_activations import written_out_activations
from fastcnn.nn import SqueezeExcite
from tests.accelerate.graphs import Each, check, reasons

X = torch.randn(3, 8, 5, 6)
BEFORE = (written_out_activations, fold_batch_norm, conv_activation)
PARTS = ("global_avg_pool", "conv_bn_act", "aten.linear", "aten.mul", "aten.reshape", "aten.expand", "relu", "sigmoid",
         "hardsigmoid", "batch_norm_act")  # fmt: skip


class Scale(nn.Module):
    """Layers between the pool and the gate, and how both are written."""

    def __init__(self, *layers: nn.Module, pool=None, multiply=None) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.pool = pool or (lambda x: F.adaptive_avg_pool2d(x, 1))
        self.multiply = multiply or torch.mul

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(x, self.layers(self.pool(x)))


def conv(*shape: int, **options) -> nn.Conv2d:
    return nn.Conv2d(*shape, 1, **options)


def flat(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1)


def columns(x: Tensor, gate: Tensor) -> Tensor:
    return x * gate.view(x.size(0), x.size(1), 1, 1)


def repeated(x: Tensor, gate: Tensor) -> Tensor:
    return x * gate[:, :, None, None].expand_as(x)


def in_place(x: Tensor, gate: Tensor) -> Tensor:
    y = x + 0.5 - 0.5
    return y.mul_(gate)


class HardSigmoid(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3.0, inplace=True) / 6.0


linear = (nn.Linear(8, 4), nn.ReLU(True), nn.Linear(4, 8), nn.Sigmoid())
SPELLINGS = {
    "torchvision": Scale(conv(8, 4), nn.ReLU(), conv(4, 8), nn.Hardsigmoid(), multiply=lambda x, gate: gate * x),
    "timm": Scale(conv(8, 4), nn.SiLU(True), conv(4, 8), nn.Sigmoid(), pool=lambda x: x.mean((2, 3), keepdim=True)),
    "h-sigmoid by hand": Scale(conv(8, 4), nn.ReLU(True), conv(4, 8), HardSigmoid()),
    "linear, view": Scale(*linear, pool=flat, multiply=columns),
    "linear, expand": Scale(*linear, pool=lambda x: x.mean((2, 3)), multiply=repeated),
    "linear without bias": Scale(nn.Linear(8, 4, bias=False), nn.ReLU(), nn.Linear(4, 8, bias=False), nn.Sigmoid(),
                                 pool=lambda x: x.mean([-1, -2]), multiply=columns),
    "one bias": Scale(conv(8, 4, bias=False), nn.ReLU6(), conv(4, 8), nn.ReLU6()),
    "batch norm": Scale(conv(8, 4, bias=False), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 8, bias=False), nn.BatchNorm2d(8),
                        nn.Hardsigmoid()),
    "batch norm of vectors": Scale(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 8), nn.Sigmoid(),
                                   pool=flat, multiply=columns),
    "linear and convolution": Scale(conv(8, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 8), nn.Sigmoid(),
                                    multiply=columns),
    "no activations": Scale(conv(8, 4), conv(4, 8)),
    "wider inside": Scale(conv(8, 16), nn.Hardswish(), conv(16, 8), nn.Sigmoid()),
    "SAME": Scale(nn.Conv2d(8, 4, 1, padding="same"), nn.ReLU(), nn.Conv2d(4, 8, 1, padding="same"), nn.Sigmoid()),
    "expanded": Scale(conv(8, 4), nn.ReLU(), conv(4, 8), nn.Sigmoid(), multiply=lambda x, gate: x * gate.expand(x.shape)),
}  # fmt: skip


def test_every_spelling_is_one_op():
    program = check(squeeze_excite, Each(SPELLINGS.values()), X, count=len(SPELLINGS), absent=PARTS, prepare=BEFORE,
                    present={"se_scale": len(SPELLINGS)})  # fmt: skip
    kinds = [node.args[5:] for node in calls(program, SE_SCALE)]
    assert kinds[:3] == [("relu", "hardsigmoid"), ("silu", "sigmoid"), ("relu", "hardsigmoid")]
    assert kinds[6] == ("relu6", "relu6")
    assert kinds[10] == ("identity", "identity")


def test_before_the_activations_are_in_the_convolutions():
    check(squeeze_excite, Each([SPELLINGS["timm"], SPELLINGS["linear, view"]]), X, count=2, present={"se_scale": 2},
          absent=PARTS)  # fmt: skip


def test_a_scale_written_in_place():
    net = Scale(conv(8, 4), nn.ReLU(), conv(4, 8), nn.Sigmoid(), multiply=in_place)
    check(squeeze_excite, nn.Sequential(conv(8, 8), nn.ReLU(), Scale(conv(8, 4), conv(4, 8), multiply=Tensor.mul_)), X,
          count=1, present={"se_scale": 1, "conv_bn_act": 1}, prepare=BEFORE)  # fmt: skip
    program = check(squeeze_excite, net, X, count=0, present={"se_scale": 0}, prepare=BEFORE)
    assert "the map that was pooled is another one" in reasons(program)


def test_ours_stays_as_it_is():
    check(squeeze_excite, SqueezeExcite(8, 4), X, count=0, present={"se_scale": 1})


class Parallel(nn.Module):
    """The gate of one tensor on another, or of a value that others read."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.a, self.b, self.call = conv(8, 8), conv(8, 8), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def another_map(self: Parallel, x: Tensor) -> Tensor:
    return (x + 1) * torch.sigmoid(self.b(F.relu(self.a(x.mean((2, 3), keepdim=True)))))


def gate_read_twice(self: Parallel, x: Tensor) -> Tensor:
    gate = torch.sigmoid(self.b(F.relu(self.a(x.mean((2, 3), keepdim=True)))))
    return x * gate + gate


def pool_read_twice(self: Parallel, x: Tensor) -> Tensor:
    pooled = x.mean((2, 3), keepdim=True)
    return x * torch.sigmoid(self.b(F.relu(self.a(pooled)))) + pooled


def one_for_each_image(self: Parallel, x: Tensor) -> Tensor:
    gate = torch.sigmoid(self.b(F.relu(self.a(x.mean((2, 3), keepdim=True)))))
    return x * gate.mean(1, keepdim=True)


def across_the_batch(self: Parallel, x: Tensor) -> Tensor:
    gate = torch.sigmoid(self.b(F.relu(self.a(x.mean((2, 3), keepdim=True)))))
    return x * gate.sum(0, keepdim=True)


def with_the_maximum(self: Parallel, x: Tensor) -> Tensor:
    pooled = 0.5 * x.mean((2, 3), keepdim=True) + 0.5 * x.amax((2, 3), keepdim=True)
    return x * torch.sigmoid(self.b(F.relu(self.a(pooled))))


def twice_the_gate(self: Parallel, x: Tensor) -> Tensor:
    return x * (2 * torch.sigmoid(self.b(F.relu(self.a(x.mean((2, 3), keepdim=True))))))


STAYS = {
    "one layer": (Scale(conv(8, 8), nn.Hardsigmoid()), "its layers are 1,"),
    "three layers": (Scale(conv(8, 4), conv(4, 4), nn.ReLU(), conv(4, 8), nn.Sigmoid()), "its layers are 3,"),
    "no layer": (Scale(nn.Sigmoid()), "an activation follows the pool"),
    "groups": (Scale(conv(8, 4, groups=2), nn.ReLU(), conv(4, 8), nn.Sigmoid()), "a grouped"),
    "3x3": (Scale(nn.Conv2d(8, 4, 3, 1, 1), nn.ReLU(), conv(4, 8), nn.Sigmoid()), "larger convolution"),
    "two activations": (Scale(conv(8, 4), nn.ReLU(), nn.Hardsigmoid(), conv(4, 8)), "another activation"),
    "another activation": (Scale(conv(8, 4), nn.GELU(), conv(4, 8), nn.Sigmoid()), "aten.gelu stands between"),
    "layer norm": (Scale(conv(8, 4), nn.GroupNorm(1, 4), conv(4, 8), nn.Sigmoid()), "aten.group_norm stands between"),
    "efficient channel attention": (
        Scale(nn.Conv1d(1, 1, 3, 1, 1), nn.Sigmoid(), pool=lambda x: x.mean((2, 3)).view(-1, 1, 8),
              multiply=lambda x, gate: x * gate.view(-1, 8, 1, 1).expand_as(x)),
        "aten.conv1d stands between"),
    "another map": (Parallel(another_map), "the map that was pooled is another one"),
    "gate read twice": (Parallel(gate_read_twice), "read elsewhere too"),
    "pool read twice": (Parallel(pool_read_twice), "read elsewhere too"),
    "one value for each image": (Parallel(one_for_each_image), "aten.mean.dim stands between"),
    "across the batch": (Parallel(across_the_batch), "aten.sum.dim_IntList stands between"),
    "average and maximum": (Parallel(with_the_maximum), "aten.add.Tensor stands between"),
    "twice the gate": (Parallel(twice_the_gate), "aten.mul.Tensor stands between"),
}  # fmt: skip


def test_what_resembles_it_stays_with_a_reason():
    program = check(squeeze_excite, Each(net for net, _ in STAYS.values()), X, count=0, present={"se_scale": 0},
                    prepare=BEFORE)  # fmt: skip
    found = reasons(program)
    assert [name for name, (_, reason) in STAYS.items() if reason not in found] == []
    assert found.count("scales a map by what was pooled") == len(STAYS)


def along_the_width(self: Parallel, x: Tensor) -> Tensor:
    wide = F.pad(x, (0, 2))  # as wide as it has channels
    return wide * torch.sigmoid(self.b(F.relu(self.a(wide.mean((2, 3), keepdim=True))))).view(-1, 1, 1, 8)


def along_the_batch(self: Parallel, x: Tensor) -> Tensor:
    return x * torch.sigmoid(self.b(F.relu(self.a(x.mean((2, 3), keepdim=True))))).view(1, -1, 1, 1)[:, :8]


@pytest.mark.parametrize("function", [
    Parallel(along_the_width),
    Parallel(along_the_batch),
    Scale(conv(8, 4, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.Sigmoid()),
    lambda x: x * torch.sigmoid(x + 1),
    lambda x: x * x.amax((2, 3), keepdim=True).sigmoid(),
    lambda x: x * x.mean(1, keepdim=True).sigmoid(),
])  # fmt: skip
def test_another_gate_stays(function):
    check(squeeze_excite, function, X, count=0, present={"aten.mul": 1}, prepare=BEFORE)
