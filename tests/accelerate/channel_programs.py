# SPDX-License-Identifier: Apache-2.0
"""What the tests of the rewrites about channels share: a convolution in the dialect, one rewrite applied and checked."""

import torch
from torch import Tensor, nn

from fastcnn.accelerate.capture import capture
from fastcnn.accelerate.program import Notes, sweep
from fastcnn.accelerate.rewrites.normalise import normalise


class Conv(nn.Module):
    """``conv_bn_act`` without batch norm, as every convolution stands in a program."""

    def __init__(self, x, y, kernel=1, stride=1, groups=1, activation="identity", bias=True, dilation=1):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(y, x // groups, kernel, kernel) / (x // groups * kernel**2) ** 0.5)
        self.bias = nn.Parameter(torch.randn(y)) if bias else None
        self.rest = [[stride] * 2, [dilation * (kernel // 2)] * 4, [dilation] * 2, groups, 0.0, activation]

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return torch.ops.fastcnn.conv_bn_act(x, self.weight, self.bias, None, None, None, None, residual, *self.rest)


class Net(nn.Module):
    """``function(self, x)`` with named layers and buffers."""

    def __init__(self, function, **parts):
        super().__init__()
        for name, part in parts.items():
            self.register_buffer(name, part) if isinstance(part, Tensor) else setattr(self, name, part)
        self.function = function

    def forward(self, x: Tensor):
        return self.function(self, x)


def shuffle(x: Tensor, groups: int) -> Tensor:
    return torch.ops.fastcnn.channel_shuffle(x, groups)


def act(x: Tensor, kind: str = "relu") -> Tensor:
    return torch.ops.fastcnn.activation(x, kind)


def ops_of(program) -> list[str]:
    """The names of its operators in order, those of sizes left out."""
    names = [node.target.__name__ for node in program.graph.nodes if node.op == "call_function"]
    return [
        name.removesuffix(".default").removesuffix(".Tensor") for name in names if "sym_" not in name and "." in name
    ]


def rewritten(rewrite, model, channels=12, size=(5, 6), bitwise=True, batch=2):
    """``rewrite`` on the program of ``model``: (how often it replaced something, the program, the reasons it left).

    The result must equal the model's for the batch of the example and for another, in float64.
    """
    model = model.double().eval()
    program = capture(model, (torch.randn(batch, channels, *size, dtype=torch.float64),)).program
    notes = Notes()
    normalise(program, notes)
    count = rewrite(program, notes)
    sweep(program)
    for n in (batch, batch + 3):
        x = torch.randn(n, channels, *size, dtype=torch.float64)
        with torch.no_grad():
            wanted, got = model(x), program(x)
        wanted = wanted if isinstance(wanted, (tuple, list)) else (wanted,)
        assert len(got) == len(wanted)
        for y, z in zip(got, wanted, strict=True):
            torch.testing.assert_close(y, z, rtol=0 if bitwise else 1e-12, atol=0 if bitwise else 1e-12)
    for node in program.graph.nodes:
        assert "val" in node.meta or node.op == "output", node
    return count, program, [node.meta["left"] for node in program.graph.nodes if "left" in node.meta]
