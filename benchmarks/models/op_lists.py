# SPDX-License-Identifier: Apache-2.0
"""Nine networks as lists of our launches, the bytes that these move: `python -m benchmarks.models.op_lists [--write]`.

A model, nothing is timed. Every tensor that a launch reads or writes counts once: maps in half precision, the sums and
gates of squeeze-and-excitation in float32. Weights do not, as in the columns beside ours: a batch reads them once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.report import section_main
from fastcnn.models import efficientnet, mobilenet_v1, mobilenet_v2, mobilenet_v3, shufflenet_v2
from fastcnn.models.blocks import make_divisible

Shape = tuple[int, int, int]
HALF, FLOAT = 2, 4  # bytes
IMAGE = (3, 224, 224)


class Op(NamedTuple):
    """One launch. Shapes are (C, H, W) of one image; ``x`` is what the launch reads of its input, ``y`` what it writes.

    Args:
        kind: "depthwise", "gemm" (1x1 and linear), "implicit gemm" (dense k x k), "se gate" (mean of the sums, both
            layers, gate), "shuffle concat", "batch norm", "global pool", "max pool".
        gate: x is multiplied by a float32 [C] as it loads.
        prologue: x goes through batch norm and ReLU as it loads.
        sums: float32 sums a channel, which a depthwise launch leaves for the "se gate" that follows.
        hidden: width between the two layers of a gate.
        into: channels of the wider map of which y is a slice, 0 when y is a map of its own. A slice moves no more.
    """

    kind: str
    x: Shape
    y: Shape
    kernel: int = 1
    stride: int = 1
    activation: str = "identity"
    residual: bool = False
    gate: bool = False
    prologue: bool = False
    sums: int = 0
    hidden: int = 0
    into: int = 0

    @property
    def read(self) -> int:
        if self.kind == "se gate":
            return FLOAT * self.x[0] * self.sums
        return HALF * (_elements(self.x) + self.residual * _elements(self.y)) + FLOAT * self.gate * self.x[0]

    @property
    def written(self) -> int:
        if self.kind == "se gate":
            return FLOAT * self.y[0]
        return HALF * _elements(self.y) + FLOAT * self.y[0] * self.sums


def _elements(shape: Shape) -> int:
    return shape[0] * shape[1] * shape[2]


def _sums(y: Shape, kernel: int, stride: int) -> int:
    """One sum a channel from every thread's tile of csrc/cuda/depthwise_conv2d_tile.cuh."""
    strip = {3: 4 if stride == 1 else 2, 5: 2, 7: 1}[kernel]
    rows = 7 if kernel == 3 else 14
    return -(-y[1] // rows) * -(-y[2] // strip)


class Net:
    """Launches in order. Each method appends and returns the shape it writes."""

    def __init__(self) -> None:
        self.ops: list[Op] = []

    def add(self, kind: str, x: Shape, y: Shape, **rest: int | str | bool) -> Shape:
        self.ops.append(Op(kind, x, y, **rest))
        return y

    def conv(self, x: Shape, channels: int, kernel: int = 1, stride: int = 1, activation: str = "identity",
             **rest: int | bool) -> Shape:  # fmt: skip
        y = (channels, -(-x[1] // stride), -(-x[2] // stride))
        kind = "gemm" if kernel == 1 else "implicit gemm"
        return self.add(kind, x, y, kernel=kernel, stride=stride, activation=activation, **rest)

    def depthwise(self, x: Shape, kernel: int, stride: int, activation: str = "identity", **rest: int | bool) -> Shape:
        y = (x[0], -(-x[1] // stride), -(-x[2] // stride))
        return self.add("depthwise", x, y, kernel=kernel, stride=stride, activation=activation, **rest)

    def max_pool(self, x: Shape, into: int = 0) -> Shape:
        return self.add("max pool", x, (x[0], x[1] // 2, x[2] // 2), kernel=3, stride=2, into=into)

    def inverted_residual(self, x: Shape, expanded: int, channels: int, kernel: int, stride: int, activation: str,
                          squeeze: int = 0) -> Shape:  # fmt: skip
        y = self.conv(x, expanded, activation=activation) if expanded != x[0] else x
        sums = _sums((expanded, -(-x[1] // stride), -(-x[2] // stride)), kernel, stride) if squeeze else 0
        y = self.depthwise(y, kernel, stride, activation, sums=sums)
        if squeeze:
            self.add("se gate", (expanded, 1, 1), (expanded, 1, 1), sums=sums, hidden=squeeze)
        return self.conv(y, channels, residual=stride == 1 and channels == x[0], gate=squeeze > 0)

    def classifier(self, x: Shape, hidden: int = 0, activation: str = "identity") -> list[Op]:
        x = self.add("global pool", x, (x[0], 1, 1))
        if hidden:
            x = self.conv(x, hidden, activation=activation)
        self.conv(x, 1000)
        return self.ops


def _mobilenet_v1() -> list[Op]:
    net = Net()
    x = net.conv(IMAGE, 32, 3, 2, "relu")
    for i, widths in enumerate(mobilenet_v1.STAGES):
        for j, channels in enumerate(widths):
            x = net.depthwise(x, 3, 2 if i > 0 and j == 0 else 1, "relu")
            x = net.conv(x, channels, activation="relu")
    return net.classifier(x)


def _mobilenet_v2() -> list[Op]:
    net = Net()
    x = net.conv(IMAGE, 32, 3, 2, "relu6")
    for t, c, n, s in mobilenet_v2.ROWS:
        for i in range(n):
            x = net.inverted_residual(x, x[0] * t, c, 3, s if i == 0 else 1, "relu6")
    return net.classifier(net.conv(x, 1280, activation="relu6"))


def _mobilenet_v3(rows: list[mobilenet_v3.Row], hidden: int) -> list[Op]:
    net = Net()
    x = net.conv(IMAGE, 16, 3, 2, "hardswish")
    for k, exp, out, se, nl, s in rows:
        x = net.inverted_residual(x, exp, out, k, s, nl, make_divisible(exp // 4) if se else 0)
    return net.classifier(net.conv(x, 6 * x[0], activation="hardswish"), hidden, "hardswish")


#           k  t    c  n  s     arXiv:1807.11626, figure 7, as torchvision has it
MNASNET = [(3, 3,  24, 3, 2), (5, 3,  40, 3, 2), (5, 6,  80, 3, 2), (3, 6,  96, 2, 1), (5, 6, 192, 4, 2),
           (3, 6, 320, 1, 1)]  # fmt: skip


def _mnasnet() -> list[Op]:
    net = Net()
    x = net.depthwise(net.conv(IMAGE, 32, 3, 2, "relu"), 3, 1, "relu")
    x = net.conv(x, 16)
    for k, t, c, n, s in MNASNET:
        for i in range(n):
            x = net.inverted_residual(x, x[0] * t, c, k, s if i == 0 else 1, "relu")
    return net.classifier(net.conv(x, 1280, activation="relu"))


def _shufflenet_v2() -> list[Op]:
    """No channel moves without need; the next weights are permuted to where the channels lie.

    A unit's map is [stay, go | go, stay] in quarters: the next unit reads the middle half, where it lies. Its last 1x1
    writes the right half of a new map, go first. The quarters that stay become the left half of it by one shuffle +
    concat, which puts those of them that go next in its second half. The last unit of a stage writes over the middle
    that it has read instead: what follows reads all channels, in any order.
    """
    net = Net()
    stem, *stages, last = shufflenet_v2.CHANNELS[1.0]
    x = net.max_pool(net.conv(IMAGE, stem, 3, 2, "relu"))
    for repeats, channels in zip(shufflenet_v2.REPEATS, stages):
        half = channels // 2
        net.conv(net.depthwise(x, 3, 2), half, activation="relu", into=channels)
        y = net.depthwise(net.conv(x, half, activation="relu"), 3, 2)
        for unit in range(repeats):
            if unit > 0:
                y = net.depthwise(net.conv(y, half, activation="relu"), 3, 1)
            y = net.conv(y, half, activation="relu", into=channels)
            if 0 < unit < repeats - 1:
                net.add("shuffle concat", y, y, into=channels)
        x = (channels, *y[1:])
    return net.classifier(net.conv(x, last, activation="relu"))


def _efficientnet_b0() -> list[Op]:
    net = Net()
    x = net.conv(IMAGE, 32, 3, 2, "silu")
    for t, k, c, n, s, _ in efficientnet.ROWS:
        for i in range(n):
            x = net.inverted_residual(x, x[0] * t, c, k, s if i == 0 else 1, "silu", x[0] // 4)
    return net.classifier(net.conv(x, 4 * x[0], activation="silu"))


def _densenet121() -> list[Op]:
    """A block is one map that its layers widen; batch norm 2 of a layer is folded, batch norm 1 goes with its 1x1.

    The stem's pool writes into the first of these maps; a transition's average is a depthwise 2x2 of constant weights.
    """
    net = Net()
    x = net.max_pool(net.conv(IMAGE, 64, 7, 2, "relu"), into=256)
    for layers, after in ((6, 12), (12, 24), (24, 16), (16, 0)):
        width = x[0] + 32 * layers
        for _ in range(layers):
            net.conv(net.conv(x, 128, activation="relu", prologue=True), 32, 3, into=width)
            x = (x[0] + 32, *x[1:])
        if after:
            x = net.depthwise(net.conv(x, width // 2, prologue=True), 2, 2, into=width // 2 + 32 * after)
    return net.classifier(net.add("batch norm", x, x, activation="relu"))


def _resnet50() -> list[Op]:
    net = Net()
    x = net.max_pool(net.conv(IMAGE, 64, 7, 2, "relu"))
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for i in range(blocks):
            stride = 2 if i == 0 and width > 64 else 1
            y = net.conv(x, width, activation="relu")
            y = net.conv(y, width, 3, stride, "relu")
            if i == 0:
                net.conv(x, 4 * width, stride=stride)
            x = net.conv(y, 4 * width, activation="relu", residual=True)
    return net.classifier(x)


class Columns(NamedTuple):
    """The other levels, counted from torchvision's modules by the same rule: MB an image and launches."""

    eager: float
    compile: float | None
    layer: float
    layer_plus: float
    eager_launches: int
    layer_plus_launches: int


NETS: dict[str, tuple[Callable[[], list[Op]], Columns]] = {
    "mobilenet_v1": (_mobilenet_v1, Columns(60.8, 40.7, 20.5, 20.5, 83, 29)),
    "mobilenet_v2": (_mobilenet_v2, Columns(79.3, 54.0, 27.3, 27.3, 150, 53)),
    "mobilenet_v3_large": (lambda: _mobilenet_v3(mobilenet_v3.LARGE, 1280), Columns(57.0, 40.0, 21.2, 18.8, 185, 57)),
    "mobilenet_v3_small": (lambda: _mobilenet_v3(mobilenet_v3.SMALL, 1024), Columns(18.8, 13.5, 7.2, 6.1, 155, 46)),
    "mnasnet1_0": (_mnasnet, Columns(64.8, 44.4, 22.6, 22.6, 150, 53)),
    "shufflenet_v2_x1_0": (_shufflenet_v2, Columns(29.0, 19.8, 15.3, 8.7, 183, 58)),
    "efficientnet_b0": (_efficientnet_b0, Columns(94.0, 68.5, 36.9, 27.7, 238, 67)),
    "densenet121": (_densenet121, Columns(214.6, None, 89.5, 47.5, 427, 125)),
    "resnet50": (_resnet50, Columns(162.0, 101.0, 56.8, 56.8, 174, 56)),
}
ALLOWED = 1.05  # over layer+


def op_list(name: str) -> list[Op]:
    return NETS[name][0]()


def megabytes(ops: list[Op]) -> float:
    return sum(op.read + op.written for op in ops) / 1e6


def table() -> str:
    lines = ["| network | eager MB | compile | layer | layer+ | ours | over layer+ | launches eager | layer+ | ours |",
             "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, (_, other) in NETS.items():
        ops = op_list(name)
        moved = megabytes(ops)
        over = moved / other.layer_plus
        compiled = "-" if other.compile is None else f"{other.compile:.1f}"
        lines.append(
            f"| {name} | {other.eager:.1f} | {compiled} | {other.layer:.1f} | {other.layer_plus:.1f} | {moved:.1f} | "
            f"{100 * over - 100:+.1f} %{'' if over <= ALLOWED else ' (missed)'} | {other.eager_launches} | "
            f"{other.layer_plus_launches} | {len(ops)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    section_main("bytes", table, __doc__)
