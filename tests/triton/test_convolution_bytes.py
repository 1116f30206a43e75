# SPDX-License-Identifier: Apache-2.0
"""The convolutions' bytes against those of their headers, counted in the interpreter: a model.

The tiles are those that the launchers chose; that they are the header's is checked too.
"""

import itertools
import math

import torch

from .interpreter import needs_triton, run_checks
from .test_bytes import FORMATS, HALF, _at_most, _launch, _map, _once
from .traffic import counted

EMPTY = (None,) * 5


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _product(x, weight, stride=1, **options):
    padding = (weight.shape[2] // 2,) * 4
    residual = options.pop("residual", None)
    with counted() as traffic:
        y = _launch(
            "conv_bn_act", x, weight, *EMPTY, residual, (stride, stride), padding, (1, 1), 1, 0.0, "relu", **options
        )
    return traffic["conv_bn_act_forward_kernel"], y


def check_pointwise():
    for last, (C, O) in itertools.product(FORMATS, ((24, 64), (40, 160), (67, 7))):
        x, weight = _map(2, C, 10, 9, last), _map(O, C, 1, 1, True)
        launch, y = _product(x, weight, residual=_map(2, O, 10, 9, last))
        a = launch.arguments
        assert 64 <= a["ROWS"] <= 128 and min(O, 64) <= a["COLUMNS"] <= 64, "the tile of the header"
        assert launch["x"].loaded == _ceil(O, a["COLUMNS"]) * x.nbytes and launch["x"].loaded_once == x.nbytes
        assert launch["weight"].loaded == _ceil(180, a["ROWS"]) * weight.nbytes
        _once(launch, "residual", "y")


def check_implicit_gemm():
    for last, (k, stride) in itertools.product(FORMATS, ((3, 1), (3, 2), (5, 1))):
        x, weight = _map(1, 16, 12, 14, last), _map(24, 16, k, k, True)
        launch, y = _product(x, weight, stride)
        _at_most(launch, "x", k * k / stride**2)
        assert launch["x"].loaded_once == x.nbytes
        pixels = y.shape[2] * y.shape[3]
        assert launch["weight"].loaded == _ceil(pixels, launch.arguments["ROWS"]) * weight.nbytes
        _once(launch, "", "y")


def check_prologues_and_slices():
    gate, vector = torch.rand(2, 24), torch.rand(24)
    for last in FORMATS:
        whole = _map(2, 80, 7, 6, last)
        x, out, weight = whole[:, :24], _map(2, 96, 7, 6, last)[:, 32:64], _map(32, 24, 1, 1, True)
        launch, _ = _product(x, weight, out=out, gate=gate)
        moved = x.numel() * HALF.itemsize
        assert launch["x"].loaded == launch["x"].loaded_once == moved
        assert launch["gate"].loaded == 2 * moved and launch["gate"].left_l1 <= 0.5 * moved  # four bytes each
        assert launch["y"].stored == launch["y"].stored_once == out.numel() * HALF.itemsize
        launch, _ = _product(x, weight, out=out, pre_scale=vector, pre_shift=vector)
        for name in ("pre_scale", "pre_shift"):
            assert launch[name].loaded <= 2 * math.prod(launch.grid) * vector.nbytes  # shared: both are one tensor


def check_gradients_of_a_product():
    for last, k in itertools.product(FORMATS, (1, 3)):
        x, grad, weight = _map(2, 40, 12, 10, last), _map(2, 72, 12, 10, last), _map(72, 40, k, k, True)
        with counted() as traffic:
            _launch(
                "conv_bn_act_backward", grad, x, weight, *(None,) * 7, (1, 1), (k // 2,) * 4, (1, 1), 1, False,
                "identity", [True, True, False, False, False, False],
            )  # fmt: skip
        for_x = traffic["conv_bn_act_forward_kernel"]
        _at_most(for_x, "x", k * k * _ceil(40, for_x.arguments["COLUMNS"]))
        _once(for_x, "", "y")
        for_weight = traffic["conv_bn_act_backward_weight_kernel"]
        _at_most(for_weight, "grad", k * k * _ceil(40, for_weight.arguments["IN"]))
        _at_most(for_weight, "x", k * k * _ceil(72, for_weight.arguments["OUT"]))
        _once(for_weight, "", "parts")
        _once(traffic["sum_parts_kernel"], "parts", "y")


def check_depthwise():
    for last, (k, stride) in itertools.product(FORMATS, ((3, 1), (3, 2), (5, 2))):
        C = 64
        x, weight = _map(1, C, 12, 40, last), _map(C, 1, k, k, True)
        geometry = (stride, stride), (k // 2,) * 4, (1, 1)
        residual = _map(1, C, 12 // stride, 40 // stride, last)
        with counted() as traffic:
            y = _launch("depthwise_conv2d", x, weight, torch.rand(C), residual, *geometry, "relu")
        launch = traffic["depthwise_conv2d_forward_kernel"]
        _at_most(launch, "x", k * k / stride**2)
        if last:
            _at_most(launch, "x", k / stride * (1 + (k - 1) / launch.arguments["PIXELS"]), "left_l1")
        _once(launch, "residual", "y")
        tiles = _ceil(y.shape[2] * y.shape[3], launch.arguments["PIXELS"])
        assert launch["weight"].loaded == tiles * weight.nbytes


def check_gradients_of_depthwise():
    for last, stride in ((True, 1), (False, 2)):
        C, k = 16, 3
        x, residual = _map(1, C, 12, 20, last), _map(1, C, 12 // stride, 20 // stride, last)
        geometry, weight = ((stride, stride), (1,) * 4, (1, 1)), _map(C, 1, k, k, True)
        grad = torch.randn_like(residual)
        with counted() as traffic:
            vectors = (weight, torch.rand(C), residual)
            _launch("depthwise_conv2d_backward", grad, x, *vectors, *geometry, "silu", [True] * 4)
        again, for_x = (each for each in traffic if each.kernel == "depthwise_conv2d_forward_kernel")
        _once(again, "grad residual", "y")
        _at_most(for_x, "x", k * k)
        _once(for_x, "", "y")
        for_weight = traffic["depthwise_conv2d_backward_weight_kernel"]
        _at_most(for_weight, "grad", _ceil(k * k, for_weight.arguments["TAPS"]))
        _at_most(for_weight, "x", k * k / stride**2)
        _once(for_weight, "", "parts")


@needs_triton
def test_in_the_interpreter():
    run_checks(__name__)
