# SPDX-License-Identifier: Apache-2.0
"""portable=True: every op of ours in ATen's, the same values."""

import pytest
import torch
from torch import Tensor, nn

import fastcnn
from fastcnn import ops
from fastcnn._library import SCHEMAS
from fastcnn.accelerate.portable import LOWER


class Each(nn.Module):
    """Calls of every op, with every kind of argument."""

    def __init__(self) -> None:
        super().__init__()
        shapes = {
            "w": (6, 4, 3, 2),
            "d": (8, 1, 3, 3),
            "b": (6,),
            "v": (8,),
            "w1": (3, 8),
            "b1": (3,),
            "w2": (8, 3),
            "s": (6, 4, 3, 3),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.rand(shape, generator=torch.Generator().manual_seed(len(name))) + 0.1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        eight = ops.channel_shuffle_concat(x, x * 2)
        y = ops.depthwise_conv2d(eight, self.d, self.v, stride=2, padding=(0, 1, 1, 0), activation="relu6")
        scaled = ops.se_scale(y, self.w1, self.b1, self.w2, self.v, "silu", "hardsigmoid")
        return (
            ops.conv_bn_act(x, self.w, bias=self.b, stride=(1, 2), padding=(1, 0), activation="hardswish"),
            ops.conv_bn_act(x, self.s, padding="same", stride=2, activation="sigmoid"),
            ops.batch_norm_act(scaled, self.v, self.v, self.v, self.v, residual=y, activation="relu"),
            ops.channel_shuffle(eight, 4),
            ops.max_pool2d(x, 3, 2, 1, ceil_mode=True),
            ops.global_avg_pool(x),
            ops.hardswish(x),
            ops.activation(x, "hardsigmoid"),
            *ops.depthwise_se_gate(eight, self.d, self.v, self.w1, self.b1, self.w2, self.v, 2, 1, squeeze="silu"),
        )


@pytest.mark.parametrize("batch", [1, 3])
def test_every_op_in_atens(batch: int) -> None:
    net = Each().eval()
    fast = fastcnn.accelerate(net, torch.randn(2, 4, 9, 8), portable=True)
    assert {n.target.namespace for n in fast.program.graph.nodes if hasattr(n.target, "namespace")} == {"aten"}
    x = torch.randn(batch, 4, 9, 8)
    for got, wanted in zip(fast(x), net(x), strict=True):
        torch.testing.assert_close(got, wanted)


def test_no_op_is_forgotten() -> None:
    inference = {name for name in SCHEMAS if not name.endswith(("_backward", "_train"))}
    assert inference <= LOWER.keys()
