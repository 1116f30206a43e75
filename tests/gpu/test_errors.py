# SPDX-License-Identifier: Apache-2.0
"""Bad input on the GPU gives the words that the CPU gives; misaligned input gives the same numbers as aligned."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastcnn import ops
from fastcnn.testing import arrange
from tests.gpu.tools import DEVICE, here, moved


def ones(device: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, device=device, dtype=dtype)


def _se(device: str, **changes: Tensor) -> Tensor:
    given = {"x": (1, 4, 2, 2), "w1": (2, 4), "b1": (2,), "w2": (4, 2), "b2": (4,)}
    return ops.se_scale(**{name: ones(device, *shape) for name, shape in given.items()} | changes)


BAD: dict[str, Callable[[str], object]] = {
    "dtype-activation": lambda d: ops.relu(ones(d, 3, dtype=torch.int32)),
    "sparse": lambda d: ops.hardswish(ones(d, 2, 2).to_sparse()),
    "dtype-depthwise": lambda d: ops.depthwise_conv2d(ones(d, 1, 4, 6, 6), ones(d, 4, 1, 3, 3).double()),
    "dtype-bias": lambda d: ops.depthwise_conv2d(ones(d, 1, 4, 6, 6), ones(d, 4, 1, 3, 3), ones(d, 4).double()),
    "dtype-dense": lambda d: ops.conv_bn_act(ones(d, 1, 4, 6, 6), ones(d, 8, 4, 1, 1).half()),
    "dtype-concat": lambda d: ops.channel_shuffle_concat(ones(d, 1, 2, 2, 2), ones(d, 1, 2, 2, 2).half()),
    "dtype-se": lambda d: _se(d, w2=ones(d, 4, 2).double()),
    "shape-depthwise": lambda d: ops.depthwise_conv2d(ones(d, 1, 4, 6, 6), ones(d, 6, 1, 3, 3)),
    "shape-residual": lambda d: ops.depthwise_conv2d(
        ones(d, 1, 4, 6, 6), ones(d, 4, 1, 3, 3), residual=ones(d, 1, 4, 6, 6)
    ),
    "shape-dense": lambda d: ops.conv_bn_act(ones(d, 1, 4, 6, 6), ones(d, 8, 3, 1, 1)),
    "shape-gate": lambda d: ops.pointwise_conv2d(ones(d, 2, 4, 6, 6), ones(d, 8, 4, 1, 1), gate=ones(d, 4)),
    "shape-vector": lambda d: ops.conv_bn_act(
        ones(d, 1, 4, 6, 6), ones(d, 8, 4, 1, 1), None, None, ones(d, 7), ones(d, 8)
    ),
    "shape-batch-norm": lambda d: ops.batch_norm_act(ones(d, 2, 4, 3, 3), ones(d, 5), ones(d, 4)),
    "window": lambda d: ops.depthwise_conv2d(ones(d, 1, 4, 6, 6), ones(d, 4, 1, 7, 7)),
    "rank": lambda d: ops.global_avg_pool(ones(d, 3)),
    "no-pixels": lambda d: ops.global_avg_pool(ones(d, 1, 3, 0, 2)),
    "pool-padding": lambda d: ops.max_pool2d(ones(d, 1, 3, 4, 4), 2, 2, 2),
    "groups": lambda d: ops.channel_shuffle(ones(d, 1, 4, 2, 2), 3),
    "activation": lambda d: ops.depthwise_conv2d(ones(d, 1, 4, 6, 6), ones(d, 4, 1, 3, 3), activation="gelu"),
}
# a tensor of another device: (device of x, device of the other)
MIXED: dict[str, Callable[[str, str], object]] = {
    "weight": lambda d, o: ops.depthwise_conv2d(ones(d, 1, 4, 6, 6), ones(o, 4, 1, 3, 3)),
    "bias": lambda d, o: ops.depthwise_conv2d(ones(d, 1, 4, 6, 6), ones(d, 4, 1, 3, 3), ones(o, 4)),
    "dense": lambda d, o: ops.conv_bn_act(ones(d, 1, 4, 6, 6), ones(o, 8, 4, 1, 1)),
    "gate": lambda d, o: ops.pointwise_conv2d(ones(d, 1, 4, 6, 6), ones(d, 8, 4, 1, 1), gate=ones(o, 1, 4)),
    "running_var": lambda d, o: ops.conv_bn_act(
        ones(d, 1, 4, 6, 6), ones(d, 8, 4, 1, 1), None, None, ones(d, 8), ones(o, 8)
    ),
    "concat": lambda d, o: ops.channel_shuffle_concat(ones(d, 1, 2, 2, 2), ones(o, 1, 2, 2, 2)),
    "se": lambda d, o: _se(d, b1=ones(o, 2)),
    "batch-norm": lambda d, o: ops.batch_norm_act(ones(d, 2, 4, 3, 3), ones(d, 4), ones(o, 4)),
}
# the ops themselves, below the checks of the page: what the libraries say
BELOW: dict[str, Callable[[str], object]] = {
    "hardswish_backward": lambda d: torch.ops.fastcnn.hardswish_backward(ones(d, 2), ones(d, 3)),
    "depthwise_conv2d-bias": lambda d: torch.ops.fastcnn.depthwise_conv2d(
        ones(d, 1, 4, 6, 6), ones(d, 4, 1, 3, 3), ones(d, 5), None, [1, 1], [0] * 4, [1, 1], "relu"
    ),
    "depthwise_conv2d-kind": lambda d: torch.ops.fastcnn.depthwise_conv2d(
        ones(d, 1, 4, 6, 6), ones(d, 4, 1, 3, 3), None, None, [1, 1], [0] * 4, [1, 1], "gelu"
    ),
    "max_pool2d-padding": lambda d: torch.ops.fastcnn.max_pool2d(ones(d, 1, 3, 4, 4), [2, 2], [2, 2], [2, 2], False),
    "hardswish-dtype": lambda d: torch.ops.fastcnn.hardswish(ones(d, 2, dtype=torch.int32)),
}


def words(call: Callable[[], object]) -> tuple[type, str]:
    with pytest.raises(Exception) as caught:
        call()
    return caught.type, str(caught.value).split("\nException raised from")[0]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_argument_has_the_words_of_the_cpu(name):
    kind, text = words(lambda: BAD[name](DEVICE))
    assert (kind, text.replace("cuda:0", "cpu")) == words(lambda: BAD[name]("cpu"))


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("devices", [("cuda", "cpu"), ("cpu", "cuda")], ids=str)
def test_tensors_of_two_devices_have_the_words_of_the_cpu(name, devices):
    kind, text = words(lambda: MIXED[name](*devices))
    wanted_kind, wanted = words(lambda: MIXED[name]("cpu", "meta"))
    x, other = (torch.empty(0, device=device).device for device in devices)
    assert (kind, text) == (wanted_kind, wanted.replace("got meta", f"got {other}").replace("of x, cpu", f"of x, {x}"))


@pytest.mark.parametrize("name", BELOW)
def test_the_compiled_libraries_say_the_same(name):
    op = name.split("-")[0]
    if "cuda" not in here(op):
        pytest.skip(f"no compiled kernel of {op}")
    (kind, text), (wanted_kind, wanted) = (words(lambda: BELOW[name](device)) for device in (DEVICE, "cpu"))
    # what stands before is the line of the source
    assert (kind, text.partition("fastcnn: ")[1:]) == (wanted_kind, wanted.partition("fastcnn: ")[1:])


@pytest.mark.parametrize("layout", ["sliced", "transposed", "offset"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_strided_and_misaligned_tensors_give_the_numbers_of_dense_ones(layout, dtype):
    x, weight = torch.randn(2, 16, 9, 8).to(dtype), torch.randn(16, 1, 3, 3).to(dtype)
    (x, odd_x), (weight, odd_weight) = ([moved(t), moved(arrange(t, layout))] for t in (x, weight))
    calls = {
        "hardswish": lambda x, w: ops.hardswish(x), "depthwise": lambda x, w: ops.depthwise_conv2d(x, w, padding=1),
        "pointwise": lambda x, w: ops.conv_bn_act(x, w.transpose(0, 1)[:, :, :1, :1]),
        "shuffle": lambda x, w: ops.channel_shuffle(x, 4), "pool": lambda x, w: ops.global_avg_pool(x),
        "max-pool": lambda x, w: ops.max_pool2d(x, 3, 2, 1),
    }  # fmt: skip
    for name, call in calls.items():
        wanted = call(x, weight)
        for given in ((odd_x, weight), (x, odd_weight), (odd_x, odd_weight)):
            torch.testing.assert_close(call(*given), wanted, rtol=1e-3, atol=1e-3, msg=lambda t: f"{name}: {t}")
