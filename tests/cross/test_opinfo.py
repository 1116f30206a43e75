# SPDX-License-Identifier: Apache-2.0
"""PyTorch's own samples of its ops (they ship inside the wheel, nobody here wrote them), run against ours."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fastcnn import ops
from fastcnn.testing import DTYPES, assert_close_fp64

try:
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.opinfo.core import SampleInput
except ImportError as error:  # a private module: another torch may lack it, but never the one that CI runs
    if os.environ.get("CI"):
        raise
    pytest.skip(f"this torch has no OpInfo samples: {error}", allow_module_level=True)

INFOS = {info.name: info for info in op_db if not info.variant_test_name}


def _batched(x: Tensor, weight: Tensor) -> Tensor:
    return x.unsqueeze(0) if x.dim() == 3 and weight.dim() == 4 else x


def depthwise(x: Tensor, weight: Tensor, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
    y = ops.depthwise_conv2d(_batched(x, weight), weight, bias, stride, padding, dilation)
    return y if y.dim() == x.dim() else y.squeeze(0)


def any_conv(x: Tensor, weight: Tensor, bias=None, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
    y = ops.conv_bn_act(
        _batched(x, weight), weight, bias=bias, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    return y if y.dim() == x.dim() else y.squeeze(0)


def batch_norm(x, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5) -> Tensor:
    return ops.batch_norm_act(x, running_mean, running_var, weight, bias, None, training, momentum, eps)


def max_pool(x: Tensor, return_indices: bool = False, **window) -> Tensor:
    return ops.max_pool2d(x, **window)


def _plain_pool(sample: SampleInput) -> bool:
    """Of torch's 1440, those that ours takes, one spelling of the padding each."""
    given = sample.kwargs
    return given["dilation"] == 1 and not given["return_indices"] and isinstance(given["padding"], int)


def ours(name: str) -> Callable:
    """The op of the public page, looked up when called: a missing one fails its own tests only."""
    return lambda x, *arguments, inplace=False: getattr(ops, name)(x, *arguments)


class Target(NamedTuple):
    """One of our ops under torch's name, and the samples it takes: at least so many, lest some get lost in silence."""

    info: str
    call: Callable
    samples: int
    reduction: Callable[[SampleInput], int] = lambda sample: 1
    takes: Callable[[SampleInput], bool] = lambda sample: True

    def inputs(self, dtype: torch.dtype, requires_grad: bool = False) -> Iterator[SampleInput]:
        torch.manual_seed(0)
        for sample in INFOS[self.info].sample_inputs("cpu", dtype, requires_grad=requires_grad):
            if self.takes(sample):
                yield sample


def _is_depthwise(sample: SampleInput) -> bool:
    return sample.args[0].shape[1] == 1 and sample.kwargs.get("groups", 1) == sample.input.shape[-3]


def _products(sample: SampleInput) -> int:
    return sample.args[0][0].numel()


def _has_channels(sample: SampleInput) -> bool:
    return sample.input.dim() >= 2


NAME = "nn.functional."
TARGETS = {
    "depthwise_conv2d": Target(NAME + "conv2d", depthwise, 12, _products, _is_depthwise),
    "conv_bn_act": Target(NAME + "conv2d", any_conv, 30, _products),
    "batch_norm_act": Target(NAME + "batch_norm", batch_norm, 10, lambda s: s.input.shape[1:].numel(), _has_channels),
    "channel_shuffle": Target(NAME + "channel_shuffle", ours("channel_shuffle"), 3),
    "max_pool2d": Target(NAME + "max_pool2d", max_pool, 100, takes=_plain_pool),
    "hardswish": Target(NAME + "hardswish", ours("hardswish"), 4),
    "hardsigmoid": Target(NAME + "hardsigmoid", ours("hardsigmoid"), 3),
    "silu": Target(NAME + "silu", ours("silu"), 3),
    "relu6": Target(NAME + "relu6", ours("relu6"), 3),
    "relu": Target(NAME + "relu", ours("relu"), 3),
    "sigmoid": Target("sigmoid", ours("sigmoid"), 3),
}
targets = pytest.mark.parametrize("name", TARGETS)


def run(function: Callable, sample: SampleInput) -> tuple[Tensor, list[Tensor]]:
    """The result, and the buffers that the call may have updated."""
    fresh = sample.transform(lambda t: t.detach().clone() if isinstance(t, Tensor) and t.is_contiguous() else t)
    result = function(fresh.input, *fresh.args, **fresh.kwargs)
    return result, [t for t in fresh.args[:2] if isinstance(t, Tensor) and t.dim() == 1]


def in_float64(sample: SampleInput) -> SampleInput:
    return sample.transform(lambda t: t.detach().double() if isinstance(t, Tensor) else t)


@targets
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_value(name: str, dtype: torch.dtype) -> None:
    target, info, count = TARGETS[name], INFOS[TARGETS[name].info], 0
    assert dtype in info.supported_dtypes("cpu")
    for i, sample in enumerate(target.inputs(dtype)):
        for kind, given in (("contiguous", sample), ("noncontiguous", sample.noncontiguous())):
            exact, exact_buffers = run(info, in_float64(sample))
            rival, rival_buffers = run(info, sample)
            got, buffers = run(target.call, given)
            label = f"{name} sample {i} {kind}"
            assert got.dtype is dtype, label
            assert_close_fp64(got, exact, reduction=target.reduction(sample), rival=rival, label=label)
            for mine, wanted, theirs in zip(buffers, exact_buffers, rival_buffers, strict=True):
                assert_close_fp64(mine, wanted, rival=theirs, label=f"{label}, running statistics")
            count += 1
    assert count >= 2 * target.samples


@targets
def test_gradcheck(name: str) -> None:
    target, count = TARGETS[name], 0
    for sample in target.inputs(torch.float64, requires_grad=True):
        tensors = [t for t in (sample.input, *sample.args) if isinstance(t, Tensor) and t.requires_grad]

        def function(*leaves: Tensor, sample=sample) -> Tensor:
            given = iter(leaves)
            arguments = [
                (next(given) if t.requires_grad else t.clone()) if isinstance(t, Tensor) else t
                for t in (sample.input, *sample.args)
            ]
            return target.call(*arguments, **sample.kwargs)

        assert torch.autograd.gradcheck(function, tensors)
        count += 1
    assert count >= target.samples


@pytest.mark.parametrize("name, op", [("depthwise_conv2d", "depthwise_conv2d"), ("conv_bn_act", "conv_bn_act")])
def test_every_error_input_of_conv2d_raises_with_the_name_of_the_op(name: str, op: str) -> None:
    """Most are conv1d-shaped in torch's list; they are wrong for a 2-D convolution too."""
    errors = list(INFOS[NAME + "conv2d"].error_inputs("cpu"))
    assert len(errors) >= 10
    for case in errors:
        sample = case.sample_input
        if (
            case.error_regex != "should be the same"
        ):  # integers there: past the check of the dtype, to the mistake itself
            sample = sample.transform(lambda t: t.float() if isinstance(t, Tensor) else t)
        with pytest.raises((ValueError, TypeError), match=f"^{op}: "):
            TARGETS[name].call(sample.input, *sample.args, **sample.kwargs)


def test_every_error_input_of_max_pool2d_raises_with_the_name_of_the_op() -> None:
    errors = list(INFOS[NAME + "max_pool2d"].error_inputs("cpu"))
    # torch wants a channel, ours takes none
    errors = [case for case in errors if 0 not in case.sample_input.input.shape[-3:-2] or "pad" in case.error_regex]
    assert len(errors) >= 5
    for case in errors:
        with pytest.raises((ValueError, TypeError), match="^max_pool2d: "):
            max_pool(case.sample_input.input, **case.sample_input.kwargs)


def test_the_other_ops_bring_no_error_inputs_yet() -> None:
    """When torch adds some, they belong into the tests above."""
    others = {TARGETS[name].info for name in TARGETS} - {NAME + "conv2d", NAME + "max_pool2d"}
    assert {name for name in others if INFOS[name].error_inputs_func is not None} == set()
