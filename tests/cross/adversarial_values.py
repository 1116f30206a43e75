# SPDX-License-Identifier: Apache-2.0
"""Adversarial inputs 13 and 21 to 33: memory layouts, values and batch norms that must come out right."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from fastcnn import ops
from fastcnn.nn import ConvBNAct, HardSwish
from fastcnn.testing import arrange, assert_close_fp64, assert_format
from tests.cross import exact
from tests.cross.adversarial import (
    CONVS,
    DEPTHWISE,
    POINTWISE,
    SE,
    VECTOR,
    Row,
    X,
    absent,
    conv,
    raises,
    right,
    same_as_exact,
)


def empty_batch() -> None:
    x = X[:0].clone().requires_grad_()
    results = [conv(op, x, weight) for op, weight in CONVS]
    results += [
        ops.hardswish(x),
        ops.channel_shuffle(x, 2),
        ops.se_scale(x, *SE),
        ops.global_avg_pool(x),
        ops.batch_norm_act(x, VECTOR, VECTOR),
    ]
    shapes = [
        (0, 4, 4, 4),
        (0, 8, 4, 4),
        (0, 8, 6, 6),
        (0, 4, 6, 6),
        (0, 4, 6, 6),
        (0, 4, 6, 6),
        (0, 4, 1, 1),
        (0, 4, 6, 6),
    ]
    assert [tuple(y.shape) for y in results] == shapes
    sum(y.sum() for y in results).backward()
    assert x.grad.shape == x.shape
    for op, weight in CONVS:
        weight = weight.clone().requires_grad_()
        conv(op, X[:0], weight).sum().backward()
        assert not weight.grad.any(), f"{op} {list(weight.shape)}: the gradient of nothing"


def in_every_layout(*layouts: str) -> Callable[[], None]:
    def check() -> None:
        for op, weight in CONVS:
            wanted = conv(op, X, weight, padding=1)
            for layout in layouts:
                y = conv(op, arrange(X, layout), arrange(weight, layout), padding=1)
                assert_close_fp64(
                    y, wanted.double(), reduction=2 * weight[0].numel(), magnitude=20.0, label=f"{op} {layout}"
                )

    return check


def ambiguous_formats() -> None:
    for shape in ((2, 1, 5, 4), (3, 8, 1, 1), (1, 1, 1, 1), (2, 1, 1, 7)):
        for layout in ("nchw", "channels_last"):
            x = arrange(torch.randn(shape), layout)
            weight = torch.randn(shape[1], 1, 3, 3)
            y = ops.depthwise_conv2d(x, weight, padding=1)
            assert_close_fp64(y, exact.convolution(x.double(), weight.double(), None, 1, 1, 1, shape[1]), reduction=9)
            assert_format(y, x)
            assert_format(ops.conv_bn_act(x, weight, padding=1, groups=shape[1]), x)


def expanded() -> None:
    x = torch.randn(1, 1, 6, 6).expand(3, 4, 6, 6)
    for op, weight in CONVS:
        same_as_exact(op, x, weight)
    assert torch.equal(ops.channel_shuffle(x, 2), x) and torch.equal(ops.hardswish(x), ops.hardswish(x.contiguous()))


def transposed_and_overlapping() -> None:
    base = torch.randn(200)
    for x in (X.transpose(2, 3), base.as_strided((1, 4, 6, 6), (1, 9, 5, 1)), X[:, :, ::2, 1::2], X.flip(3)):
        for op, weight in CONVS:
            same_as_exact(op, x, weight, padding=1)


def beyond_2_to_31_elements(folder) -> None:
    """A stride above 2^31, in a sparse file; and shapes above 2^31 elements, on meta."""
    storage = torch.from_file(str(folder / "sparse"), shared=True, size=2**31 + 1024, dtype=torch.float16)
    x = storage.as_strided((2, 4, 6, 6), (2**31 + 8, 36, 6, 1))
    x.copy_(torch.randn(2, 4, 6, 6))
    for op, weight in CONVS:
        assert torch.equal(conv(op, x, weight.half()), conv(op, x.clone(), weight.half()))
    assert torch.equal(ops.hardswish(x), ops.hardswish(x.clone())) and torch.equal(
        ops.channel_shuffle(x, 2), ops.channel_shuffle(x.clone(), 2)
    )
    wide = torch.empty(2**16, 4, 256, 256, device="meta")
    assert conv("depthwise_conv2d", wide, DEPTHWISE.to("meta"), stride=2).shape == (2**16, 4, 127, 127)
    assert conv("conv_bn_act", wide, POINTWISE.to("meta")).numel() == 2**35


def special_values() -> None:
    """NaN, Inf and -Inf under each tap, and denormals; a product of 0 and Inf is NaN, as in the sum written out."""
    for value in (math.nan, math.inf, -math.inf, 1e-40, -1e-40, -0.0):
        for tap in range(9):
            x = X.clone()
            x[0, 1, 1 + tap // 3, 1 + tap % 3] = value
            for op, weight in CONVS:
                same_as_exact(op, x, weight)
    x = torch.zeros(1, 4, 6, 6)
    x[0, 0, 2, 2] = 1e-40
    assert conv("depthwise_conv2d", x, torch.ones(4, 1, 3, 3)).max().item() == x.max().item()
    assert math.copysign(1, ops.hardswish(torch.tensor([-3.0])).item()) == -1


def half_sums() -> None:
    """40000 + 40000 - 60000 leaves fp16 on the way but not at the end; 40000 + 40000 ends at Inf."""
    x = torch.full((1, 3, 1, 1), 200.0, dtype=torch.float16)
    weight = torch.tensor(
        [[200.0, 200.0, -300.0], [200.0, 200.0, 0.0], [-200.0, -200.0, 0.0]], dtype=torch.float16
    ).view(3, 3, 1, 1)
    assert ops.conv_bn_act(x, weight).flatten().tolist() == [20000.0, math.inf, -math.inf]
    wide = x[:, :1].expand(1, 1, 1, 3)
    assert ops.depthwise_conv2d(wide, weight[:1].view(1, 1, 1, 3)).item() == 20000.0
    assert (
        ops.global_avg_pool(torch.full((1, 2, 32, 32), 60000.0, dtype=torch.float16)).flatten().tolist()
        == [60000.0] * 2
    )


def constant_channels() -> None:
    """Variance 0, in the batch or running: the result is the bias; eps = 0 divides by zero as written."""
    x = torch.full((2, 4, 3, 3), 5.0)
    mean, var = torch.full((4,), 5.0), torch.zeros(4)
    for training in (False, True):
        y = ops.batch_norm_act(x, mean.clone(), var.clone(), 2 * VECTOR, 3 * VECTOR, training=training)
        wanted = torch.full((2, 4, 3, 3), 3.0, dtype=torch.float64)
        assert_close_fp64(y, wanted, magnitude=5.0 * 2 / 1e-5**0.5)  # 5 and the mean may be scaled before they cancel
    assert ops.batch_norm_act(x, mean, var, eps=0.0).isnan().all()
    assert (
        not ops.batch_norm_act(x + 1, mean, var, eps=0.0).isfinite().any()
    )  # Inf, or Inf - Inf when scaled first, as in torch


def batch_norm_weights() -> None:
    """gamma 0 and negative, no affine, no running statistics: as F.batch_norm, alone and behind a convolution."""
    x, gamma, beta = torch.randn(3, 4, 6, 6), torch.tensor([0.0, -2.0, 1.0, 1e-20]), torch.tensor([1.0, 2.0, 0.0, -0.0])
    mean, var = torch.randn(4), torch.rand(4) + 0.5
    for affine in ((gamma, beta), (None, None), (gamma, None), (None, beta)):
        for training, statistics in ((False, (mean, var)), (True, (mean, var)), (True, (None, None))):
            wanted = exact.batch_norm(
                x.double(),
                mean.double(),
                var.double(),
                *(None if t is None else t.double() for t in affine),
                training,
                1e-5,
            )
            copies = [None if t is None else t.clone() for t in statistics]
            got = ops.batch_norm_act(x, *copies, *affine, training=training)
            assert_close_fp64(got, wanted, reduction=108, magnitude=10.0)
            copies = [None if t is None else t.clone() for t in statistics]
            identity = torch.eye(4).view(4, 4, 1, 1)
            assert_close_fp64(
                ops.conv_bn_act(x, identity, *affine, *copies, training=training), wanted, reduction=108, magnitude=10.0
            )


def module_in_place() -> None:
    x, before = X.clone(), X.clone()
    HardSwish(inplace=True)(x)
    ConvBNAct(4, 8).eval()(x)
    assert torch.equal(x, before)
    leaf = nn.Parameter(X.clone())
    HardSwish(inplace=True)(leaf).sum().backward()  # torch refuses in-place on a leaf; nothing of ours writes
    assert torch.equal(leaf.data, before) and leaf.grad is not None


ROWS: list[Row] = [
    right(13, "empty batch", empty_batch),
    right(21, "stride-0 expanded", expanded),
    right(22, "in place on expanded; 23: on a leaf", module_in_place),
    absent(
        23,
        "in place on a leaf",
        "no op of ours works in place; row 22 shows that HardSwish(inplace=True) does not write",
    ),
    absent(
        24,
        "out= aliasing the input",
        "no op has an out= form; test_opcheck shows that no output shares memory with an input",
    ),
    right(25, "sliced, weights too", in_every_layout("sliced", "transposed")),
    right(25, "transposed, overlapping", transposed_and_overlapping),
    right(26, "channels_last", in_every_layout("channels_last")),
    right(26, "formats that C = 1 or H = W = 1 leave open", ambiguous_formats),
    right(27, "storage not aligned to 16 bytes", in_every_layout("offset")),
    right(28, "more than 2^31 elements or strides", beyond_2_to_31_elements),
    right(29, "NaN, Inf at each tap; 30: denormals, -0.0", special_values),
    absent(30, "denormals, -0.0", "within row 29, and in tests/ops/test_activation.py for every activation"),
    right(31, "sums that leave fp16", half_sums),
    right(32, "variance 0, eps 0", constant_channels),
    raises(
        32, "negative eps", lambda: ops.batch_norm_act(X, VECTOR, VECTOR, eps=-1e-5), "^batch_norm_act: eps must be"
    ),
    raises(
        32,
        "NaN eps",
        lambda: conv("conv_bn_act", X, POINTWISE[:4], running_mean=VECTOR, running_var=VECTOR, eps=math.nan),
        "^conv_bn_act: eps",
    ),
    raises(
        32,
        "wrong length",
        lambda: ops.batch_norm_act(X, torch.ones(3), VECTOR),
        r"^batch_norm_act: running_mean must be \[C = 4\], got \[3\]",
    ),
    raises(
        32,
        "one value in training",
        lambda: ops.batch_norm_act(X[..., :1, :1], VECTOR, VECTOR, training=True),
        "^batch_norm_act: .*more than 1",
    ),
    right(33, "gamma 0, negative, absent; no running statistics", batch_norm_weights),
    raises(
        33,
        "eval without statistics",
        lambda: ops.batch_norm_act(X, None, None),
        "^batch_norm_act: running_mean and running_var must be given",
    ),
]
