# SPDX-License-Identifier: Apache-2.0
"""conv_bn_act: each mistake is an error that names the argument, what is wanted and what was given."""

import math

import pytest
import torch

from fastcnn.ops import conv_bn_act

X, WEIGHT, ONES = torch.zeros(2, 8, 6, 6), torch.zeros(12, 8, 1, 1), torch.ones(12)
ERRORS = {
    "ndim": (ValueError, "x must have 4 dimensions", (X[0], WEIGHT), {}),
    "weight ndim": (ValueError, "weight must have 4 dimensions", (X, WEIGHT[0]), {}),
    "not a tensor": (TypeError, "x must be a Tensor, got list", ([1.0], WEIGHT), {}),
    "list among modules' arguments": (
        TypeError,
        "bias must be a Tensor, got list",
        (X, WEIGHT),
        {"bias": [1.0], "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)},
    ),
    "eps text": (TypeError, "eps must be a number, got str", (X, WEIGHT), {"eps": "small"}),
    "integers": (TypeError, "x must be float32, float64, float16 or bfloat16, got int64", (X.long(), WEIGHT), {}),
    "dtype": (TypeError, "weight must have the dtype of x, float32, got float64", (X, WEIGHT.double()), {}),
    "device": (ValueError, "weight must be on the device of x, cpu, got meta", (X, WEIGHT.to("meta")), {}),
    "vector dtype": (
        TypeError,
        "running_var must have the dtype of x, float32",
        (X, WEIGHT, None, None, ONES, ONES.double()),
        {},
    ),
    "weight shape": (
        ValueError,
        r"weight must be \[O, 4, kH, kW\] for x with C = 8 and groups = 2",
        (X, WEIGHT),
        {"groups": 2},
    ),
    "groups zero": (ValueError, "groups must be positive and divide", (X, WEIGHT), {"groups": 0}),
    "groups": (ValueError, "groups must be positive and divide", (X, WEIGHT), {"groups": 3}),
    "bias": (ValueError, r"bias must be \[12\]", (X, WEIGHT), {"bias": ONES[:5]}),
    "bn_weight": (ValueError, r"bn_weight must be \[12\]", (X, WEIGHT, ONES[:1], ONES, ONES, ONES), {}),
    "no statistics": (ValueError, "running_mean and running_var must be given", (X, WEIGHT, ONES, ONES), {}),
    "half statistics": (ValueError, "must be given together", (X, WEIGHT, ONES, ONES, ONES, None), {}),
    "momentum": (
        ValueError,
        "momentum must be between 0 and 1, got 1.5",
        (X, WEIGHT),
        {"training": True, "momentum": 1.5},
    ),
    "eps": (ValueError, "eps must be finite and not negative, got -1", (X, WEIGHT), {"eps": -1.0}),
    "eps nan": (ValueError, "eps must be finite", (X, WEIGHT), {"eps": math.nan}),
    "residual": (ValueError, r"residual must be \[2, 12, 6, 6\]", (X, WEIGHT), {"residual": torch.zeros(2, 12, 6, 1)}),
    "residual dtype": (
        TypeError,
        "residual must have the dtype of x",
        (X, WEIGHT),
        {"residual": torch.zeros(2, 12, 6, 6).half()},
    ),
    "kernel": (ValueError, "weight must fit the padded input", (X, torch.zeros(12, 8, 7, 7)), {}),
    "stride": (ValueError, "stride must be at least 1", (X, WEIGHT), {"stride": 0}),
    "dilation": (ValueError, "dilation must be at least 1", (X, WEIGHT), {"dilation": (1, -1)}),
    "padding": (ValueError, "padding must be at least 0", (X, WEIGHT), {"padding": -2}),
    "padding text": (ValueError, "padding must be numbers, 'same' or 'valid'", (X, WEIGHT), {"padding": "full"}),
    "activation": (ValueError, "activation must be one of identity, relu", (X, WEIGHT), {"activation": "gelu"}),
    "one value": (
        ValueError,
        "training needs more than 1 value per channel",
        (X[:1, :, :1, :1], WEIGHT),
        {"training": True},
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_argument(name):
    kind, message, arguments, more = ERRORS[name]
    with pytest.raises(kind, match=f"^conv_bn_act: .*{message}"):
        conv_bn_act(*arguments, **more)
