# SPDX-License-Identifier: Apache-2.0
"""Adversarial inputs 1 to 20: numbers, shapes, dtypes, devices and layouts that no kernel may meet."""

from __future__ import annotations

import pytest
import torch

from fastcnn import ops
from fastcnn.testing import assert_close_fp64
from tests.cross.adversarial import (
    CONVS,
    DENSE,
    DEPTHWISE,
    NAMED,
    OF_A_MAP,
    SE,
    VECTOR,
    Row,
    X,
    both,
    conv,
    raises,
    right,
)


def huge_but_legal() -> None:
    """Stride and dilation up to 2^31 - 1 are legal where they reach nothing."""
    for op, weight in CONVS:
        y = conv(op, weight=weight, stride=2**31 - 1)
        assert_close_fp64(y, conv(op, weight=weight).double()[:, :, :1, :1], reduction=36, magnitude=50.0)
        assert torch.equal(
            conv(op, weight=weight[:, :, :1, :1], dilation=2**31 - 1), conv(op, weight=weight[:, :, :1, :1])
        )


def padding_beyond_memory() -> None:
    for op, weight in CONVS:
        for padding in (2**20, 2**31 - 1):
            with pytest.raises((RuntimeError, MemoryError, ValueError)):
                conv(op, weight=weight, padding=padding)


def no_pixels_or_channels() -> None:
    """An empty picture or no channel at all: the right shape or a named error, never a division by zero."""
    calls = {
        "depthwise_conv2d": [
            lambda: conv("depthwise_conv2d", X[:, :, :0], padding=2),
            lambda: conv("depthwise_conv2d", X[:, :0], DEPTHWISE[:0]),
        ],
        "conv_bn_act": [
            lambda: conv("conv_bn_act", X[:, :, :0], padding=2),
            lambda: conv("conv_bn_act", X[:, :0], DENSE[:, :0]),
            lambda: conv("conv_bn_act", X, DENSE[:0]),
        ],
        "channel_shuffle": [lambda: ops.channel_shuffle(X[:, :0], 2)],
        "batch_norm_act": [lambda: ops.batch_norm_act(X[:, :0], VECTOR[:0], VECTOR[:0])],
    }
    shapes = {"depthwise_conv2d": [(1, 4, 2, 8), ()], "conv_bn_act": [(1, 8, 2, 8), (1, 8, 4, 4), (1, 0, 4, 4)]}
    for op, functions in calls.items():
        for i, function in enumerate(functions):
            try:
                y = function()
            except NAMED as error:
                assert str(error).startswith(f"{op}: ")
            else:
                assert tuple(y.shape) == shapes.get(op, [(1, 0, 6, 6)])[i]
                assert not y.any()


def mixed_devices() -> list[Row]:
    meta = torch.device("meta")
    calls = {
        "depthwise_conv2d weight": lambda: conv("depthwise_conv2d", X, DEPTHWISE.to(meta)),
        "depthwise_conv2d bias": lambda: conv("depthwise_conv2d", bias=VECTOR.to(meta)),
        "conv_bn_act weight": lambda: conv("conv_bn_act", X, DENSE.to(meta)),
        "conv_bn_act running_mean": lambda: conv(
            "conv_bn_act", X, DEPTHWISE, groups=4, running_mean=VECTOR.to(meta), running_var=VECTOR
        ),
        "conv_bn_act residual": lambda: conv("conv_bn_act", residual=torch.ones(1, 8, 4, 4, device=meta)),
        "batch_norm_act running_var": lambda: ops.batch_norm_act(X, VECTOR, VECTOR.to(meta)),
        "se_scale w2": lambda: ops.se_scale(X, SE[0], SE[1], SE[2].to(meta), SE[3]),
    }
    words = "must be on the device of x, cpu, got meta"
    return [
        raises(19, f"{name} on meta", call, "^{}: {} {}".format(*name.split(), words)) for name, call in calls.items()
    ]


def mixed_devices_at_the_dispatcher() -> None:
    """torch's own conv2d returns uninitialised memory here. Ours is an error, whatever its words, or a meta tensor."""
    meta = torch.ones(8, 4, 1, 1, device="meta")
    calls = [
        lambda: torch.ops.fastcnn.conv_bn_act(X, meta, *[None] * 6, [1, 1], [0] * 4, [1, 1], 1, 1e-5, "relu"),
        lambda: torch.ops.fastcnn.depthwise_conv2d(
            X, DEPTHWISE.to("meta"), None, None, [1, 1], [0] * 4, [1, 1], "relu"
        ),
        lambda: torch.ops.fastcnn.activation_backward(X, X.to("meta"), "relu"),
        lambda: torch.ops.fastcnn.se_scale(X, SE[0].to("meta"), *SE[1:], "relu", "sigmoid")[0],
    ]
    for i, call in enumerate(calls):
        try:
            result = call()
        except (RuntimeError, NotImplementedError):
            continue
        assert result.device.type == "meta", f"call {i} made something of a tensor without memory"


WRONG = {
    "int8": X.to(torch.int8),
    "complex": X.to(torch.complex64),
    "bool": X > 0,
    "float8": X.to(torch.float8_e4m3fn),
    "sparse": X.to_sparse(),
    "mkldnn": X.to_mkldnn(),
    "quantized": torch.quantize_per_tensor(X, 0.1, 0, torch.quint8),
    "nested": torch.nested.nested_tensor([X[0], X[0]]),
}


def wrong_kinds() -> list[Row]:
    return [
        raises(
            18 if kind in ("int8", "complex", "bool", "float8") else 20,
            f"{op} of {kind}",
            lambda call=call, x=x: call(x),
            f"^{op}: x1? must be",
        )
        for op, call in OF_A_MAP.items()
        for kind, x in WRONG.items()
    ]


ROWS: list[Row] = [
    *both(1, "stride 0", "stride must be at least 1", stride=0),
    *both(1, "stride (1, 0)", "stride must be at least 1", stride=(1, 0)),
    *both(2, "stride -1", "stride must be at least 1", stride=-1),
    *both(3, "stride 2^63 - 1", r"stride must be at least 1 and below 2\^31", stride=2**63 - 1),
    right(3, "stride and dilation 2^31 - 1", huge_but_legal),
    *both(4, "dilation 0", "dilation must be at least 1", dilation=0),
    *both(5, "dilation 2^31 - 1", "weight must fit the padded input", dilation=2**31 - 1),
    *both(5, "dilation 2^62", r"dilation must be .* below 2\^31", dilation=2**62),
    *both(6, "padding -1", "padding must be", padding=-1),
    *both(6, "padding (1, 1, -1, 1)", "padding must be", padding=(1, 1, -1, 1)),
    *both(6, "padding (-1, -1, -1, -1)", "padding must be", padding=(-1, -1, -1, -1)),
    *both(6, "padding 'full'", "padding must be", padding="full"),
    *both(7, "padding 2^31", r"padding must be .* below 2\^31", padding=2**31),
    *both(7, "padding 2^62", r"padding must be .* below 2\^31", padding=2**62),
    right(7, "padding that no memory holds", padding_beyond_memory),
    *(
        raises(8, f"conv_bn_act groups {g}", lambda g=g: conv("conv_bn_act", groups=g), "^conv_bn_act: groups must be")
        for g in (0, -1)
    ),
    *(
        raises(
            8, f"channel_shuffle groups {g}", lambda g=g: ops.channel_shuffle(X, g), "^channel_shuffle: groups must be"
        )
        for g in (0, -2)
    ),
    raises(9, "conv_bn_act C % groups", lambda: conv("conv_bn_act", groups=3), "^conv_bn_act: groups must .*4.* got 3"),
    raises(
        9,
        "channel_shuffle C % groups",
        lambda: ops.channel_shuffle(X, 3),
        "^channel_shuffle: groups must .*C = 4, got 3",
    ),
    raises(
        9,
        "depthwise outputs",
        lambda: ops.depthwise_conv2d(X, torch.ones(6, 1, 3, 3)),
        r"^depthwise_conv2d: weight must be \[C \* m",
    ),
    *both(10, "kernel 7 on 6", "weight must fit the padded input", weight=None, dilation=3),
    *(
        raises(11, f"{op} kH 0", lambda op=op, w=w: conv(op, weight=w[:, :, :0]), f"^{op}: weight must have a kernel")
        for op, w in CONVS
    ),
    right(12, "no channels; 14: no pixels", no_pixels_or_channels),
    raises(
        14,
        "global_avg_pool H 0",
        lambda: ops.global_avg_pool(X[:, :, :0]),
        "^global_avg_pool: x must have at least one pixel",
    ),
    raises(14, "se_scale W 0", lambda: ops.se_scale(X[..., :0], *SE), "^se_scale: x must have at least one pixel"),
    *both(15, "bias length", "bias must be", bias=torch.ones(5)),
    raises(
        15,
        "se_scale b1",
        lambda: ops.se_scale(X, SE[0], VECTOR, SE[2], SE[3]),
        r"^se_scale: b1 must be \[R = 2\], got \[4\]",
    ),
    *both(16, "x of 2 dimensions", "x must have 4 dimensions", x=torch.ones(3, 3)),
    *both(16, "weight of 3 dimensions", "weight must", weight=torch.ones(4, 1, 3)),
    raises(
        16,
        "conv_bn_act weight shape",
        lambda: conv("conv_bn_act", X, torch.ones(8, 3, 3, 3)),
        r"^conv_bn_act: weight must be \[O, 4",
    ),
    raises(16, "residual shape", lambda: conv("conv_bn_act", residual=X), "^conv_bn_act: residual must be"),
    *(
        raises(
            17, f"{op} half weight", lambda op=op, w=w: conv(op, X, w.half()), f"^{op}: weight must have the dtype of x"
        )
        for op, w in CONVS
    ),
    *both(17, "double bias", "bias must have the dtype of x", bias=torch.ones(4).double()),
    *wrong_kinds(),
    *mixed_devices(),
    right(19, "one device missing, below the page", mixed_devices_at_the_dispatcher),
]
